"""The records of a folder of runs, read back."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pandas as pd

from cwgnc_train.analysis.cells import CELL
from cwgnc_train.analysis.labels import method_rank
from cwgnc_train.analysis.record_fields import (
    count_field,
    finite_or_nan,
    naming_line,
    number_field,
    optional_field,
    text_field,
)
from cwgnc_train.config import UserError
from cwgnc_train.records import parse_lines, read_json_object

# The constants of the torch version. The one for MRPC is below the score of a run that
# always answers "equivalent", so such a run does not count as failed.
LEGACY_LINES = {
    ("rte", "accuracy"): 0.53,
    ("cola", "matthews_correlation"): 0.0,
    ("mrpc", "f1"): 0.75,
    ("qnli", "accuracy"): 0.5,
}


@dataclasses.dataclass(frozen=True)
class StudyRecords:
    """The finished runs of a folder, which ``finetune`` or a study wrote."""

    settings: dict[str, Any]
    """The content of ``study.json``; not every command has the same settings."""
    runs: pd.DataFrame
    """One row per finished run, in the order of the tables: its cell, seeds, score,
    holdout score, failure line, whether it failed, and other fields of its record."""
    evaluations: pd.DataFrame
    """The scores of finished runs over time: cell, run, step, score."""
    metrics: pd.DataFrame
    """The losses and clip rates of finished runs over time: cell, run, step and one
    column each."""
    unfinished: int
    """The number of runs that have started but not finished. They are left out of
    everything else."""
    legacy_lines: bool
    """Whether the constants of the torch version decide which runs failed."""

    @property
    def model(self) -> str:
        """The name of the model, without its parent folders."""
        path = Path(str(self.settings.get("model") or "unknown model"))
        # Fine-tuned models are all in folders called "model".
        return path.parent.name if path.name == "model" else path.name


def read_study(workdir: Path, legacy_lines: bool = False) -> StudyRecords:
    """Reads ``study.json`` and ``records.jsonl``.

    A run has failed if its final score is not above the failure line, if that score is
    NaN, or if the run was given up.

    Args:
      workdir: The folder of the records; runs may still be writing to it.
      legacy_lines: Use the constants of the torch version as failure lines, for the
        tasks that have one.

    Returns:
      The finished runs.

    Raises:
      UserError: If the folder has no records, no run has finished, or a record is
        damaged.
    """
    if not (workdir / "study.json").is_file():
        raise UserError(
            f"{workdir} has no study.json, so it is not the --workdir of a study or of "
            f"finetune; name the folder that they wrote to"
        )
    settings = read_json_object(workdir / "study.json", "the settings of its runs")
    path = workdir / "records.jsonl"
    rows = _read_rows(path)
    started = {row["run"] for of_kind in rows.values() for row in of_kind}
    if not rows["run"]:
        raise UserError(
            f"no run in {workdir} has finished yet ({len(started)} started); wait for "
            f"the first one"
        )
    runs = _judge(pd.DataFrame(rows["run"]), legacy_lines)
    twice = runs["run"][runs["run"].duplicated()]
    if len(twice):
        raise UserError(
            f"{path}: run {twice.iloc[0]} finished twice; remove one of its two lines "
            f"of kind run"
        )
    return StudyRecords(
        settings=settings,
        runs=runs,
        evaluations=_evaluations(rows["evaluation"], runs),
        metrics=_courses(rows["metrics"], _CURVES, runs),
        unfinished=len(started - set(runs["run"])),
        legacy_lines=legacy_lines,
    )


def _read_rows(path):
    rows: dict[str, list[dict]] = {kind: [] for kind in _ROWS}
    content = path.read_bytes() if path.exists() else b""
    # The rest, behind the last newline, is still being written.
    records = parse_lines(path, content[: content.rfind(b"\n") + 1])
    for number, record in enumerate(records, 1):
        kind = record.get("kind")
        with naming_line(path, number, kind):
            if kind in _ROWS:
                rows[kind].append(_ROWS[kind](record))
    return rows


def _run_row(record):
    scores, metric = record["scores"], text_field(record, "metric")
    judged, holdout = text_field(record, "judged"), scores.get("holdout")
    return {
        **{name: optional_field(record, name, int) for name in _COUNTS},
        **{name: optional_field(record, name, int, float) for name in _NUMBERS},
        **{name: optional_field(record, name, bool) for name in _FLAGS},
        **{name: optional_field(record, name, str) for name in _TEXTS},
        **{
            name: text_field(record, name) for name in ("run", "task", "method", "clip")
        },
        "metric": metric,
        "judged": judged,
        "versions": optional_field(record, "versions", dict),
        "learning_rate": number_field(record, "learning_rate"),
        "max_norm": number_field(record, "max_norm"),
        "seed": count_field(record, "seed"),
        "data_seed": count_field(record, "data_seed"),
        "score": finite_or_nan(scores[judged][metric]),
        "line": number_field(record["majority_line"][judged], metric),
        # Choosing by the scores that are reported would flatter the choice.
        "has_holdout": bool(holdout) and judged != "holdout",
        "holdout_score": finite_or_nan(holdout[metric]) if holdout else math.nan,
        "collapsed": bool(record.get("collapsed")),
        "iterations": optional_field(record, "iterations", int) or 1,
        "seconds": optional_field(record, "seconds", int, float) or 0,
    }


def _evaluation_row(record):
    scores = record["scores"].items()
    return {
        "run": text_field(record, "run"),
        "step": count_field(record, "step"),
        "split": text_field(record, "split"),
        "scores": {name: finite_or_nan(score) for name, score in scores},
    }


def _metrics_row(record):
    return {
        "run": text_field(record, "run"),
        "step": count_field(record, "step"),
        **{name: finite_or_nan(record.get(name, "nan")) for name in _CURVES},
    }


_COUNTS = (
    "diverged_at_step gave_up_at_step epochs batch_size steps train_examples "
    "runs_per_program"
).split()
_NUMBERS = ("warmup_ratio", "weight_decay", "eps")
_FLAGS = ("bias_correction", "model_saved")
_TEXTS = ("components", "device", "unfreezing")
_CURVES = ("loss", "clip_rate_components", "clip_rate_elements")
_ROWS = {"run": _run_row, "evaluation": _evaluation_row, "metrics": _metrics_row}


def _judge(runs, legacy_lines):
    if legacy_lines:
        keys = zip(runs["task"], runs["metric"], runs["line"], strict=True)
        runs["line"] = [
            LEGACY_LINES.get((task, name), line) for task, name, line in keys
        ]
    # Not "score <= line", which is false for a NaN.
    runs["failed"] = ~(runs["score"] > runs["line"]) | runs["gave_up_at_step"].notna()
    tasks = list(dict.fromkeys(runs["task"]))
    order = runs.assign(
        task=runs["task"].map(tasks.index), method=runs["method"].map(method_rank)
    ).sort_values([*CELL, "seed", "data_seed"])
    return runs.loc[order.index].reset_index(drop=True)


def _evaluations(rows, runs):
    frame = _courses(rows, ["split", "scores"], runs)
    frame = frame[frame["split"] == frame["judged"]]
    pairs = zip(frame["scores"], frame["metric"], strict=True)
    return frame.assign(score=[scores.get(name, math.nan) for scores, name in pairs])


def _courses(rows, columns, runs):
    frame = pd.DataFrame(rows, columns=["run", "step", *columns])
    # A run that was interrupted and resumed may have recorded a step twice.
    keys = [name for name in ("run", "step", "split") if name in frame]
    frame = frame.drop_duplicates(keys, keep="last")
    return frame.merge(runs[[*CELL, "run", "metric", "judged"]], on="run")
