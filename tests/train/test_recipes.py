"""Each recipe is well formed, says what it takes, and its commands parse."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.train.command_lines import parse

RECIPES = sorted(
    path
    for path in (Path(__file__).parents[2] / "train/recipes").iterdir()
    if path.suffix in (".sh", ".yaml")
)
# What a shell puts in the place of its variables.
VALUES = {"process-id $JOB_COMPLETION_INDEX": "process-id 0"}


def commands_of(text):
    for given, value in VALUES.items():
        text = text.replace(given, value)
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("#"):
            continue
        for match in re.finditer(r"\bcwgnc ([a-z]+ [^;&|]*)", line):
            command = match[1].strip()
            # The quote around the whole command.
            unbalanced = command.count('"') % 2
            yield shlex.split(command.removesuffix('"') if unbalanced else command)


def texts_of(path):
    """What a shell is given."""
    if path.suffix == ".sh":
        return [path.read_text()]
    documents = list(yaml.safe_load_all(path.read_text()))
    jobs = [document for document in documents if document["kind"] == "Job"]
    return [
        argument
        for job in jobs
        for container in job["spec"]["template"]["spec"]["containers"]
        for argument in container["args"]
    ]


def name_of(path):
    return path.name


def test_there_are_recipes_for_every_kind_of_machine():
    names = " ".join(map(name_of, RECIPES))
    for kind in ("one_gpu", "eight_gpus", "slurm", "tpu_pod", "kubernetes", "paper"):
        assert kind in names


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_says_what_it_takes(path):
    header = path.read_text()
    for word in ("# Hardware: ", "# Time: ", "# Score: "):
        assert word in header


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_the_shell_of_a_recipe_is_well_formed(path):
    for text in texts_of(path):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_the_commands_of_a_recipe_parse(path):
    commands = [command for text in texts_of(path) for command in commands_of(text)]
    assert commands
    for name, *flags in commands:
        parse(name, flags)


def test_a_wrong_flag_in_a_recipe_is_noticed():
    [[name, *flags]] = commands_of("cwgnc finetune --model M --workdir W --sed 1\n")
    with pytest.raises(SystemExit):
        parse(name, flags)
