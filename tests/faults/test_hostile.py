"""Bad input through the readers, and a sample of it through the command line."""

import itertools
import json
import os

import pytest

from cwgnc_train.commands import run
from tests.faults import hostile
from tests.faults.hostile_data import Hostile
from tests.faults.hostile_models import CONFIG, INDEX, Models


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return hostile.Inputs(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_each_bad_input_is_refused_at_once_and_nothing_else_happens(capsys, every):
    found = hostile.count_outcomes(mutations=20, every=every)
    with capsys.disabled():
        print(f"\n{found.summary()}")
    assert not found.wrong
    assert found.bad >= 2000 // every
    controls = {o: n for (f, o), n in found.counts.items() if f == "controls"}
    assert controls == {"still valid": 7}
    assert found.counts["mutations", "still valid"]
    assert found.counts["mutations", "refused"]


def refused(capsys, arguments):
    """What a command says of bad input."""
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and line.isprintable() and len(line) < 2100
    return line


def finetune(place, of):
    data = hostile.data_config(place, of)
    values = {
        "--model": place / "model",
        "--workdir": place / "run",
        "--task": of.settings.get("task"),
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


TRAINED_WITH = {
    "task": "own",
    "text_columns": ["text"],
    "max_length": 16,
    "dtype": "float32",
}


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"7", b"null", b"{}", b"\xff", b"[" * 10**5),
        *(b'"\x1b[2J"', json.dumps(TRAINED_WITH).encode()[:-1]),
        *(
            json.dumps({k: v for k, v in TRAINED_WITH.items() if k != name}).encode()
            for name in TRAINED_WITH
        ),
        *(
            json.dumps(TRAINED_WITH | change).encode()
            for change in (
                *({"dtype": x} for x in ("float16", "object", "", None, 7, [], {})),
                *({"token_types": x} for x in ("yes", None, 0, 1.0, [], {})),
                *({"max_length": x} for x in (0, -1, 2, 10**9, 2**70, 1e999)),
                *({"max_length": x} for x in ("x", None, [], {}, 16.5, True)),
                *({"text_columns": x} for x in ("text", 7, None, {}, [7], [[]], [""])),
                *({"text_columns": x} for x in (["other"], ["text"] * 3, [])),
                *(
                    {"task": x}
                    for x in ("rte2", "", 7, None, [], {}, "\x1b[2J", "stsb")
                ),
            )
        ),
    ],
    ids=lambda content: repr(content)[:60],
)
def test_a_damaged_description_of_the_training_is_refused(inputs, capsys, content):
    place = inputs.write(Hostile("training", {"model/training.json": content}))
    (place / "predictions.tsv").unlink(missing_ok=True)
    flags = {"--model": place / "model", "--output": place / "predictions.tsv"}
    if b'"own"' in content:
        flags["--input-file"] = place / "dev.csv"
    refused(capsys, ["predict", *itertools.chain(*flags.items())])
    assert not (place / "predictions.tsv").exists()


OWN = "--train-file train.csv --validation-file dev.csv --text-columns text"
ALONE = "--model model --workdir run --no-cache"
FINETUNE, STUDY = f"finetune {ALONE} {OWN}", f"stability {ALONE} {OWN}"
NUMBERS = ("-1", "nan", "inf")


@pytest.mark.parametrize(
    "command",
    [
        *(f"{FINETUNE} --seeds {x}" for x in (0, -1, 2**63, 10**30)),
        *(f"{FINETUNE} --seed {2**63 - 3} --seeds {x}" for x in (3, 4)),
        *(f"{each} --record-every {x}" for each in (FINETUNE, STUDY) for x in (0, -1)),
        *(
            f"{each} --data-devices {x}"
            for each in (FINETUNE, STUDY)
            for x in (0, -1, 3, 16, 10**30)
        ),
        *(f"{each} --devices {x}" for each in (FINETUNE, STUDY) for x in (0, -1, 9)),
        *(
            f"{each} --runs-per-program {x}"
            for each in (FINETUNE, STUDY)
            for x in (0, -1)
        ),
        *(
            f"{each} --strategy pmap {x}"
            for each in (FINETUNE, STUDY)
            for x in ("--shard-params", "--runs-per-program 2")
        ),
        *(f"{each} --give-up-after 0" for each in (FINETUNE, STUDY)),
        *(f"{each} --accumulate {x}" for each in (FINETUNE, STUDY) for x in (0, -2, 3)),
        *(f"{each} --keep {x}" for each in (FINETUNE, STUDY) for x in (0, -1)),
        *(f"{each} --keep-best --evaluations 1" for each in (FINETUNE, STUDY)),
        *(f"{each} --evaluations {x}" for each in (FINETUNE, STUDY) for x in (0, -1)),
        *(
            f"{each} --checkpoint-seconds {x}"
            for each in (FINETUNE, STUDY)
            for x in ("-1", "nan")
        ),
        *(f"{each} --holdout {x}" for each in (FINETUNE, STUDY) for x in ("1", "nan")),
        *(
            f"{each} --clip-numbers {x}"
            for each in (FINETUNE, STUDY)
            for x in ("ratio 1", "rato 1")
        ),
        *(
            f"{each} --clip adagc --nonfinite zero_component"
            for each in (FINETUNE, STUDY)
        ),
        *(
            f"{FINETUNE} --clip {clip} --clip-numbers {name} {x}"
            for clip, name in (("adagc", "decay"), ("aggc", "low"), ("zclip", "decay"))
            for x in NUMBERS
        ),
        *(
            f"{each} --{name} {x}"
            for each in (FINETUNE, STUDY)
            for name in ("eps", "weight-decay", "prior-decay")
            for x in NUMBERS
        ),
        *(
            f"{each} --{name} {x}"
            for each in (FINETUNE, STUDY)
            for name in ("warmup-ratio", "b1", "b2", "layer-decay", "dropout")
            for x in (*NUMBERS, "2")
        ),
        *(f"{each} --mixout {x}" for each in (FINETUNE, STUDY) for x in (1, -1, 0.5)),
        *(
            f"{each} --reinit-layers {x}"
            for each in (FINETUNE, STUDY)
            for x in (-1, 3, 10**30)
        ),
        *(f"{each} --data-dir ." for each in (FINETUNE, STUDY)),
        f"{FINETUNE} --task cola",
        *(f"{STUDY} --tasks {x}" for x in ("cola", "cola rte")),
        *(f"{STUDY} --methods {x}" for x in ("cwgn", "cwgnc cwgnc", "cwgnc+cwgnc")),
        *(f"{STUDY} --seeds {x}" for x in (0, -1)),
        *(
            f"{STUDY} --seed-list {x}"
            for x in ("1 1", "x", "-1", "1.5", 2**63, "code 1")
        ),
        *(f"{STUDY} --data-seeds -1", f"{STUDY} --max-norms 0.1 0"),
        *(f"{STUDY} --methods gu --iterations {x}" for x in (0, -1, 3, 10**30)),
        *(f"{STUDY} --methods gu --epochs-per-iteration {x}" for x in (0, -1)),
        *(f"{STUDY} --methods adagc --clip-numbers {x} -1" for x in ("decay", "x")),
        f"{STUDY} --learning-rates 1e-5 nan",
        f"finetune {ALONE} --train-file train.csv --text-columns text",
        f"stability {ALONE} --train-file train.csv --text-columns text",
        *(f"{command} {ALONE}" for command in ("finetune", "stability")),
    ],
)
def test_a_hostile_flag_is_refused_in_one_line(inputs, capsys, command, monkeypatch):
    monkeypatch.chdir(inputs.write(Hostile("flags", {})))
    refused(capsys, command.split())
    assert not os.path.exists("run")
