"""What one command can do the other can: own data, accumulation, every number."""

import json

import pytest

from cwgnc_train.commands import run as command
from tests.train.study.conftest import lasting, of_kind, records, study

# What is told alike to both commands.
NUMBERS = {
    "eps": 1e-6,
    "b1": 0.8,
    "b2": 0.98,
    "weight_decay": 0.1,
    "warmup_ratio": 0.2,
    "prior_decay": 1e-3,
    "layer_decay": 0.9,
    "dropout": 0.0,
    "mixout": 0.2,
    "reinit_layers": 1,
    "components": "by_layer",
    "nonfinite": "skip_step",
}


@pytest.fixture
def flags(tiny_model, tiny_data):
    values = {
        "model": tiny_model,
        "train-file": tiny_data[0],
        "text-columns": "text",
        "holdout": 0.2,
        "max-length": 16,
        "padding": "max_length",
        "epochs": 3,
        "batch-size": 10,
        "accumulate": 2,
        "evaluations": 3,
        "record-every": 2,
        "norms-every": 2,
        "devices": 1,
        "runs-per-program": 1,
    } | {name.replace("_", "-"): value for name, value in NUMBERS.items()}
    pairs = [(f"--{name}", str(value)) for name, value in values.items()]
    more = ["--new-head", "--keep-best"]
    return [*(part for pair in pairs for part in pair), *more]


def of_runs(workdir, name):
    """Records without the names of their runs."""
    return [
        {**line, "run": ""}
        for line in lasting(records(workdir, name))
        if line["kind"] not in ("names", "run")
    ]


@pytest.mark.slow
def test_a_study_takes_all_that_finetune_takes(flags, tmp_path):
    """To the same bits; a holdout is enough to score runs on."""
    one, many = tmp_path / "one", tmp_path / "many"
    alone = ["--workdir", str(one), "--learning-rate", "3e-3", "--max-norm", "0.1"]
    alone += ["--seed", "1", "--no-bias-correction"]
    assert command(["finetune", *flags, *alone]) == 0
    sweep = ["--workdir", str(many), "--learning-rates", "3e-3", "--max-norms", "0.1"]
    sweep += ["--seeds", "1", "--bias-correction", "False"]
    assert command(["stability", *flags, *sweep]) == 0
    for name in ("records", "components", "predictions"):
        lines = of_runs(one, name)
        assert lines and lines == of_runs(many, name)
    for workdir in (one, many):
        [run] = of_kind(records(workdir), "run")
        assert {name: run[name] for name in NUMBERS} == NUMBERS
        assert run["bias_correction"] is False and run["task"] == "own"
        assert run["judged"] == "holdout" and list(run["scores"]) == ["holdout"]
        assert run["train_examples"] == 30 and run["steps"] == 9
        assert run["new_parameters"] == ["classifier/bias", "classifier/kernel"]
        # The best of the evaluations before the end, and the last checkpoint.
        scores = {
            line["step"]: line["scores"][run["metric"]]
            for line in of_kind(records(workdir), "evaluation")
        }
        assert [*scores] == [3, 6, 9]
        best = max((3, 6), key=lambda step: scores[step])
        kept = {path.name for path in (workdir / "checkpoints").glob("*/*")}
        assert kept == {str(best), "6"}
    results = json.loads((one / "results.json").read_text())
    assert results["chosen_by"] == "holdout"


def test_data_of_ones_own_without_anything_to_score_on_are_refused(
    flags, tmp_path, capsys
):
    del flags[flags.index("--holdout") : flags.index("--holdout") + 2]
    for name in ("finetune", "stability"):
        assert command([name, *flags, "--workdir", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert "give --validation-file FILE, or --holdout .1" in error
        assert not (tmp_path / name).exists()


@pytest.mark.slow
def test_accumulation_makes_the_same_runs(config):
    changes = {
        "max_norms": (0.05,),
        "seeds": 1,
        "dropout": 0.0,
    }
    whole = study(config, **changes)
    parts = study(
        config, **changes, accumulate=4, workdir=config.workdir.with_name("parts")
    )
    for one, other in zip(lasting(whole), lasting(parts), strict=True):
        if one["kind"] == "metrics":
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_a_run_that_is_given_up_changes_no_bit_of_its_neighbour(config, capsys):
    changes = {
        "max_norms": (0.05,),
        "seeds": 1,
        "runs_per_program": 2,
        "nonfinite": "skip_step",
        "give_up_after": 3,
    }

    def of_the_neighbour(lines):
        return [line for line in lasting(lines) if "lr=0.003/" in line.get("run", "")]

    calm = study(config, **changes, learning_rates=(1e-3, 3e-3))
    assert "gave up" not in capsys.readouterr().err
    broken = config.workdir.with_name("broken")
    wild = study(config, **changes, learning_rates=(1e38, 3e-3), workdir=broken)
    assert of_the_neighbour(wild) == of_the_neighbour(calm)
    for name in ("components", "predictions"):
        both = [records(path, name) for path in (config.workdir, broken)]
        assert of_the_neighbour(both[0]) == of_the_neighbour(both[1])
    lost, kept = of_kind(wild, "run")
    assert lost["failed"] and lost["gave_up_at_step"] == 4
    assert lost["nonfinite_steps"]["first_step"] == 2
    assert kept["gave_up_at_step"] is None and kept["nonfinite_steps"] is None
    assert capsys.readouterr().err.count("gave up: 3 steps in a row") == 1
