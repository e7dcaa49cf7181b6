"""A study read back from its records."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd

from train.analysis.cells import CELL
from train.analysis.labels import method_rank
from train.records import parse_lines

# The constants of the torch version. That of MRPC is below the score of a run that
# answers "equivalent" always, so that such runs pass for successes.
LEGACY_LINES = {
    ("rte", "accuracy"): 0.53,
    ("cola", "matthews_correlation"): 0.0,
    ("mrpc", "f1"): 0.75,
    ("qnli", "accuracy"): 0.5,
}


@dataclasses.dataclass(frozen=True)
class Study:
    """The finished runs of a study."""

    config: dict[str, Any]
    """The settings all runs share, from ``study.json``."""
    runs: pd.DataFrame
    """A row a finished run, in the order of the tables: its cell, seed, score, holdout
    score, line, whether it failed, and what its record says else."""
    evaluations: pd.DataFrame
    """The validation scores of finished runs over time: cell, run, step, score."""
    metrics: pd.DataFrame
    """The loss and clip rates of finished runs over time: cell, run, step, …"""
    unfinished: int
    """How many runs have begun and are not finished; nothing else counts them."""
    legacy_lines: bool
    """Whether runs are judged by the torch version's constants."""

    @property
    def model(self) -> str:
        """The name of the model, without its folders."""
        path = Path(str(self.config.get("model") or "unknown model"))
        # Every run's own folder has that name.
        return path.parent.name if path.name == "model" else path.name


def read_study(workdir: Path, legacy_lines: bool = False) -> Study:
    """Reads ``study.json`` and ``records.jsonl``.

    A run has failed if its score is not above the majority line of its validation
    split; a score that is not a number never is.

    Args:
      workdir: The study's folder; it may still be written to.
      legacy_lines: Judge runs by the constants of the torch version where it has one.

    Returns:
      The study.

    Raises:
      FileNotFoundError: If there is no study in the folder.
      ValueError: If no run is finished, or a record is damaged.
    """
    if not (workdir / "study.json").is_file():
        raise FileNotFoundError(
            f"{workdir} holds no study: there is no study.json; name the folder that "
            f"the study was told to write to"
        )
    try:
        config = dict(json.loads((workdir / "study.json").read_bytes()))
    except (TypeError, ValueError):
        raise ValueError(
            f"{workdir / 'study.json'} is damaged: expected the study's settings; "
            f"restore it"
        ) from None
    records = workdir / "records.jsonl"
    rows = _read_rows(records)
    begun = {row["run"] for kind in rows.values() for row in kind}
    if not rows["run"]:
        raise ValueError(
            f"no run of {workdir} is finished yet ({len(begun)} begun); wait for the "
            f"first one"
        )
    runs = _judge(pd.DataFrame(rows["run"]), legacy_lines)
    twice = runs["run"][runs["run"].duplicated()]
    if len(twice):
        raise ValueError(
            f"{records}: run {twice.iloc[0]} is finished twice; remove one of its two "
            f"lines of kind run"
        )
    return Study(
        config=config,
        runs=runs,
        evaluations=_evaluations(rows["evaluation"], runs),
        metrics=_courses(rows["metrics"], _SERIES, runs),
        unfinished=len(begun - set(runs["run"])),
        legacy_lines=legacy_lines,
    )


def _read_rows(path):
    rows: dict[str, list[dict]] = {kind: [] for kind in _ROWS}
    content = path.read_bytes() if path.exists() else b""
    # What follows the last newline is being written just now.
    records = parse_lines(path, content[: content.rfind(b"\n") + 1])
    for number, record in enumerate(records, 1):
        kind = record.get("kind")
        try:
            if kind in _ROWS:
                rows[kind].append(_ROWS[kind](record))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = "lacks" if isinstance(error, KeyError) else "is wrong:"
            raise ValueError(
                f"{path}, line {number}: the record of kind {kind} {what} {error}; "
                f"restore the line"
            ) from None
    return rows


def _finite(value):
    # In a mean over runs an infinite loss would hide all others; NaN is left out.
    value = float(value)
    return value if math.isfinite(value) else math.nan


# Control characters and halves of surrogate pairs, which no file of a figure can hold.
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def _name(record, field):
    name = record[field]
    if not isinstance(name, str) or _UNWRITABLE.search(name):
        raise ValueError(f"{field} must be a line of text, got {name!r:.60}")
    return name


def _run_row(record):
    splits = [name for name in record["scores"] if name.startswith("validation")]
    if not splits:
        raise KeyError("scores of a validation split")
    split = splits[0]
    metric, holdout = record["metric"], record["scores"].get("holdout")
    max_norm = record["max_norm"]
    return {
        **{name: record.get(name) for name in _OPTIONAL},
        **{name: _name(record, name) for name in ("run", "task", "method", "metric")},
        "learning_rate": float(record["learning_rate"]),
        "max_norm": math.inf if max_norm is None else float(max_norm),
        "seed": int(record["seed"]),
        "data_seed": int(record.get("data_seed", record["seed"])),
        "main_split": split,
        "score": float(record["scores"][split][metric]),
        "line": float(record["majority_line"][split][metric]),
        "has_holdout": bool(holdout),
        "holdout_score": float(holdout[metric]) if holdout else math.nan,
        "collapsed": bool(record.get("collapsed")),
        "iterations": int(record.get("iterations") or 1),
        "seconds": float(record.get("seconds") or 0),
    }


_OPTIONAL = (
    "diverged_at_step epochs batch_size warmup_ratio weight_decay components clip "
    "eps bias_correction steps train_examples runs_per_program device versions "
    "unfreezing"
).split()
_SERIES = ("loss", "clip_rate_components", "clip_rate_elements")
_ROWS = {
    "run": _run_row,
    "evaluation": lambda record: {
        "run": _name(record, "run"),
        **{name: record[name] for name in ("step", "split")},
        "scores": {name: _finite(score) for name, score in record["scores"].items()},
    },
    "metrics": lambda record: {
        "run": _name(record, "run"),
        "step": record["step"],
        **{name: _finite(record.get(name, "nan")) for name in _SERIES},
    },
}


def _judge(runs, legacy_lines):
    if legacy_lines:
        keys = zip(runs["task"], runs["metric"], runs["line"], strict=True)
        runs["line"] = [
            LEGACY_LINES.get((task, name), line) for task, name, line in keys
        ]
    # Not "score <= line", which a score that is not a number would pass.
    runs["failed"] = ~(runs["score"] > runs["line"])
    tasks = list(dict.fromkeys(runs["task"]))
    order = runs.assign(
        task=runs["task"].map(tasks.index), method=runs["method"].map(method_rank)
    ).sort_values([*CELL, "seed", "data_seed"])
    return runs.loc[order.index].reset_index(drop=True)


def _evaluations(rows, runs):
    frame = _courses(rows, ["split", "scores"], runs)
    frame = frame[frame["split"] == frame["main_split"]]
    pairs = zip(frame["scores"], frame["metric"], strict=True)
    return frame.assign(score=[scores.get(name, math.nan) for scores, name in pairs])


def _courses(rows, columns, runs):
    frame = pd.DataFrame(rows, columns=["run", "step", *columns])
    # A run that was interrupted and taken up again writes some steps twice.
    keys = [name for name in ("run", "step", "split") if name in frame]
    frame = frame.drop_duplicates(keys, keep="last")
    return frame.merge(runs[[*CELL, "run", "metric", "main_split"]], on="run")
