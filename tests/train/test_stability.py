"""Whole studies of a tiny model on a tiny task in CoLA's files."""

import dataclasses
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.train.conftest import sentences
from train import parallel
from train.__main__ import main
from train.config import PRESETS, DataConfig
from train.experiments import worker
from train.experiments.plan import StabilityConfig
from train.experiments.stability import prepare_study, run_study
from train.loop import prepare, train_and_evaluate

VOLATILE = ("seconds", "own_seconds", "finished_at")


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """The same few programs are compiled by every study of this file."""
    names = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def tiny_glue(tmp_path_factory):
    """A folder of GLUE with a CoLA of 37 training and 20 validation examples."""
    folder = tmp_path_factory.mktemp("glue")
    (folder / "CoLA").mkdir()
    for name, rows in (("train", sentences(37)), ("dev", sentences(20, 41))):
        lines = [f"x\t{int(label == 'good')}\t\t{text}" for text, label in rows]
        (folder / "CoLA" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def config(tiny_model, tiny_glue, tmp_path) -> StabilityConfig:
    return StabilityConfig(
        model=str(tiny_model),
        workdir=tmp_path / "study",
        tasks=("cola",),
        data_dir=tiny_glue,
        methods=("cwgnc_code",),
        max_norms=(0.05, float("inf")),
        learning_rates=(3e-3,),
        seeds=2,
        holdout=0.1,
        batch_size=8,
        epochs=2,
        evaluations=3,
        record_every=3,
        max_length=16,
        devices=1,
    )


def study(config, **changes):
    config = dataclasses.replace(config, **changes)
    run_study(prepare_study(config))
    return records(config.workdir)


def records(workdir):
    text = (workdir / "records.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def of_kind(lines, kind):
    return [line for line in lines if line["kind"] == kind]


def lasting(lines):
    """Lines without what differs from one execution to the next, in a fixed order."""
    kept = [
        {name: value for name, value in line.items() if name not in VOLATILE}
        for line in lines
        if line["kind"] != "layout"
    ]
    return sorted(kept, key=json.dumps)


def interrupt_at(monkeypatch, calls, error=KeyboardInterrupt):
    """The training step raises in its n-th call; evaluation and the rest go on."""
    real, count = worker.train, 0

    def train(step_fn, *arguments):
        def counted(runs, batch):
            nonlocal count
            count += 1
            if count == calls:
                raise error
            return step_fn(runs, batch)

        return real(counted, *arguments)

    monkeypatch.setattr(worker, "train", train)


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


@pytest.mark.parametrize("together", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_an_interrupted_study_goes_on_to_the_same_bits(config, together, monkeypatch):
    changes = {"runs_per_program": together, "checkpoint_seconds": 0.0}
    unbroken = study(config, **changes)
    changes["workdir"] = config.workdir.with_name("broken")
    for calls in (5, 4, 12):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_at(patch, calls)
            study(config, **changes)
    steps = []
    with monkeypatch.context() as patch:
        real = worker.train
        patch.setattr(worker, "train", lambda *a: (steps.append(a[3]), real(*a))[1])
        resumed = study(config, **changes)
    assert steps[0] > 0  # it went on from a checkpoint
    assert lasting(resumed) == lasting(unbroken)
    assert not (changes["workdir"] / "checkpoint").exists()


def test_finished_runs_are_not_repeated_and_more_seeds_run_only_the_new(
    config, monkeypatch
):
    first = study(config)
    made = []
    real = worker.Worker._make
    monkeypatch.setattr(
        worker.Worker,
        "_make",
        lambda self, runs, *a: (made.extend(runs), real(self, runs, *a))[1],
    )
    assert study(config) == first and not made
    more = study(config, seeds=3, max_norms=(0.05, 1.0, float("inf")))
    assert len(made) == 5 and len(of_kind(more, "run")) == 9
    assert more[: len(first)] == first


def test_fewer_runs_go_together_when_memory_runs_out(config, monkeypatch):
    real = parallel.compile_train_step

    class Full:
        def lower(self, *shapes):
            return self

        def compile(self):
            def step(runs, batch):
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

            return step

    def compile_train_step(recipe, layout):
        return Full() if layout.runs > 2 else real(recipe, layout)

    monkeypatch.setattr(parallel, "compile_train_step", compile_train_step)
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


def snapshot(workdir):
    return {path.name: path.read_bytes() for path in workdir.iterdir()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4}, "other settings: batch_size was 8 and is 4"),
        ({"epochs": 3, "holdout": 0.2}, "holdout was 0.1 and is 0.2; epochs was 2"),
        ({"runs_per_program": 3, "devices": 2}, "3 runs cannot be split evenly"),
        ({"devices": 99}, "--devices 99: there are 8"),
        ({"batch_size": 9, "devices": 2, "data_devices": 2}, "batch_size was 8"),
        ({"model": "nowhere/at-all"}, "model was"),
    ],
)
def test_a_study_of_other_settings_is_left_alone(config, changes, message):
    study(config, seeds=1, max_norms=(0.05,))
    before = snapshot(config.workdir)
    with pytest.raises(ValueError, match=message):
        study(config, **changes)
    assert snapshot(config.workdir) == before


def test_a_study_of_other_data_is_left_alone(config, tiny_glue, tmp_path):
    data = tmp_path / "glue"
    shutil.copytree(tiny_glue, data)
    config = dataclasses.replace(config, data_dir=data, seeds=1, max_norms=(0.05,))
    study(config)
    path = data / "CoLA" / "train.tsv"
    path.write_text(path.read_text().replace("cats", "dogs"))
    with pytest.raises(ValueError, match="other data of task: cola was"):
        study(config)


@pytest.mark.slow
def test_every_method_makes_its_runs(config):
    names = ("full", "devlin", "mosbach", "mixout", "llrd", "prior_decay+cwgnc")
    lines = study(config, methods=names, max_norms=(0.05,), seeds=1, epochs=1)
    runs = {run["method"]: run for run in of_kind(lines, "run")}
    assert set(runs) == set(names)
    assert runs["mixout"]["mixout"] == 0.9 and runs["mixout"]["dropout"] == 0.0
    assert runs["llrd"]["layer_decay"] == 0.95
    assert runs["prior_decay+cwgnc"]["max_norm"] == 0.05
    assert all(run["diverged_at_step"] is None for run in runs.values())


def test_more_new_layers_than_there_are_is_refused(config):
    with pytest.raises(ValueError, match="'reinit' draws the top 5 layers .* has 2"):
        study(config, methods=("reinit",))
    assert not config.workdir.exists()


def test_an_unknown_task_is_refused_before_anything_is_read(config):
    with pytest.raises(ValueError, match="did you mean 'cola'"):
        study(config, tasks=("rte", "colla"))
    assert not config.workdir.exists()


def test_damaged_descriptions_and_foreign_folders_are_refused(config):
    config.workdir.mkdir()
    (config.workdir / "study.json").write_text("{")
    with pytest.raises(ValueError, match="study.json is damaged"):
        study(config)
    (config.workdir / "study.json").rename(config.workdir / "notes.txt")
    with pytest.raises(FileExistsError, match="exists and is no empty folder"):
        study(config)


def test_a_study_that_died_at_once_is_begun_again(config):
    config.workdir.mkdir()
    (config.workdir / "study.json.tmp").write_text('{"mod')
    lines = study(config, seeds=1, max_norms=(0.05,))
    assert len(of_kind(lines, "run")) == 1


def test_bad_input_on_the_command_line_is_one_line(config, capsys):
    status = main(
        ["stability", "--model", config.model, "--workdir", str(config.workdir)]
        + ["--tasks", "cola", "--methods", "cwgncc", "--data-dir", str(config.data_dir)]
    )
    assert status == 2 and not config.workdir.exists()
    assert capsys.readouterr().err.count("\n") == 1


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


@pytest.mark.slow
def test_a_study_killed_at_random_moments_ends_with_the_same_bits(config):
    def command(workdir):
        names = ("model", "data_dir", "holdout", "batch_size", "epochs", "evaluations")
        names += ("record_every", "max_length", "devices", "seeds")
        flags = [f"--{n.replace('_', '-')}={getattr(config, n)}" for n in names]
        flags += ["--tasks", "cola", "--methods", "cwgnc_code", "devlin"]
        flags += ["--max-norms", "0.05", "inf", "--learning-rates", "3e-3"]
        flags += ["--checkpoint-seconds", "0", "--workdir", str(workdir)]
        return [sys.executable, "-m", "train", "stability", *flags]

    def written(workdir):
        path = workdir / "records.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    unbroken, killed = config.workdir, config.workdir.with_name("killed")
    subprocess.run(command(unbroken), check=True)
    moments = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(command(killed))
        until = written(killed) + moments.randint(3, 12)
        while written(killed) < until and process.poll() is None:
            time.sleep(moments.uniform(0.0, 0.02))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    subprocess.run(command(killed), check=True)
    assert lasting(records(killed)) == lasting(records(unbroken))
