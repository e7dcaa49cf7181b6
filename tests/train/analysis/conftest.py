"""Studies made up of random numbers, in the format that the engine writes."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

METRICS = {"cola": "matthews_correlation", "mrpc": "f1", "rte": "accuracy"}
LINES = {"cola": 0.0, "mrpc": 0.8122, "rte": 0.527}
LEVELS = {"cola": 0.6, "mrpc": 0.9, "rte": 0.7}
SPREADS = {"devlin": 0.05, "bias_correction": 0.03, "mosbach": 0.012, "cwgnc": 0.008}


def run_record(run: str, score: float, **changes) -> dict:
    """The line of a finished run; its name is task/method/lr=…/max_norm=…/seed=…"""
    task, method, *rest = run.split("/")
    rate, max_norm, seed = (part.partition("=")[2] for part in rest)
    metric = METRICS[task]
    return {
        "kind": "run",
        "run": run,
        "task": task,
        "metric": metric,
        "method": method,
        "learning_rate": float(rate),
        "max_norm": "inf" if max_norm == "inf" else float(max_norm),
        "seed": int(seed),
        "data_seed": int(seed),
        "epochs": 5,
        "batch_size": 16,
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "components": "by_parameter" if method == "cwgnc" else "global",
        "eps": 1e-6 if method == "devlin" else 1e-8,
        "bias_correction": method != "devlin",
        "steps": 200,
        "train_examples": 640,
        "scores": {"validation": {metric: score}},
        "majority_line": {"validation": {metric: LINES[task]}},
        "failed": False,
        "collapsed": False,
        "diverged_at_step": None,
        "seconds": 12.5,
        "runs_per_program": 4,
        "device": "cpu, 2 cores",
        "versions": {"jax": "0.10.2", "numpy": "2.4.6", "optax": "0.2.8"},
        "finished_at": "2026-01-01T00:00:00Z",
        **changes,
    }


def with_holdout(record: dict, score: float) -> dict:
    """The same run with a score on the holdout."""
    for name, value in (("scores", score), ("majority_line", LINES[record["task"]])):
        record[name] = {**record[name], "holdout": {record["metric"]: value}}
    return record


def write_study(workdir: Path, records: Sequence[dict], **config) -> Path:
    """Writes a study's folder."""
    workdir.mkdir(parents=True, exist_ok=True)
    config = {
        "model": "models/bert-tiny",
        "max_length": 128,
        "dtype": "float32",
    } | config
    (workdir / "study.json").write_text(json.dumps(config))
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (workdir / "records.jsonl").write_text(lines)
    return workdir


def demo_records(
    tasks: Sequence[str] = ("cola", "mrpc"),
    methods: Sequence[str] = ("devlin", "bias_correction", "cwgnc"),
    rates: Sequence[float] = (2e-5, 5e-5),
    thresholds: Sequence[float] = (0.05, 1.0, math.inf),
    seeds: int = 6,
    holdout: bool = True,
) -> list[dict]:
    """Records of a study: methods that spread and fail less the later they stand."""
    rng = np.random.default_rng(0)
    records: list[dict] = [{"kind": "layout", "programs": 3}]
    for task in tasks:
        for method in methods:
            for rate in rates:
                for norm in thresholds if method == "cwgnc" else (1.0,):
                    for seed in range(1, seeds + 1):
                        run = (
                            f"{task}/{method}/lr={rate:g}/max_norm={norm:g}/seed={seed}"
                        )
                        records += _one_run(rng, run, method, rate, norm, holdout)
    return records


def _one_run(rng, run, method, rate, norm, holdout):
    task = run.partition("/")[0]
    # A loose clip is no clip.
    spread = SPREADS[method if norm < 1 or method != "cwgnc" else "bias_correction"]
    failed = rng.random() < 6 * spread - 0.1
    line, metric = LINES[task], METRICS[task]
    level = LEVELS[task] - 300 * abs(rate - 2e-5) + rng.normal(0, spread)
    final = line if failed else level
    records = []
    for step in range(20, 201, 20):
        progress = 0.05 if failed else 1 - math.exp(-step / 60)
        noise = rng.normal(0, 0.02)
        rates = [min(1, 0.03 / norm) * (1 - 0.5 * progress) + abs(noise), 0.0]
        rates[1] = rates[0] ** 0.5 if math.isfinite(norm) else 0.0
        records.append(
            {
                "kind": "metrics",
                "run": run,
                "step": step,
                "loss": 0.7 - 0.5 * progress + noise,
                "learning_rate": rate * (1 - step / 200),
                "grad_norm": 1 + abs(noise),
                "clip_rate_components": rates[0] if math.isfinite(norm) else 0.0,
                "clip_rate_elements": rates[1],
            }
        )
        if step % 40 == 0:
            value = line + (final - line) * progress / (1 - math.exp(-200 / 60))
            value = final if step == 200 or failed else value + noise / 3
            records.append(
                {
                    "kind": "evaluation",
                    "run": run,
                    "step": step,
                    "split": "validation",
                    "scores": {metric: value},
                    "collapsed": failed,
                }
            )
    diverged = 120 if failed and rng.random() < 0.3 else None
    record = run_record(run, final, collapsed=failed, diverged_at_step=diverged)
    if holdout:
        record = with_holdout(record, final + rng.normal(0, 0.005))
    return [*records, record]


@pytest.fixture(scope="session")
def demo_study(tmp_path_factory) -> Path:
    """The folder of a study of two tasks, three methods, and three thresholds."""
    return write_study(
        tmp_path_factory.mktemp("demo"), demo_records(), holdout=0.1, epochs=5
    )
