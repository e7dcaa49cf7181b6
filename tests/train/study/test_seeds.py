"""``finetune --seeds``: several runs as one program, of which the best is saved."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from cwgnc_train.commands import run as command
from cwgnc_train.config import (
    DataConfig,
    DevicesConfig,
    FinetuneConfig,
    OptimizerConfig,
    TrainingConfig,
)
from cwgnc_train.engine import Training
from cwgnc_train.study import finetune
from tests.train.configs import replaced
from tests.train.conftest import sentences, write_tsv
from tests.train.study.conftest import of_kind, records, steps_taken


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Files of a task that a run learns in a few epochs: is the noun a plural?"""
    folder = tmp_path_factory.mktemp("data")

    def rows(count, start=0):
        texts = [text for text, _ in sentences(count, start)]
        return [(t, "many" if t.split()[1].endswith("s") else "one") for t in texts]

    return (
        write_tsv(folder / "train.tsv", rows(37)),
        write_tsv(folder / "validation.tsv", rows(20, 41)),
    )


@pytest.fixture
def config(tiny_model, data, tmp_path) -> FinetuneConfig:
    """Runs of six steps, which go through one program."""
    return FinetuneConfig(
        model=str(tiny_model),
        workdir=tmp_path / "run",
        data=DataConfig(
            train_file=data[0],
            validation_file=data[1],
            text_columns=("text",),
            holdout=0.3,
            max_length=16,
        ),
        preset="code",
        optimizer=OptimizerConfig(learning_rate=1e-2),
        epochs=3,
        training=TrainingConfig(
            padding="max_length",
            evaluations=1,
            record_every=1,
            norms_every=1,
            new_head=True,
            devices=DevicesConfig(devices=1, runs_per_program=2),
        ),
    )


def made_up(monkeypatch, scores):
    """Runs end with the accuracies of this table, {seed: {split: accuracy}}."""
    real = Training.train

    def train(self):
        trained = real(self)
        for run, result in zip(self.group.filled, trained.results, strict=True):
            for split, accuracy in scores[run.seed].items():
                found = result[split]
                changed = found.scores | {"accuracy": accuracy}
                result[split] = dataclasses.replace(found, scores=changed)
        return trained

    monkeypatch.setattr(Training, "train", train)


def logits(workdir, split="validation"):
    """Of each seed, from the records."""
    return {
        int(line["run"].rpartition("=")[2]): np.array(line["logits"])
        for line in records(workdir, "predictions")
        if line["split"] == split
    }


def predicted(workdir, data, output):
    """The probabilities that the saved model gives its answers."""
    flags = ["--input-file", str(data[1]), "--output", str(output)]
    assert command(["predict", "--model", str(workdir / "model"), *flags]) == 0
    with output.open() as file:
        lines = csv.DictReader(file, delimiter="\t")
        return [float(line["probability"]) for line in lines]


def is_model_of(seed, workdir, data, output):
    own = logits(workdir)[seed]
    shifted = np.exp(own - own.max(-1, keepdims=True))
    expected = (shifted / shifted.sum(-1, keepdims=True)).max(-1)
    return np.allclose(predicted(workdir, data, output), expected, atol=1e-4)


@pytest.mark.slow
def test_seeds_together_are_the_runs_of_each_seed_alone(config):
    together = replaced(config, seeds=2)
    results = finetune(together)
    lines = records(together.workdir)
    assert {run["runs_per_program"] for run in of_kind(lines, "run")} == {2}
    models = {}
    for seed in (1, 2):
        workdir = config.workdir.with_name(f"seed{seed}")
        own = finetune(replaced(config, workdir=workdir, seed=seed, runs_per_program=1))
        models[seed] = safetensors.numpy.load_file(workdir / "model/model.safetensors")
        assert own["seed"] == seed and own["spread"]["runs"] == 1
        # To float32's rounding, which training amplifies step by step.
        pairs = zip(
            of_kind(records(workdir), "metrics"),
            [x for x in of_kind(lines, "metrics") if x["run"] == own["run"]],
            strict=True,
        )
        for one, other in pairs:
            assert one.keys() == other.keys() and one["step"] == other["step"]
            for name in ("loss", "grad_norm", "learning_rate"):
                assert one[name] == pytest.approx(other[name], rel=1e-5)
        alone, shared = logits(workdir)[seed], logits(together.workdir)[seed]
        np.testing.assert_allclose(alone, shared, rtol=1e-4, atol=1e-5)
        [line] = [run for run in results["runs"] if run["seed"] == seed]
        assert line["scores"] == own["scores"] and line["failed"] == own["failed"]
    # No two of them are the same, and the best by the holdout was saved.
    holdout = [run["scores"]["holdout"]["accuracy"] for run in results["runs"]]
    best = 1 + int(np.argmax(holdout))
    assert (results["seed"], results["chosen_by"]) == (best, "holdout")
    saved = safetensors.numpy.load_file(together.workdir / "model/model.safetensors")
    # Key biases have no gradient but rounding errors, of which Adam makes steps.
    names = [name for name in saved if not name.endswith("key.bias")]
    near = {
        seed: all(np.allclose(saved[k], own[k], atol=1e-4) for k in names)
        for seed, own in models.items()
    }
    assert near == {seed: seed == best for seed in (1, 2)}


@pytest.mark.parametrize(
    "runs_per_program",
    [
        pytest.param(1, marks=pytest.mark.slow),
        2,
        pytest.param(4, marks=pytest.mark.slow),
    ],
)
def test_the_best_by_the_holdout_is_saved(
    config, data, tmp_path, monkeypatch, runs_per_program
):
    holdout = {1: 0.3, 2: 0.5, 3: 0.5, 4: 0.4}
    scores = {s: {"holdout": x, "validation": 1 - x} for s, x in holdout.items()}
    made_up(monkeypatch, scores)
    results = finetune(replaced(config, seeds=4, runs_per_program=runs_per_program))
    # Of equal ones the first.
    assert (results["seed"], results["chosen_by"]) == (2, "holdout")
    assert results["scores"]["holdout"]["accuracy"] == 0.5
    assert results["spread"]["mean"] == pytest.approx(1 - 0.425)
    assert (results["spread"]["min"], results["spread"]["max"]) == (0.5, 0.7)
    assert json.loads((config.workdir / "results.json").read_text()) == results
    assert is_model_of(2, config.workdir, data, tmp_path / "out.tsv")
    assert not is_model_of(4, config.workdir, data, tmp_path / "other.tsv")
    assert not list(config.workdir.glob("model.*"))


def test_more_seeds_are_added_and_the_best_of_all_is_kept(
    config, data, tmp_path, monkeypatch
):
    accuracies = {1: 0.3, 2: 0.6, 3: 0.5, 4: 0.7, 5: 0.1}
    scores = {s: {"holdout": x, "validation": x} for s, x in accuracies.items()}
    made_up(monkeypatch, scores)

    def best(**changes):
        results = finetune(replaced(config, resume=True, **changes))
        assert is_model_of(results["seed"], config.workdir, data, tmp_path / "out.tsv")
        (tmp_path / "out.tsv").unlink()
        return results["seed"], [run["seed"] for run in results["runs"]]

    assert best(seeds=2) == (2, [1, 2])
    taken = steps_taken(monkeypatch)
    assert best(seeds=3) == (2, [1, 2, 3])
    assert len(taken) == 6
    assert best(seed=4) == (4, [1, 2, 3, 4])
    assert best(seed=5) == (4, [1, 2, 3, 4, 5])
    # What was asked for does not change what the model is.
    assert best(seeds=1) == (4, [1, 2, 3, 4, 5])
    assert len(taken) == 18


GIVE_UP = ["--nonfinite", "skip_step", "--give-up-after", "2"]


@pytest.fixture
def flags(config):
    values = {
        "model": config.model,
        "workdir": config.workdir,
        "train-file": config.data.train_file,
        "validation-file": config.data.validation_file,
        "text-columns": "text",
        "preset": "code",
        "epochs": 1,
        "max-length": 16,
        "padding": "max_length",
        "devices": 1,
        "runs-per-program": 2,
        "seeds": 2,
    }
    pairs = [(f"--{name}", str(value)) for name, value in values.items()]
    return ["finetune", *(part for pair in pairs for part in pair)]


def test_the_spread_and_the_failed_ones_are_printed(flags, monkeypatch, capsys):
    scores = {
        1: {"holdout": 0.25, "validation": 0.5},
        2: {"holdout": 0.75, "validation": 0.625},
    }
    made_up(monkeypatch, scores)
    assert command([*flags, "--holdout", "0.3"]) == 0
    out = capsys.readouterr().out
    assert "seed 1  validation accuracy 0.5000  failed\n" in out
    assert "seed 2  validation accuracy 0.6250  saved\n" in out
    assert "2 runs: mean 0.5625, standard deviation 0.0625, 0.5000 to 0.6250; 1 " in out
    assert "the model is that of seed 2, the best on the holdout\n" in out


def test_a_choice_by_the_validation_set_is_said(flags, config, monkeypatch, capsys):
    made_up(monkeypatch, {1: {"validation": 0.9}, 2: {"validation": 0.6}})
    # With the program of the test below.
    assert command([*flags, *GIVE_UP]) == 0
    out = capsys.readouterr().out
    assert "seed 1, chosen by the validation set: its score there is optimistic" in out
    assert "--holdout .1 chooses on other data" in out
    results = json.loads((config.workdir / "results.json").read_text())
    assert results["chosen_by"] == "validation"


def test_without_a_model_this_is_said_and_the_status_is_1(flags, config, capsys):
    assert command([*flags, *GIVE_UP, "--learning-rate", "1e38"]) == 1
    out, err = capsys.readouterr()
    assert out.count("given up") == 3
    assert "no model was saved: all runs were given up" in out
    assert "the model is that of" not in out
    assert err.count("gave up: 2 steps in a row were skipped") == 2
    assert not (config.workdir / "model").exists()
    results = json.loads((config.workdir / "results.json").read_text())
    assert not results["saved"] and results["spread"]["failed"] == 2
