"""The Python of README and documentation runs, and every public name is in them."""

import re
import shlex
from pathlib import Path

import jax
import pytest

import cwgnc_jax
from cwgnc_jax import models
from cwgnc_train.commands import COMMANDS
from tests.train.command_lines import parse

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
FENCED = re.compile(r"^```python\n(.*?)^```", re.S | re.M)


def blocks_of(page):
    return FENCED.findall(page.read_text())


def page_or_slow_page(page):
    marks = pytest.mark.slow if page.name == "frameworks.md" else ()  # It starts Keras.
    return pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks)


@pytest.mark.parametrize("page", list(map(page_or_slow_page, filter(blocks_of, PAGES))))
def test_the_python_of_a_page_runs_block_after_block(page):
    names = {}
    with jax.numpy_rank_promotion("allow"):  # as users have it; Keras promotes
        for block in blocks_of(page):
            exec(compile(block, page.name, "exec"), names)


def test_the_python_of_the_readme_runs_and_prints_what_it_says(capsys):
    names = {}
    for block in blocks_of(ROOT / "README.md"):
        exec(compile(block, "README.md", "exec"), names)
    norm, rate = map(float, capsys.readouterr().out.split())
    assert norm == float(names["norms"]["dense/kernel"])
    assert rate == 0.8


@pytest.mark.parametrize("module", [cwgnc_jax, models], ids=lambda m: m.__name__)
def test_every_public_name_is_in_the_reference(module):
    pages = (ROOT / "docs/reference").glob("*.rst")
    listed = re.findall(
        r"^\.\. auto\w+:: (\w+)$", "\n".join(page.read_text() for page in pages), re.M
    )
    assert set(module.__all__) <= set(listed)
    assert len(listed) == len(set(listed))


def test_every_command_is_in_the_documentation():
    page = (ROOT / "docs/reference/commands.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.M) == list(COMMANDS)


def commands_of(page):
    """The ``cwgnc`` command lines in a page, as far as they are whole."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            called = re.search(r"(?:^|[\s\"])cwgnc (.*)", line)
            if called and "..." not in called[1]:
                yield shlex.split(re.split(r" && |\"$", called[1])[0], comments=True)


@pytest.mark.parametrize(
    "page",
    [page for page in (ROOT / "README.md", *PAGES) if list(commands_of(page))],
    ids=lambda page: page.name,
)
def test_the_commands_of_a_page_are_taken_by_the_command_line(page):
    for name, *arguments in commands_of(page):
        parse(name, arguments)
