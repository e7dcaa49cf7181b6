"""What of the paper is made again, and how it is cut to a budget."""

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import pytest

import cwgnc_train.study
from cwgnc_train.commands import run as run_command
from cwgnc_train.config import ReproduceConfig, UserError
from cwgnc_train.study import reproduce
from cwgnc_train.study.reproduce import Scale, Speed, cut_to, describe, paper_runs
from tests.train.configs import replaced
from tests.train.conftest import write_tiny_model
from tests.train.study.conftest import of_kind, records

CONFIG = ReproduceConfig(model="m", workdir=Path("w"))
# About what BERT-large takes on a large GPU, and MiniLM on two cores.
FAST = Speed(step=0.02, evaluation=2.0, compilation=60.0, examples=4000, layers=24)
SLOW = Speed(step=0.5, evaluation=5.0, compilation=6.0, examples=4000, layers=6)


def cut(minutes, speed=SLOW, **changes):
    config = dataclasses.replace(CONFIG, budget_minutes=minutes, **changes)
    return cut_to(config, dict.fromkeys(config.tasks, speed))


def test_without_a_budget_all_of_the_papers_runs_are_made():
    runs = paper_runs(CONFIG, Scale(25))
    cells = Counter((r.task, r.method, r.optimizer.max_norm) for r in runs)
    table = ("devlin", "bias_correction", "mixout", "mosbach", "cwgnc")
    for task in ("rte", "mrpc", "cola"):
        for method in table:
            assert sum(n for c, n in cells.items() if c[:2] == (task, method)) == (
                175 if (task, method) == ("cola", "cwgnc") else 25
            )
    for method in ("gu", "gu_restart", "full"):
        assert cells["rte", method, math.inf] == 5
    assert len(runs) == len({run.name for run in runs}) == 3 * 5 * 25 + 6 * 25 + 15
    epochs = {run.method: run.epochs for run in runs}
    assert epochs == dict(zip(table, (3, 3, 3, 20, 5), strict=True)) | dict.fromkeys(
        ("gu", "gu_restart", "full"), 3
    )
    measured = {(run.task, run.method) for run in runs if run.statistics_every}
    assert measured == {
        ("rte", m) for m in ("devlin", "cwgnc", "gu", "gu_restart", "full")
    }


def test_without_rte_or_cola_figures_and_table_2_are_made_on_what_there_is():
    config = dataclasses.replace(CONFIG, tasks=("mrpc", "sst2"))
    runs = paper_runs(config, Scale(2))
    assert {r.task for r in runs if r.method == "gu"} == {"mrpc"}
    assert {r.task for r in runs if r.optimizer.max_norm == 5.0} == {"sst2"}


def test_a_budget_cuts_seeds_then_thresholds_then_examples():
    assert cut(1e9) == Scale(25)
    some = cut(8_000)
    assert 3 < some.seeds < 25 and some == Scale(some.seeds)
    scales = [cut(minutes) for minutes in (3000, 1000, 300, 60)]
    assert {scale.seeds for scale in scales[1:]} == {3}
    assert [len(scale.thresholds) for scale in scales[1:]] == [3, 3, 3]
    examples = [scale.train_examples or 0 for scale in scales[1:]]
    assert examples == sorted(examples, reverse=True) and examples[-1] >= 64
    assert 3 <= scales[-1].every < scales[1].every <= 20
    assert cut(8_000, FAST).seeds > some.seeds


def test_examples_and_evaluations_that_are_asked_for_are_kept():
    config = replaced(CONFIG, train_examples=90, evaluations=2)
    whole = reproduce._study_config(config, Scale(25))
    assert (whole.data.train_examples, whole.training.evaluations) == (90, 2)
    scale = Scale(3, train_examples=64, evaluations=1)
    less = reproduce._study_config(config, scale)
    assert (less.data.train_examples, less.training.evaluations) == (64, 1)


def test_what_was_cut_is_said():
    assert describe(Scale(25)) == []
    # Fewer seeds are fewer than the paper's, whoever asked for them.
    assert describe(Scale(5)) == ["5 runs a cell instead of 25"]
    text = "; ".join(describe(cut(100)))
    for words in ("3 runs a cell instead of 25", "3 runs in the figures instead of 5"):
        assert words in text
    assert "3 thresholds in Table 2 instead of 7" in text
    assert "training examples" in text and "scores at the end" in text


def test_a_budget_too_small_is_refused_with_what_is_needed():
    with pytest.raises(UserError, match=r"budget-minutes 1 is too little: .* minutes"):
        cut(1)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A tiny model of two layers."""
    return write_tiny_model(tmp_path_factory.mktemp("two_layers"), layers=2)


@pytest.fixture
def command(tiny_model, tiny_glue, tmp_path):
    flags = ["--model", str(tiny_model), "--data-dir", str(tiny_glue)]
    flags += ["--tasks", "cola", "--max-length", "16", "--devices", "1"]
    flags += ["--workdir", str(tmp_path / "w"), "--learning-rate", "3e-3"]
    return lambda *more: run_command(["reproduce", *flags, *more])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--budget-minutes", "0"), "--budget-minutes must be a positive number"),
        (("--seeds", "0"), "--seeds must be at least 1"),
    ],
)
def test_bad_settings_are_refused(command, tmp_path, capsys, flags, message):
    assert command(*flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_the_scale_is_kept_for_the_next_start(command, tmp_path, monkeypatch, capsys):
    def died(study):
        raise KeyboardInterrupt

    monkeypatch.setattr(cwgnc_train.study, "run_study", died)
    speed = dataclasses.replace(SLOW, step=6.0, examples=37, layers=2)
    monkeypatch.setattr(reproduce, "_speeds", lambda study: {"cola": speed})
    assert command("--budget-minutes", "100") == 130
    kept = json.loads((tmp_path / "w" / "reproduction.json").read_text())
    assert kept["scale"]["seeds"] == 3 and len(kept["scale"]["thresholds"]) == 3
    monkeypatch.setattr(reproduce, "_speeds", lambda study: pytest.fail("timed twice"))
    assert command("--budget-minutes", "100") == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    again = ("--budget-minutes", "100", "--resume")
    assert command(*again) == 130
    assert command(*again, "--no-cache") == 130
    assert "cut of what the paper has: 3 runs a cell" in capsys.readouterr().out
    assert command("--budget-minutes", "50", "--resume") == 2
    assert "budget_minutes was 100.0 and is 50" in capsys.readouterr().err
    assert command(*again, "--seeds", "30") == 2
    assert "seeds was 25 and is 30" in capsys.readouterr().err


@pytest.mark.slow
def test_tables_and_figures_come_from_one_command(command, tmp_path):
    assert command("--seeds", "1", "--budget-minutes", "60") == 0
    made = of_kind(records(tmp_path / "w"), "run")
    assert {run["method"] for run in made} == {
        *("devlin", "bias_correction", "mixout", "mosbach", "cwgnc"),
        *("gu", "gu_restart", "full"),
    }
    page = (tmp_path / "w" / "report" / "report.html").read_text()
    for words in ("Table 1", "Table 2", "Convergence racing", "Gradual unfreezing"):
        assert words in page
