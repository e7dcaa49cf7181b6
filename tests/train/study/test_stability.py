"""What a study records of its runs."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from cwgnc_train.commands import run as command
from cwgnc_train.config import (
    FinetuneConfig,
    OptimizerConfig,
    TrainingConfig,
    UserError,
)
from cwgnc_train.data import batch_examples, find_task, score
from cwgnc_train.engine import Layout, Recorder, RunGroup, make_mesh, programs
from cwgnc_train.study import finetune, prepare_study
from tests.train.configs import replaced
from tests.train.engine.test_writers import values
from tests.train.study.conftest import (
    VOLATILE,
    interrupt_at,
    lasting,
    of_kind,
    records,
    study,
)


def test_records_tell_everything_of_every_run(config):
    lines = study(config)
    runs = of_kind(lines, "run")
    assert len(runs) == 4 and len({run["run"] for run in runs}) == 4
    # 33 of 37 examples are trained on: 5 steps an epoch.
    assert {run["steps"] for run in runs} == {10}
    assert {run["train_examples"] for run in runs} == {33}
    assert {run["max_norm"] for run in runs} == {0.05, "inf"}
    for run in runs:
        mine = [line for line in lines if line.get("run") == run["run"]]
        scored = of_kind(mine, "evaluation")
        assert {(e["step"], e["split"]) for e in scored} == {
            (step, split) for step in (4, 7, 10) for split in ("holdout", "validation")
        }
        last = {e["split"]: e["scores"] for e in scored if e["step"] == 10}
        assert run["scores"] == last
        assert [m["step"] for m in of_kind(mine, "metrics")] == [3, 4, 6, 7, 9, 10]
        line = run["majority_line"]["validation"]["matthews_correlation"]
        score = run["scores"]["validation"]["matthews_correlation"]
        assert run["failed"] == (score <= line) and line == 0
        assert run["diverged_at_step"] is None
        assert {"device", "versions", "seconds", "devices", "finished_at"} <= set(run)
    rates = {m["clip_rate_components"] for m in of_kind(lines, "metrics")}
    assert 0.0 in rates and max(rates) > 0.5


def test_predictions_of_every_run_are_recorded(config, tiny_glue):
    lines = study(config, max_norms=(0.05,))
    scores = {run["run"]: run["scores"] for run in of_kind(lines, "run")}
    found = records(config.workdir, "predictions")
    assert {(line["run"], line["split"], line["step"]) for line in found} == {
        (name, split, 10) for name in scores for split in ("holdout", "validation")
    }
    text = (tiny_glue / "CoLA" / "dev.tsv").read_text().splitlines()
    labels = np.array([int(line.split("\t")[1]) for line in text])
    for line in found:
        logits = np.array(line["logits"])
        assert logits.shape == ({"holdout": 4, "validation": 20}[line["split"]], 2)
        # So that they can be scored anew, without the model.
        if line["split"] == "validation":
            again = score(find_task("cola"), logits.argmax(-1), labels)
            assert again == scores[line["run"]]["validation"]


def test_component_norms_of_every_run_are_recorded(config):
    lines = study(config, max_norms=(0.05,), norms_every=4, record_every=1)
    names, *norms = records(config.workdir, "components")
    assert names["kind"] == "names" and "classifier/kernel" in names["components"]
    for run in of_kind(lines, "run"):
        mine = {line["step"]: line for line in norms if line["run"] == run["run"]}
        assert [*mine] == [1, 4, 8]
        means = {
            line["step"]: line
            for line in of_kind(lines, "metrics")
            if line["run"] == run["run"]
        }
        for step, line in mine.items():
            assert len(line["norms"]) == len(names["components"])
            total = np.linalg.norm(line["norms"])
            assert means[step]["grad_norm"] == pytest.approx(total, rel=1e-5)
            clipped = np.mean([coefficient < 1 for coefficient in line["coefficients"]])
            assert means[step]["clip_rate_components"] == pytest.approx(clipped)


def test_a_run_of_a_study_is_the_run_of_finetune(config, tmp_path):
    """To the same bits: there is one engine."""
    study(config, max_norms=(0.05,), runs_per_program=1)
    alone = FinetuneConfig(
        model=config.model,
        workdir=tmp_path / "alone",
        task="cola",
        data=config.data,
        preset="code",
        optimizer=OptimizerConfig(learning_rate=3e-3),
        seed=2,
        epochs=2,
        training=config.training,
    )
    finetune(alone)
    for name in ("records", "components", "predictions"):
        kept = [
            {**line, "run": ""}
            for line in lasting(records(alone.workdir, name))
            if line["kind"] not in ("run", "names")
        ]
        theirs = [
            {**line, "run": ""}
            for line in lasting(records(config.workdir, name))
            if line.get("run", "").endswith("seed=2") and line["kind"] != "run"
        ]
        assert kept == theirs and kept
    [one] = of_kind(records(alone.workdir), "run")
    _, other = of_kind(records(config.workdir), "run")
    differing = {"run", "method", "model_saved", *VOLATILE}
    assert one.keys() == other.keys()
    assert {k for k in one if one[k] != other[k]} <= differing


@pytest.mark.slow
def test_runs_together_equal_one_at_a_time(config):
    together = study(config, runs_per_program=3)
    alone = study(config, workdir=config.workdir.with_name("alone"))
    assert {run["runs_per_program"] for run in of_kind(together, "run")} == {3}
    # Four runs in programs of three: the copies that fill up leave no line.
    pairs = list(zip(lasting(together), lasting(alone), strict=True))
    for one, other in pairs:
        assert one["kind"] == other["kind"] and one["run"] == other["run"]
        if one["kind"] == "metrics":
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        else:
            assert one["scores"] == other["scores"]


def test_the_data_seed_draws_the_order_and_the_dropout(config):
    config = replaced(config, data_seeds=2, max_norms=(0.05,), new_head=True)
    prepared = prepare_study(config)
    run = prepared.runs[1]
    assert (run.seed, run.data_seed) == (1, 2)
    group = RunGroup(prepared.tasks["cola"], (run,), prepared.layout)
    [[indices]] = group.batch_indices([3], group.batch_shape([3]))
    assert (indices.examples == batch_examples(33, 2, 3, batch_size=8)).all()
    assert (indices.examples != batch_examples(33, 1, 3, batch_size=8)).any()
    started = group.start()
    assert started.key[0] == jax.random.split(jax.random.key(2))[1]
    # The seed draws what is new in the model.
    new = {}
    for run in prepared.runs:
        group = RunGroup(prepared.tasks["cola"], (run,), prepared.layout)
        kernel = np.asarray(group.start().params["classifier"]["kernel"])
        new[run.seed, run.data_seed] = kernel
    assert (new[1, 1] == new[1, 2]).all() and (new[1, 1] != new[2, 1]).all()


def test_fewer_runs_go_together_when_memory_runs_out(config, monkeypatch):
    real = programs.compile_train_steps

    class Full:
        def lower(self, *shapes):
            return self

        def compile(self):
            def step(states, table, indices):
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

            return step

    def compile_train_steps(step_config, layout, *rest):
        return Full() if layout.runs > 2 else real(step_config, layout, *rest)

    monkeypatch.setattr(programs, "compile_train_steps", compile_train_steps)
    lines = study(config, runs_per_program=4)
    assert [line["runs"] for line in of_kind(lines, "layout")] == [4, 2]
    assert {run["runs_per_program"] for run in of_kind(lines, "run")} == {2}
    assert len(of_kind(lines, "run")) == 4
    # The next start does not try four again.
    lines = study(config, runs_per_program=4, seeds=3)
    assert [line["runs"] for line in of_kind(lines, "layout")] == [4, 2]
    assert {run["runs_per_program"] for run in of_kind(lines, "run")} == {2}


@pytest.mark.slow
def test_layouts_are_found_again_by_what_was_wanted(config, capsys):
    """Each start makes more runs; a line is written where a layout is chosen."""

    def chosen(seeds, **changes):
        changes |= {"seeds": seeds, "max_norms": (0.05,)}
        # A single step.
        changes |= {"train_examples": 8, "epochs": 1, "evaluations": 1}
        lines = of_kind(study(config, **changes), "layout")
        return [(line["wanted"], line["runs"]) for line in lines]

    assert chosen(1) == [("auto", 1)]
    assert "1 at a time" not in capsys.readouterr().err
    assert chosen(3, runs_per_program=2) == [("auto", 1), (2, 2)]
    assert "2 at a time (as asked for" in capsys.readouterr().err
    assert chosen(4) == [("auto", 1), (2, 2)]
    runs = of_kind(records(config.workdir), "run")
    assert [run["runs_per_program"] for run in runs] == [1, 2, 2, 1]


def test_layouts_are_found_again_by_the_devices(tmp_path):
    one, two, shared = (
        Layout(make_mesh(jax.devices()[:count], data_devices))
        for count, data_devices in ((1, 1), (2, 1), (2, 2))
    )
    with Recorder(tmp_path, TrainingConfig()) as recorder:
        recorder.add_layout("program", "auto", dataclasses.replace(two, runs=6), "")
        recorder.add_layout("program", 4, dataclasses.replace(one, runs=4), "")
        # Four did not fit.
        recorder.add_layout("program", 4, dataclasses.replace(one, runs=2), "")
    with Recorder(tmp_path, TrainingConfig()) as recorder:
        found = {
            (wanted, layout.description): recorder.layout("program", wanted, layout)
            for wanted in ("auto", 4)
            for layout in (one, two, shared)
        }
        assert recorder.layout("other program", "auto", two) is None
    expected = {
        ("auto", two.description): dataclasses.replace(two, runs=6),
        (4, one.description): dataclasses.replace(one, runs=2),
    }
    assert {key: layout for key, layout in found.items() if layout} == expected


def test_a_device_too_small_for_one_run_is_told_so(config, monkeypatch):
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    interrupt_at(monkeypatch, 1, error)
    with pytest.raises(UserError, match="cannot hold a single run: lower --batch-si"):
        study(config)


def test_other_errors_of_the_device_are_not_swallowed(config, monkeypatch):
    interrupt_at(monkeypatch, 1, jax.errors.JaxRuntimeError("INTERNAL: broken"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        study(config)


def test_a_run_that_diverges_has_failed_and_names_its_step(config):
    lines = study(config, learning_rates=(1e38,), max_norms=(0.05,), seeds=1)
    [run] = of_kind(lines, "run")
    assert run["failed"] and run["diverged_at_step"] in range(2, 11)
    assert "nan" in {line["loss"] for line in of_kind(lines, "metrics")}


@pytest.mark.slow
def test_runs_are_shared_by_devices(config):
    lines = study(config, devices=4, data_devices=2)
    alone = study(config, workdir=config.workdir.with_name("alone"))
    assert {run["devices"] for run in of_kind(lines, "run")} == {4}
    assert {run["runs_per_program"] for run in of_kind(lines, "run")} == {2}
    for one, other in zip(lasting(lines), lasting(alone), strict=True):
        if one["kind"] == "metrics" and one["step"] <= 4:
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_each_finished_cell_is_one_line(config, capsys):
    study(config)
    text = capsys.readouterr().err
    cells = re.findall(r"^cola/cwgnc_code/\S+: 2 runs, .* failed$", text, re.MULTILINE)
    assert len(cells) == 2


@pytest.mark.slow
def test_each_run_of_a_study_has_an_event_file_of_its_own(config):
    lines = study(config, methods=("olmo",), writers=("tensorboard",))
    names, *norms = records(config.workdir, "components")
    expected = {run["run"]: {} for run in of_kind(lines, "run")}
    for line in of_kind(lines, "metrics"):
        for name, value in line.items():
            if isinstance(value, float) and name != "epoch":
                expected[line["run"]][name, line["step"]] = value
    for line in of_kind(lines, "evaluation"):
        for name, value in line["scores"].items():
            expected[line["run"]][f"{line['split']}/{name}", line["step"]] = value
    for line in norms:
        for of in ("norms", "coefficients"):
            for name, value in zip(names["components"], line[of], strict=True):
                expected[line["run"]][f"{of}/{name}", line["step"]] = value
    assert len(expected) == 2
    for run, of_run in expected.items():
        shown = values(config.workdir / "tensorboard" / run)
        assert shown == {key: np.float32(value) for key, value in of_run.items()}


@pytest.mark.slow
def test_every_method_makes_its_runs(config):
    names = (
        "full",
        "devlin",
        "bertadam",
        "mosbach",
        "mixout",
        "llrd",
        "prior_decay+cwgnc",
    )
    names += ("none", "global", "adagc", "aggc", "olmo", "autoclip", "zclip")
    lines = study(config, methods=names, max_norms=(0.05,), seeds=1, epochs=1)
    runs = {run["method"]: run for run in of_kind(lines, "run")}
    assert set(runs) == set(names)
    assert runs["mixout"]["mixout"] == 0.9 and runs["mixout"]["dropout"] == 0.0
    assert runs["llrd"]["layer_decay"] == 0.95
    assert runs["prior_decay+cwgnc"]["max_norm"] == 0.05
    assert runs["aggc"]["clip_numbers"]["high"] == 2
    assert runs["aggc"]["clip_numbers"]["max_factor"] == "inf"
    assert runs["olmo"]["clip_numbers"]["decay"] == 0.999
    assert all(run["diverged_at_step"] is None for run in runs.values())


@pytest.mark.slow
def test_study_and_report_from_the_command_line(config, capsys):
    arguments = ["--model", config.model, "--workdir", str(config.workdir)]
    arguments += ["--tasks", "cola", "--data-dir", str(config.data.data_dir)]
    arguments += ["--methods", "cwgnc", "cwgnc_code", "--seeds", "2", "--epochs", "1"]
    arguments += ["--max-norms", "0.05", "inf", "--holdout", "0.1", "--devices", "1"]
    arguments += ["--max-length", "16", "--batch-size", "8"]
    assert command(["stability", *arguments]) == 0
    assert command(["report", str(config.workdir)]) == 0
    assert (config.workdir / "report" / "report.html").stat().st_size > 10_000
    assert command(["report", str(config.workdir.parent)]) == 2
