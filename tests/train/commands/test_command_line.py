"""What all commands do: names, help, exit statuses, errors."""

import json
import shutil
import subprocess
import sys

import pytest

from cwgnc_train import study
from cwgnc_train.commands import COMMANDS, run
from cwgnc_train.config import UserError
from cwgnc_train.data import CachedTokenizer
from cwgnc_train.engine import Interrupted, predict
from cwgnc_train.records import write_json
from tests.train.conftest import sentences, write_tsv

HEAVY = {"jax", "numpy", "pandas", "transformers", "matplotlib", "orbax", "optax"}


def imported_by(*arguments):
    """Runs ``cwgnc`` in a process; returns it with the names of what it imported."""
    code = (
        "import sys\n"
        "from cwgnc_train.commands import run\n"
        "try:\n  status = run(sys.argv[1:])\n"
        "except SystemExit as end:\n  status = end.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True
    )
    return done, set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "arguments",
    [["--help"], [], *([name, "--help"] for name in ("finetune", "stability"))],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(arguments):
    done, imported = imported_by(*arguments)
    assert done.returncode == (0 if arguments else 2)
    assert "usage: cwgnc" in done.stdout
    assert not imported & HEAVY


def test_help_names_every_command(capsys):
    assert run(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        run([name, "--help"])
    assert end.value.code == 0
    assert f"usage: cwgnc {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("fine-tune", "finetune"), ("Predict", "predict"), ("stabilty", "stability")],
)
def test_an_unknown_command_is_told_the_nearest(name, nearest, capsys):
    assert run([name]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"unknown command {name!r}, did you mean {nearest!r}?" in line


def test_an_unknown_command_is_told_all(capsys):
    assert run(["xyzzy"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "did you mean" not in line and all(name in line for name in COMMANDS)


@pytest.mark.parametrize(
    ("command", "flag", "nearest"),
    [
        ("finetune", "--learning-rat", "--learning-rate"),
        ("finetune", "--seedss", "--seeds"),
        ("stability", "--method", "--methods"),
        ("predict", "--max-lenght", "--max-length"),
    ],
)
def test_an_unknown_flag_is_told_the_nearest(command, flag, nearest, capsys):
    more = {"predict": ["--output", "o"]}.get(command, ["--workdir", "w"])
    with pytest.raises(SystemExit) as end:
        run([command, "--model", "m", *more, flag, "1"])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert nearest in (printed.err + printed.out).split()


@pytest.fixture
def flags(tiny_model, tiny_data, tmp_path):
    """Those of a run that never gets to its first step."""
    values = {"model": tiny_model, "train-file": tiny_data[0], "text-columns": "text"}
    values |= {"holdout": 0.2, "max-length": 16, "workdir": tmp_path / "run"}
    pairs = [(f"--{name}", str(value)) for name, value in values.items()]
    return ["finetune", *(part for pair in pairs for part in pair), "--no-cache"]


@pytest.mark.parametrize(
    "error", [ValueError, TypeError, KeyError, AssertionError, ZeroDivisionError]
)
def test_a_bug_keeps_its_traceback(flags, monkeypatch, error):
    def broken(prepared):
        raise error("a bug")

    monkeypatch.setattr(sys.modules[study.finetune.__module__], "run_study", broken)
    with pytest.raises(error, match="a bug"):
        run(flags)


def test_a_bug_ends_the_process_with_status_1_and_its_traceback(flags):
    code = (
        "import sys\n"
        "from cwgnc_train import __main__, engine\n"
        "from cwgnc_train.study import study\n"
        "def broken(*_):\n  raise ValueError('a bug')\n"
        "study.load_inputs = broken\n"
        "__main__.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ValueError: a bug" in done.stderr


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("wrong\nflag"), 2, "error: wrong flag"),
        (UserError("\x1b[2J"), 2, r"error: \x1b[2J"),
        (OSError(28, "No space left on device"), 2, "make room"),
        (Interrupted(2), 130, "interrupted by SIGINT; the same command with --resume"),
        (Interrupted(15), 143, "interrupted by SIGTERM"),
        (KeyboardInterrupt(), 130, "interrupted; the same command with --resume"),
    ],
    ids=repr,
)
def test_what_ends_a_command_has_its_status(
    flags, monkeypatch, capsys, error, status, said
):
    def stop(prepared):
        raise error

    monkeypatch.setattr(sys.modules[study.finetune.__module__], "run_study", stop)
    capsys.readouterr()
    assert run(flags) == status
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_run_without_data_to_score_it_on_is_offered_both_ways(flags, capsys):
    index = flags.index("--holdout")
    assert run(flags[:index] + flags[index + 2 :]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "--validation-file FILE" in line and "--holdout .1" in line


@pytest.fixture(scope="module")
def trained(tiny_model, tiny_data, tmp_path_factory):
    """The folder of two seeds of own data, with a holdout in place of a validation."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    flags = f"--model {tiny_model} --train-file {tiny_data[0]} --text-columns text"
    flags += f" --holdout .2 --max-length 16 --workdir {workdir} --dtype bfloat16"
    flags += " --preset code --epochs 1 --seeds 2 --learning-rate 3e-3"
    assert run(f"finetune {flags} --padding max_length --devices 1".split()) == 0
    return workdir


def test_a_holdout_stands_for_a_validation_file(trained):
    results = json.loads((trained / "results.json").read_text())
    assert set(results["scores"]) == {"holdout"}
    assert results["judged"] == results["chosen_by"] == "holdout"
    assert results["spread"]["runs"] == len(results["runs"]) == 2
    assert results["seed"] in (1, 2) and results["saved"]


def test_a_model_says_what_it_was_trained_with(trained):
    assert json.loads((trained / "model" / "training.json").read_text()) == {
        "task": "own",
        "text_columns": ["text"],
        "max_length": 16,
        "dtype": "bfloat16",
        "token_types": True,
    }


def predicted(monkeypatch, *flags):
    """The config that ``predict`` completes from the model's folder, and its task."""
    found = []

    def noted(config, folder, task, examples):
        found.append((config, task))
        raise UserError("enough")

    monkeypatch.setattr(sys.modules[predict.__module__], "_logits", noted)
    assert run(["predict", *map(str, flags)]) == 2
    [pair] = found
    return pair


def test_predict_follows_the_models_folder(trained, tiny_data, tmp_path, monkeypatch):
    output = tmp_path / "out.tsv"
    flags = ["--model", trained / "model", "--input-file", tiny_data[1]]
    flags += ["--output", output]
    config, task = predicted(monkeypatch, *flags)
    assert (config.max_length, config.dtype) == (16, "bfloat16")
    assert config.text_columns == ("text",)
    assert task.label_names == ("bad", "good")
    more = ["--max-length", 8, "--dtype", "float32", "--text-columns", "label"]
    config, _ = predicted(monkeypatch, *flags, *more)
    assert (config.max_length, config.dtype) == (8, "float32")
    assert config.text_columns == ("label",)


@pytest.mark.parametrize(
    ("known", "flags", "expected"),
    [
        ({}, (), True),
        ({}, ("--no-token-types",), False),
        ({"token_types": False}, (), False),
        ({"token_types": False}, ("--token-types",), False),
    ],
)
def test_predict_passes_the_token_types_that_training_passed(
    trained, tiny_data, tmp_path, monkeypatch, known, flags, expected
):
    model = tmp_path / "model"
    shutil.copytree(trained / "model", model)
    saved = json.loads((model / "training.json").read_text())
    write_json(model / "training.json", saved | known)
    asked, encode = [], CachedTokenizer.encode

    def noted(self, texts, max_length, token_types=True):
        asked.append(token_types)
        return encode(self, texts, max_length, token_types)

    monkeypatch.setattr(CachedTokenizer, "encode", noted)
    all_flags = ["--model", model, "--input-file", tiny_data[1], *flags]
    command = ["predict", *map(str, [*all_flags, "--output", tmp_path / "o"])]
    assert run(command) == 0
    assert asked == [expected]


def test_predict_of_a_folder_writes_its_label_names(trained, tmp_path, capsys):
    texts = write_tsv(tmp_path / "texts.tsv", sentences(9))
    flags = f"--model {trained / 'model'} --input-file {texts} --label-column label"
    flags += f" --output {tmp_path / 'out.tsv'}"
    assert run(f"predict {flags}".split()) == 0
    lines = (tmp_path / "out.tsv").read_text().splitlines()
    assert len(lines) == 10
    assert {line.split("\t")[1] for line in lines[1:]} <= {"bad", "good"}
    assert "texts.tsv  accuracy" in capsys.readouterr().out


def test_predict_takes_the_task_from_the_models_folder(trained, tmp_path, monkeypatch):
    model, glue = tmp_path / "model", tmp_path / "glue" / "CoLA"
    shutil.copytree(trained / "model", model)
    known = json.loads((model / "training.json").read_text())
    write_json(model / "training.json", known | {"task": "cola"})
    glue.mkdir(parents=True)
    (glue / "dev.tsv").write_text("x\t1\t\tthe dog sleeps\nx\t0\t\tdog\n")
    flags = ["--model", model, "--data-dir", glue.parent, "--output", tmp_path / "o"]
    config, task = predicted(monkeypatch, *flags)
    assert config.task == task.name == "cola"


def test_a_model_from_elsewhere_has_defaults(trained, tiny_data, tmp_path, monkeypatch):
    model = tmp_path / "model"
    shutil.copytree(trained / "model", model)
    (model / "training.json").unlink()
    flags = ["--model", model, "--input-file", tiny_data[1], "--output", tmp_path / "o"]
    config, _ = predicted(monkeypatch, *flags, "--text-columns", "text")
    assert (config.max_length, config.dtype) == (128, "float32")
