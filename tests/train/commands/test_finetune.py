import hashlib
import json
import math
import re

import chex
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from cwgnc_train.commands import run
from cwgnc_train.engine import programs
from tests.train.command_lines import parse
from tests.train.conftest import sentences, write_tsv


@pytest.fixture
def flags(tiny_model, tiny_data, tmp_path):
    train_file, validation_file = tiny_data

    def build(**changes):
        values = {
            "model": tiny_model,
            "train-file": train_file,
            "validation-file": validation_file,
            "text-columns": "text",
            "preset": "code",
            "epochs": 2,
            "learning-rate": 3e-3,
            "max-length": 16,
            "workdir": tmp_path / "run",
        } | {k.replace("_", "-"): v for k, v in changes.items()}
        pairs = [(f"--{k}", str(v)) for k, v in values.items() if v is not None]
        return ["finetune", *(part for pair in pairs for part in pair)]

    return build


def records(workdir, kind, file="records"):
    lines = (workdir / f"{file}.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_leaves_settings_records_results_model_and_figure(
    flags, tmp_path, capsys
):
    workdir = tmp_path / "run"
    assert run(flags(max_norm="inf", norms_every=4, record_every=1)) == 0
    study = json.loads((workdir / "study.json").read_text())
    assert study["learning_rate"] == 3e-3
    lines = records(workdir, "metrics")
    # 37 examples, 16 a batch: three steps an epoch.
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    norms = records(workdir, "norms", "components")
    assert [line["step"] for line in norms] == [1, 4]
    assert lines[0]["learning_rate"] == pytest.approx(3e-3)
    assert lines[5]["learning_rate"] == pytest.approx(5e-4)
    first = lines[0]
    assert first["clip_rate_components"] == first["clip_rate_elements"] == 0
    assert first["grad_norm"] == pytest.approx(math.hypot(*norms[0]["norms"]), rel=1e-4)
    [names] = records(workdir, "names", "components")
    assert len(names["components"]) == len(norms[0]["norms"]) == 25
    [of_run] = records(workdir, "run")
    assert of_run["max_norm"] == "inf" and of_run["model_saved"]
    [predicted] = records(workdir, "predictions", "predictions")
    assert len(predicted["logits"]) == 20
    # One evaluation an epoch.
    evaluations = records(workdir, "evaluation")
    assert [line["step"] for line in evaluations] == [3, 6]
    results = json.loads((workdir / "results.json").read_text())
    assert (
        results["scores"]
        == of_run["scores"]
        == {"validation": evaluations[-1]["scores"]}
    )
    assert not (workdir / "checkpoints").exists()
    assert set(results["scores"]) == {"validation"}
    assert results["failed"] == (
        results["scores"]["validation"]["accuracy"]
        <= results["majority_line"]["validation"]["accuracy"]
    )
    assert (workdir / "curves.png").stat().st_size > 10_000
    assert "majority line" in capsys.readouterr().out


def test_same_seed_gives_the_same_bits_and_another_seed_does_not(flags, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(flags(workdir=tmp_path / name, seed=seed)) == 0
    a, b, c = (tmp_path / name / "model" / "model.safetensors" for name in "abc")
    assert digest(a) == digest(b) != digest(c)
    a, b, c = (records(tmp_path / name, "metrics") for name in "abc")
    assert [line["loss"] for line in a] == [line["loss"] for line in b]
    assert [line["loss"] for line in a] != [line["loss"] for line in c]


def test_run_compiles_a_program_for_each_of_few_shapes(flags, monkeypatch):
    # Steps of three usual numbers of rows; one program for both sets of evaluation.
    for name, most in (("train_step_alone", 3), ("compute_logits", 1)):
        traced = chex.assert_max_traces(getattr(programs, name), n=most)
        monkeypatch.setattr(programs, name, traced)
    assert run(flags(holdout=0.2)) == 0


def test_saved_model_is_torchs_and_predicts_the_same(flags, tmp_path, tiny_data):
    assert run(flags(epochs=6)) == 0
    workdir, output = tmp_path / "run", tmp_path / "predictions.tsv"
    predict = ["predict", "--model", workdir / "model", "--input-file", tiny_data[1]]
    predict += ["--text-columns", "text", "--label-column", "label"]
    predict += ["--max-length", 16, "--output", output]
    assert run(list(map(str, predict))) == 0
    model, loading = transformers.BertForSequenceClassification.from_pretrained(
        workdir / "model", output_loading_info=True
    )  # pyright: ignore[reportGeneralTypeIssues]  # a pair, if asked for
    assert not any(loading.values())
    tokenizer = transformers.AutoTokenizer.from_pretrained(workdir / "model")
    texts = [text for text, _ in sentences(20, 41)]
    with torch.no_grad():
        logits = model.eval()(
            **tokenizer(texts, padding=True, return_tensors="pt")
        ).logits
    theirs = [model.config.id2label[i] for i in logits.argmax(-1).tolist()]
    lines = [line.split("\t") for line in output.read_text().splitlines()]
    assert lines[0] == ["index", "prediction", "probability"]
    assert [line[1] for line in lines[1:]] == theirs
    probabilities = torch.softmax(logits, -1).amax(-1).numpy()
    np.testing.assert_allclose(
        [float(line[2]) for line in lines[1:]], probabilities, atol=1e-4
    )
    labels = [label for _, label in sentences(20, 41)]
    accuracy = np.mean(np.array(theirs) == np.array(labels))
    results = json.loads((workdir / "results.json").read_text())
    assert results["scores"]["validation"]["accuracy"] == pytest.approx(accuracy)


def test_run_that_diverges_is_recorded_as_failed_at_its_step(flags, tmp_path):
    assert run(flags(learning_rate=1e30, max_norm="inf")) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["failed"] and results["collapsed"]
    assert results["diverged_at_step"] in (2, 3)


def test_regression_on_own_numbers(flags, tmp_path):
    nouns = ["dog", "cat", "dogs", "cats"]
    rows = [(t, str(nouns.index(t.split()[1]) / 2)) for t, _ in sentences(37)]
    data = write_tsv(tmp_path / "numbers.tsv", rows)
    arguments = flags(train_file=data, validation_file=data, epochs=12)
    assert run([*arguments, "--regression", "--new-head"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["scores"]["validation"]["pearson"] > 0.5
    assert not results["failed"]


def test_presets_set_what_flags_do_not_override(flags):
    paper = parse("finetune", flags(preset="paper", epochs=None)[1:])
    assert (paper.epochs, paper.optimizer.weight_decay) == (5, 0.01)
    assert (paper.optimizer.warmup_ratio, paper.optimizer.max_norm) == (0.1, 0.05)
    code = parse("finetune", flags(epochs=None, max_norm=1.0)[1:])
    assert (code.epochs, code.optimizer.weight_decay) == (3, 0.0)
    assert (code.optimizer.warmup_ratio, code.optimizer.max_norm) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "rte"}, "the task rte and --train-file contradict"),
        ({"train_file": None}, "no data: expected a GLUE task, or --train-file"),
        ({"validation_file": None}, "--validation-file FILE, or --holdout .1"),
        ({"data_dir": "."}, "--data-dir and --train-file contradict"),
        ({"max_norm": 0}, "--max-norm must be a positive number"),
        ({"max_norm": "nan"}, "--max-norm must be a positive number"),
        ({"learning_rate": -1}, "--learning-rate must be 0 or a positive"),
        ({"learning_rate": "inf"}, "--learning-rate must be 0 or a positive"),
        ({"warmup_ratio": 2}, "--warmup-ratio must lie in"),
        ({"b1": 1}, "--b1 must lie in"),
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"seed": -1}, "--seed must lie in"),
        ({"seed": 2**64}, "--seed must lie in"),
        ({"label_column": "text"}, "must be different columns"),
        ({"dropout": 1}, "--dropout must lie in"),
        ({"mixout": 0.5}, "--mixout replaces dropout and needs --dropout 0"),
        ({"reinit_layers": 3}, "3 layers .--reinit-layers., but .* has 1"),
        ({"holdout": 1}, "--holdout must lie in"),
        ({"max_length": 2}, "--max-length must be at least 3"),
        ({"max_length": 512}, "512.*32"),
        ({"model": "no/such/model/here"}, "no/such/model/here"),
        ({"train_file": "missing.tsv"}, "missing.tsv"),
        ({"text_columns": "texts"}, "texts.*text"),
        ({"label_column": "lable"}, "lable.*label"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_status_2_and_nothing_written(
    flags, tmp_path, capsys, changes, message
):
    assert run(flags(**changes)) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert re.search(message, captured.err), captured.err
    assert not (tmp_path / "run").exists()


def test_workdir_that_holds_a_run_is_left_alone(flags, tmp_path, capsys):
    assert run(flags(epochs=1)) == 0
    before = {p: digest(p) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert run(flags(epochs=1)) == 2
    assert "already holds runs" in capsys.readouterr().err
    after = {p: digest(p) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert before == after


def test_model_without_a_head_cannot_predict(tiny_model, tiny_data, tmp_path, capsys):
    flags = ["--input-file", str(tiny_data[1]), "--text-columns", "text"]
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in tiny_model.iterdir():
        (bare / path.name).write_bytes(path.read_bytes())
    weights = safetensors.numpy.load_file(bare / "model.safetensors")
    encoder = {k: v for k, v in weights.items() if not k.startswith("classifier")}
    safetensors.numpy.save_file(encoder, bare / "model.safetensors")
    output = str(tmp_path / "out.tsv")
    assert run(["predict", "--model", str(bare), *flags, "--output", output]) == 2
    assert "has no trained classifier" in capsys.readouterr().err
