"""What a study records of its runs."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest

from tests.train.experiments.conftest import (
    interrupt_at,
    lasting,
    of_kind,
    study,
)
from tests.train.test_writers import values
from train import batches, parallel
from train.__main__ import main
from train.config import PRESETS, DataConfig
from train.experiments.stability import prepare_study
from train.loop import prepare, train_and_evaluate


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


def test_a_run_of_a_study_is_the_run_of_finetune(config, tmp_path):
    lines = study(config, max_norms=(0.05,))
    preset = PRESETS["code"]
    alone = dataclasses.replace(
        preset,
        model=config.model,
        workdir=tmp_path / "alone",
        data=DataConfig(
            task="cola", data_dir=config.data_dir, holdout=0.1, max_length=16
        ),
        optimizer=dataclasses.replace(preset.optimizer, learning_rate=3e-3),
        seed=2,
        epochs=2,
        batch_size=8,
    )
    results = train_and_evaluate(prepare(alone))
    [run] = [run for run in of_kind(lines, "run") if run["seed"] == 2]
    assert run["scores"] == results["scores"]
    text = (alone.workdir / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in text]
    means = [
        line["loss"] for line in of_kind(lines, "metrics") if line["run"] == run["run"]
    ]
    # The lines of the study end at steps 3, 4, 6, 7, 9 and 10.
    expected = [np.mean(part) for part in np.split(np.array(losses), [3, 4, 6, 7, 9])]
    assert means == expected


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
    prepared = prepare_study(dataclasses.replace(config, seeds=1, data_seeds=2))
    run = prepared.runs[1]
    assert (run.seed, run.data_seed) == (1, 2)
    shape = prepared.batch_shape([run], [3])
    [[plan]] = prepared.plans([run], [3], shape)
    order = functools.partial(batches.examples_of, 33, step=3, batch_size=8)
    assert (plan.examples == order(seed=2)).all()
    assert (plan.examples != order(seed=1)).any()
    started = prepared.start([run], parallel.ONE_RUN)
    assert started.key[0] == jax.random.split(jax.random.key(2))[1]


def test_fewer_runs_go_together_when_memory_runs_out(config, monkeypatch):
    real = parallel.compile_train_steps

    class Full:
        def lower(self, *shapes):
            return self

        def compile(self):
            def step(runs, examples, plans):
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

            return step

    def compile_train_steps(recipe, layout, *rest):
        return Full() if layout.runs > 2 else real(recipe, layout, *rest)

    monkeypatch.setattr(parallel, "compile_train_steps", compile_train_steps)
    lines = study(config, runs_per_program=4)
    assert [line["runs"] for line in of_kind(lines, "layout")] == [4, 2]
    assert {run["runs_per_program"] for run in of_kind(lines, "run")} == {2}
    assert len(of_kind(lines, "run")) == 4


def test_a_device_too_small_for_one_run_is_told_so(config, monkeypatch):
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    interrupt_at(monkeypatch, 1, error)
    with pytest.raises(MemoryError, match="cannot hold a single run: lower --batch-si"):
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


def test_each_run_of_a_study_has_an_event_file_of_its_own(config):
    lines = study(config, methods=("olmo",), writers=("tensorboard",))
    expected = {}
    for line in of_kind(lines, "metrics"):
        numbers = {name: x for name, x in line.items() if isinstance(x, float)}
        of_run = expected.setdefault(line["run"], {})
        of_run |= {(name, line["step"]): x for name, x in numbers.items()}
    for line in of_kind(lines, "evaluation"):
        for name, score in line["scores"].items():
            expected[line["run"]][f"{line['split']}/{name}", line["step"]] = score
    assert len(expected) == 2
    for run, of_run in expected.items():
        shown = values(config.workdir / "tensorboard" / run)
        assert shown == {key: np.float32(value) for key, value in of_run.items()}


@pytest.mark.slow
def test_every_method_makes_its_runs(config):
    names = ("full", "devlin", "mosbach", "mixout", "llrd", "prior_decay+cwgnc")
    names += ("none", "global", "adagc", "aggc", "olmo", "autoclip", "zclip")
    lines = study(config, methods=names, max_norms=(0.05,), seeds=1, epochs=1)
    runs = {run["method"]: run for run in of_kind(lines, "run")}
    assert set(runs) == set(names)
    assert runs["mixout"]["mixout"] == 0.9 and runs["mixout"]["dropout"] == 0.0
    assert runs["llrd"]["layer_decay"] == 0.95
    assert runs["prior_decay+cwgnc"]["max_norm"] == 0.05
    assert runs["aggc"]["clip_numbers"] == {"low": 0.5, "high": 2, "decay": 0.98}
    assert all(run["diverged_at_step"] is None for run in runs.values())


def test_study_and_report_from_the_command_line(config, capsys):
    arguments = ["--model", config.model, "--workdir", str(config.workdir)]
    arguments += ["--tasks", "cola", "--data-dir", str(config.data_dir)]
    arguments += ["--methods", "cwgnc", "cwgnc_code", "--seeds", "2", "--epochs", "1"]
    arguments += ["--max-norms", "0.05", "inf", "--holdout", "0.1", "--devices", "1"]
    arguments += ["--max-length", "16", "--batch-size", "8"]
    assert main(["stability", *arguments]) == 0
    assert main(["report", str(config.workdir)]) == 0
    assert (config.workdir / "report" / "report.html").stat().st_size > 10_000
    assert main(["report", str(config.workdir.parent)]) == 2
