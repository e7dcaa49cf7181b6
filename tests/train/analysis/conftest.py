"""Made-up records, in the format that the engine writes."""

import html.parser
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cwgnc_train.records import plain

METRICS = {"cola": "matthews_correlation", "mrpc": "f1", "rte": "accuracy"}
LINES = {"cola": 0.0, "mrpc": 0.8122, "rte": 0.527}
LEVELS = {"cola": 0.6, "mrpc": 0.9, "rte": 0.7}
SPREADS = {"devlin": 0.05, "bias_correction": 0.03, "mosbach": 0.012, "cwgnc": 0.008}


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.tags, self.rows, self.open = [], [], {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.row = dict(attrs).get("class") or ""
            self.rows.setdefault(self.row, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "tr" in self.open:
            self.rows[self.row][-1] += f" {data}"


def table(report, name):
    return pd.read_csv(report.parent / "tables" / f"{name}.csv")


def run_record(run: str, score: float, **changes) -> dict:
    """Makes the line of a finished run task/method/lr=…/max_norm=…/seed=…"""
    task, method, *rest = run.split("/")
    rate, max_norm, seed = (part.partition("=")[2] for part in rest)
    metric = METRICS[task]
    return {
        "kind": "run",
        "run": run,
        "task": task,
        "metric": metric,
        "judged": "validation",
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
        "clip": method if method in ("adagc", "zclip") else "fixed",
        "eps": 1e-6 if method == "devlin" else 1e-8,
        "bias_correction": method != "devlin",
        "steps": 200,
        "train_examples": 640,
        "scores": {"validation": {metric: score}},
        "majority_line": {"validation": {metric: LINES[task]}},
        "failed": False,
        "collapsed": False,
        "diverged_at_step": None,
        "gave_up_at_step": None,
        "model_saved": False,
        "seconds": 12.5,
        "runs_per_program": 4,
        "device": "cpu, 2 cores",
        "versions": {"jax": "0.10.2", "numpy": "2.4.6", "optax": "0.2.8"},
        "finished_at": "2026-01-01T00:00:00Z",
        **changes,
    }


def with_holdout(record: dict, score: float) -> dict:
    """Adds a score on the holdout to the line of a run."""
    for name, value in (("scores", score), ("majority_line", LINES[record["task"]])):
        record[name] = {**record[name], "holdout": {record["metric"]: value}}
    return record


def write_study(workdir: Path, records: Sequence[dict], **config) -> Path:
    """Writes the folder of a study; returns it."""
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
    """Makes the records of a study whose later methods vary and fail less."""
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


def component_names(layers: int) -> list[str]:
    """Lists the components of a BERT, sorted as its parameters are."""
    modules = {
        "attention/self/query": ("kernel", "bias"),
        "attention/self/key": ("kernel", "bias"),
        "attention/self/value": ("kernel", "bias"),
        "attention/output/dense": ("kernel", "bias"),
        "attention/output/LayerNorm": ("scale", "bias"),
        "intermediate/dense": ("kernel", "bias"),
        "output/dense": ("kernel", "bias"),
        "output/LayerNorm": ("scale", "bias"),
    }
    names = [
        f"bert/encoder/layer/{layer}/{module}/{leaf}"
        for layer in range(layers)
        for module, leaves in modules.items()
        for leaf in leaves
    ]
    for kind in ("word", "position", "token_type"):
        names.append(f"bert/embeddings/{kind}_embeddings/embedding")
    names += [f"bert/embeddings/LayerNorm/{leaf}" for leaf in ("scale", "bias")]
    names += [f"bert/pooler/dense/{leaf}" for leaf in ("kernel", "bias")]
    return sorted([*names, "classifier/kernel", "classifier/bias"])


def components_record(run: str, step: int, rmsd: Sequence[float], **changes) -> dict:
    """Makes the line of one measurement; the default follows from the distances."""
    rmsd = list(map(float, rmsd))
    columns = {
        "rmsd": rmsd,
        "cosine": [1 - 1e3 * value**2 for value in rmsd],
        "grad_norm": [0.1] * len(rmsd),
        "param_norm": [10 + value for value in rmsd],
    }
    columns |= {name: list(map(float, value)) for name, value in changes.items()}
    return plain({"kind": "components", "run": run, "step": step} | columns)


def write_components(
    workdir: Path, names: Sequence[str], records: Sequence[dict]
) -> Path:
    """Writes the statistics of the components into a folder; returns it."""
    first = {"kind": "names", "task": "rte", "by": "by_parameter"}
    first["components"] = list(names)
    lines = "".join(json.dumps(record) + "\n" for record in [first, *records])
    (workdir / "components.jsonl").write_text(lines)
    return workdir


# One of each kind that is treated differently.
FEW = (
    "word_embeddings",
    "self/query/kernel",
    "self/key/kernel",
    "self/key/bias",
    "output/LayerNorm/scale",
    "classifier/kernel",
)


def measured_run(
    run: str,
    names: Sequence[str],
    layers: int,
    failed: bool = False,
    steps: int = 200,
    every: int = 20,
    iterations: int = 1,
    **changes,
) -> tuple[list[dict], list[dict]]:
    """Makes the records of a finished run, and those of its components.

    In a failed run the top layers run ahead and gradients vanish after a peak.
    """
    task, method = run.split("/")[:2]
    rng = np.random.default_rng(list(run.encode()))
    size, restart = len(names), method.startswith("gu_restart")
    depth = np.array([_depth(name, layers) for name in names])
    key = np.array([name.endswith("key/bias") for name in names])
    base = np.exp(rng.normal(0, 0.15, size)) * np.array(
        [0.3 if name.endswith("bias") else 1.0 for name in names]
    )
    speed = 0.25 + (0.75 if failed else 0.15) * (1 - depth / (layers + 1))
    speed *= np.exp((0.4 if failed else 0.1) * rng.normal(size=size))
    each, line = steps // iterations, LINES[task]
    level = LEVELS[task] + rng.normal(0, 0.01)
    lines, records, done = [], [], np.zeros(size)
    for iteration in range(1, iterations + 1):
        thawed = depth > layers - iteration if iterations > 1 else depth >= 0
        thawed |= iteration == layers
        start = np.zeros(size) if restart else done
        for step in sorted({*range(1, each + 1, every), each}):
            share = 1 - np.exp(-step / (each * speed))
            moved = 1e-3 * base * share * (1 - 0.6 * done / (done.max() + 1e-9))
            rmsd = np.where(thawed, start + moved * np.where(key, 1e-4, 1), start)
            fall = 30 * np.exp(-8 * step / each) if failed else 1 + step / each
            grad = 0.05 * base * fall * np.exp((0.35 if failed else 0.05) * depth)
            grad = grad * np.exp(rng.normal(0, 0.2, size)) * np.where(key, 1e-8, 1)
            number = (iteration - 1) * each + step
            lines.append(
                components_record(
                    run,
                    number,
                    rmsd,
                    grad_norm=np.where(thawed, grad, 0),
                    param_norm=20 * base + 40 * rmsd,
                    cosine=1 - 2e3 * rmsd**2,
                )
            )
        done = rmsd
        part = (iteration if restart else iteration**0.4) / iterations
        score = line if failed else line + (level - line) * min(1, part)
        scores = {METRICS[task]: score + rng.normal(0, 0.002) * (not failed)}
        records.append(
            {"kind": "evaluation", "run": run, "step": iteration * each}
            | {"split": "validation", "scores": scores, "collapsed": failed}
        )
    # After gu comes how its iterations go on: gu_state is carry_state.
    kind = "restart" if restart else f"carry{method.removeprefix('gu')}"
    unfreezing = kind if iterations > 1 else None
    changes = {
        "steps": each * iterations,
        "iterations": iterations,
        "epochs": 3,
        "unfreezing": unfreezing,
    } | changes
    last = run_record(run, scores[METRICS[task]], **changes)
    return [*records, last], lines


def _depth(name, layers):
    if "/layer/" in name:
        return int(name.split("/layer/")[1].split("/")[0]) + 1
    return 0 if "embeddings" in name else layers + 1


def measured_study(
    workdir: Path,
    cells: dict[str, tuple[int, int]],
    layers: int = 2,
    few: bool = True,
    **options,
) -> Path:
    """Writes a study whose components are measured; returns its folder.

    Args:
      workdir: Where to write.
      cells: By the cell's name, the numbers of its failed and successful runs.
      layers: The layers of the model; also the iterations of gradual unfreezing.
      few: Measure only a few components, which are faster to draw.
      **options: Goes to ``measured_run``.
    """
    records, lines, names = [], [], component_names(layers)
    if few:
        names = [name for name in names if name.endswith(FEW) or FEW[0] in name]
    for cell, (failed, succeeded) in cells.items():
        unfreezing = cell.split("/")[1].startswith("gu")
        iterations = {"iterations": layers} if unfreezing else {}
        for seed in range(failed + succeeded):
            run = f"{cell}/seed={seed}"
            parts = measured_run(
                run, names, layers, seed < failed, **iterations, **options
            )
            records += parts[0]
            lines += parts[1]
    write_study(workdir, records)
    return write_components(workdir, names, lines)


@pytest.fixture(scope="session")
def demo_study(tmp_path_factory) -> Path:
    """The folder of a study of two tasks, three methods and three thresholds."""
    return write_study(
        tmp_path_factory.mktemp("demo"), demo_records(), holdout=0.1, epochs=5
    )
