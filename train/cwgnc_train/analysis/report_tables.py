"""Tables of a study, as numbers and as people read them."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cwgnc_train.analysis.cells import CELL, cells_of, of_cell
from cwgnc_train.analysis.labels import (
    NOTHING,
    format_mean_std,
    format_rate,
    format_score,
    method_label,
    metric_label,
    task_label,
    threshold_label,
)
from cwgnc_train.analysis.study_records import StudyRecords


@dataclasses.dataclass(frozen=True)
class ReportTable:
    """A table and the name of its files."""

    name: str
    title: str
    data: pd.DataFrame
    """Unrounded numbers, scores not times 100, for the CSV file."""
    shown: pd.DataFrame
    """The same as text, for the Markdown file and the report."""
    note: str = ""
    """What a reader needs to know."""
    marks: tuple[str, ...] = ()
    """The kind of each row: "paper", "chosen" or nothing."""

    def write(self, folder: Path) -> list[Path]:
        """Writes the CSV and the Markdown file; returns their paths."""
        paths = [folder / f"{self.name}.{kind}" for kind in ("csv", "md")]
        self.data.to_csv(paths[0], index=False)
        lines = [f"**{self.title}**", "", _markdown_row(self.shown.columns)]
        lines.append(_markdown_row("---" for _ in self.shown.columns))
        lines += [_markdown_row(row) for row in self.shown.itertuples(index=False)]
        lines += ["", self.note]
        paths[1].write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
        return paths


def task_table(study: StudyRecords) -> ReportTable:
    """Makes the table of the tasks, their metrics and failure lines."""
    keys = ["task", "metric", "judged", "line", "train_examples"]
    data = study.runs.loc[:, keys].drop_duplicates()
    return make_table(
        "tasks",
        "Tasks",
        data.to_dict("records"),
        {
            "Task": lambda row: task_label(row["task"]),
            "Score": lambda row: metric_label(row["metric"]),
            "Split": lambda row: row["judged"].replace("_", " "),
            "Failure line": lambda row: format_score(row["line"]),
            "Training examples": lambda row: _plain(row["train_examples"]),
        },
    )


def protocol_table(study: StudyRecords) -> ReportTable:
    """Makes the table of how each method was trained."""
    columns = {
        "epochs": "Epochs",
        "batch_size": "Batch",
        "learning_rate": "Learning rates",
        "max_norm": "Thresholds",
        "warmup_ratio": "Warm-up",
        "weight_decay": "Weight decay",
        "bias_correction": "Bias correction",
        "eps": "Adam's eps",
        "components": "Components",
        "clip": "Clip",
    }
    pairs = zip(study.runs["epochs"], study.runs["iterations"], strict=True)
    norms = zip(study.runs["max_norm"], study.runs["clip"], strict=True)
    runs = study.runs.assign(
        epochs=[f"{n} × {_plain(each)}" if n > 1 else each for each, n in pairs],
        max_norm=[threshold_label(norm, clip) for norm, clip in norms],
    )
    spell = {"learning_rate": format_rate, "eps": format_rate}
    rows = []
    for method, group in runs.groupby("method", sort=False):
        row = {
            name: ", ".join(map(spell.get(name, _plain), group[name].drop_duplicates()))
            for name in columns
        }
        rows.append({"method": method} | row)

    def pick(name):
        return lambda row: row[name]

    shown = {title: pick(name) for name, title in columns.items()}
    return make_table(
        "protocol",
        "Protocol",
        rows,
        {"Method": lambda row: method_label(row["method"])} | shown,
    )


def selection_table(cells: pd.DataFrame) -> ReportTable:
    """Makes the table of holdout scores, with the chosen cells marked."""

    def chosen(row):
        return "chosen" if row["chosen"] else ""

    return make_table(
        "selection",
        "Scores × 100 on the holdout",
        cells.drop(columns=["open", "planned"]).to_dict("records"),
        {
            **CELL_COLUMNS,
            "Runs": lambda row: str(row["runs"]),
            "Mean ± std": lambda row: format_mean_std(
                row["holdout_mean"], row["holdout_std"]
            ),
            "Chosen": chosen,
        },
        mark=chosen,
    )


def clip_table(study: StudyRecords) -> ReportTable:
    """Makes the table of how much was clipped over all steps of a run."""
    rows = []
    for cell in cells_of(study.runs):
        frame = of_cell(study.metrics, cell).sort_values(["run", "step"])
        if frame.empty or not cell.clips:
            continue
        # Each record is a mean over the steps since the previous one.
        steps = frame.groupby("run")["step"].diff().fillna(frame["step"])
        row = cell._asdict() | {"runs": frame["run"].nunique()}
        for name in ("components", "elements"):
            rates = frame[f"clip_rate_{name}"]
            sums = pd.DataFrame(
                {"run": frame["run"], "clipped": rates * steps, "steps": steps}
            )
            sums = sums.groupby("run").agg("sum")
            of_run = sums["clipped"] / sums["steps"]
            row |= {f"{name}_mean": of_run.mean(), f"{name}_std": of_run.std(ddof=0)}
        rows.append(row)

    def percent(name):
        return lambda row: format_mean_std(row[f"{name}_mean"], row[f"{name}_std"])

    return make_table(
        "clip_rates",
        "How much was clipped, in percent",
        rows,
        {
            **CELL_COLUMNS,
            "Runs": lambda row: str(row["runs"]),
            "Components": percent("components"),
            "Elements": percent("elements"),
        },
        "Components: the share of components whose norm was reduced. Elements: the "
        "share of gradient elements in those components. Both are averaged over the "
        "steps of each run and shown as mean ± std over the runs. Where everything is "
        "one component, both are the share of steps that were clipped.",
    )


def failure_table(study: StudyRecords) -> ReportTable:
    """Makes the table of failed, collapsed and diverged runs.

    The data has one row per run, and what is shown has one row per cell.
    """
    ended = ["diverged_at_step", "gave_up_at_step"]
    runs = study.runs
    runs = runs.loc[
        runs["failed"] | runs["collapsed"] | runs[ended].notna().any(axis=1)
    ]
    keys = [*CELL, "seed", "data_seed", "metric", "score", "line"]
    keys += ["failed", "collapsed", *ended]

    def seeds(frame, remarks):
        pairs = zip(frame["seed"], frame["data_seed"], remarks, strict=True)
        texts = [
            f"{seed}{remark}" if data == seed else f"{seed}/{data}{remark}"
            for seed, data, remark in pairs
        ]
        return ", ".join(texts) or NOTHING

    def at_step(frame, name):
        frame = frame[frame[name].notna()]
        return seeds(frame, [f" ({step:g})" for step in frame[name]])

    shown = []
    for cell in cells_of(runs):
        frame = of_cell(runs, cell)
        failed, collapsed = frame[frame["failed"]], frame[frame["collapsed"]]
        scores = [f" ({format_score(score)})" for score in failed["score"]]
        shown.append(
            {title: show(cell._asdict()) for title, show in CELL_COLUMNS.items()}
            | {
                "Failed: seed (score)": seeds(failed, scores),
                "Collapsed: seed": seeds(collapsed, [""] * len(collapsed)),
                "Diverged: seed (at step)": at_step(frame, "diverged_at_step"),
                "Given up: seed (at step)": at_step(frame, "gave_up_at_step"),
            }
        )
    return ReportTable(
        "failures",
        "Failed, collapsed and diverged runs",
        runs[keys],
        pd.DataFrame(shown),
        "Where data order and dropout have a seed of their own, it follows after a "
        "slash.",
    )


def make_table(
    name: str,
    title: str,
    rows: list[dict],
    columns: dict[str, Callable[[Any], str]],
    note: str = "",
    mark: Callable[[Any], str] = lambda row: "",
) -> ReportTable:
    """Makes a table from rows of numbers.

    Args:
      name: The name of its files.
      title: Its heading.
      rows: The numbers.
      columns: What is shown: for each heading, a function from a row to text.
      note: What a reader needs to know.
      mark: Returns the kind of a row; see ``ReportTable.marks``.

    Returns:
      The table.
    """
    shown = [{title: show(row) for title, show in columns.items()} for row in rows]
    return ReportTable(
        name,
        title,
        pd.DataFrame(rows),
        pd.DataFrame(shown, columns=list(columns)),
        note,
        tuple(mark(row) for row in rows),
    )


def _or_nothing(write, value, *details):
    return NOTHING if math.isnan(value) else write(value, *details)


CELL_COLUMNS: dict[str, Callable[[Any], str]] = {
    "Task": lambda row: task_label(row["task"]),
    "Method": lambda row: method_label(row["method"]),
    "Learning rate": lambda row: _or_nothing(format_rate, row["learning_rate"]),
    "Threshold": lambda row: _or_nothing(threshold_label, row["max_norm"], row["clip"]),
}
"""The columns that identify a cell, for ``make_table``."""


def _plain(value):
    if pd.isna(value):
        return NOTHING
    if isinstance(value, (bool, np.bool_)):
        return "on" if value else "off"
    if isinstance(value, (int, float)):
        return f"{value:,.12g}"
    return str(value).replace("_", " ")


def _markdown_row(values):
    return f"| {' | '.join(map(_markdown_cell, values))} |"


def _markdown_cell(value):
    text = str(value).replace("|", "&#124;")
    # Only where it could start a tag; "<0.001" stays.
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)
