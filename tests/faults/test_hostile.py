"""Bad input through the readers, and a sample of it through the command line."""

import itertools
import json

import pytest

from tests.faults import hostile
from tests.faults.hostile_data import Hostile
from tests.faults.hostile_models import CONFIG, INDEX, Models
from train.__main__ import main


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return hostile.Inputs(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_each_bad_input_is_refused_at_once_and_nothing_else_happens(capsys, every):
    found = hostile.count_outcomes(mutations=20, every=every)
    with capsys.disabled():
        print(f"\n{found.summary()}")
    assert not found.wrong
    assert found.bad >= 500
    controls = {o: n for (f, o), n in found.counts.items() if f == "controls"}
    assert controls == {"still valid": 7}
    assert found.counts["mutations", "still valid"]
    assert found.counts["mutations", "refused"]


def refused(capsys, arguments):
    """What a command says of bad input."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and line.isprintable() and len(line) < 2100
    return line


def finetune(place, of):
    data = hostile.data_config(place, of)
    values = {
        "--model": place / "model",
        "--workdir": place / "run",
        "--task": data.task,
        "--data-dir": data.data_dir,
        "--train-file": data.train_file,
        "--validation-file": data.validation_file,
        "--label-column": data.label_column,
        "--holdout": data.holdout,
        "--max-length": data.max_length,
    }
    pairs = [(name, value) for name, value in values.items() if value is not None]
    flags = [part for pair in pairs for part in pair]
    if data.text_columns:
        flags += ["--text-columns", *data.text_columns]
    return ["finetune", *flags, "--no-cache", *["--regression"] * data.regression]


def test_the_command_line_says_what_is_wrong_in_one_line(inputs, capsys):
    bad = (x for x in hostile.distinct(hostile.everything(inputs, 0)) if x.bad)
    families = set()
    for of in itertools.islice(bad, 20, None, 61):
        place = inputs.write(of)
        refused(capsys, finetune(place, of))
        assert not (place / "run").exists()
        families.add(of.family)
    assert len(families) > 10


def test_no_name_out_of_a_file_moves_the_cursor(inputs, capsys):
    sharded = Models(inputs.good / "model").sharded
    index = json.dumps({"weight_map": {"a": "\x1b[2J\ud800x.safetensors"}}).encode()
    of = Hostile("path escapes", sharded | {INDEX: index})
    line = refused(capsys, finetune(inputs.write(of), of))
    assert r"\x1b[2J\ud800x.safetensors" in line


def test_a_token_that_the_model_has_no_embedding_for_is_refused(inputs, capsys):
    vocabulary = (inputs.good / "model/vocab.txt").read_bytes()
    words = b"\n".join(b"word%d" % i for i in range(90))
    content = vocabulary.replace(b"\nthe\n", b"\n" + words + b"\nthe\n")
    of = Hostile("tokenizers", {"model/vocab.txt": content})
    line = refused(capsys, finetune(inputs.write(of), of))
    assert "the tokenizer gives the token" in line and "model has 19 of them" in line


@pytest.mark.parametrize(
    "labels",
    [
        *({"0": "a\tb", "1": "c"}, {"0": "a\nb", "1": "c"}, {"0": "a", "1": 7}),
        *(["a", "b"], {"1": "a", "2": "b"}, {"0": "a", "1": ""}, {}, 7, None, "ab"),
        {"0": "a", "1": ["b"]},
    ],
    ids=repr,
)
def test_labels_that_would_tear_the_predictions_are_refused(inputs, capsys, labels):
    config = json.loads((inputs.good / "model/config.json").read_text())
    content = json.dumps(config | {"id2label": labels}).encode()
    place = inputs.write(Hostile("labels", {CONFIG: content}))
    flags = {"--model": place / "model", "--input-file": place / "dev.csv"}
    flags |= {"--text-columns": "text", "--output": place / "predictions.tsv"}
    refused(capsys, ["predict", *itertools.chain(*flags.items())])
    assert not (place / "predictions.tsv").exists()
