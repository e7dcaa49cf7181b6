"""The tables of a study, as numbers and as people read them."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from train.analysis.cells import CELL, cells_of, of_cell
from train.analysis.labels import (
    NOTHING,
    cell_threshold,
    clips,
    hundredfold,
    mean_std,
    method_label,
    metric_label,
    rate,
    task_label,
)
from train.analysis.study import Study


@dataclasses.dataclass(frozen=True)
class Table:
    """A table under the name of its files."""

    name: str
    title: str
    data: pd.DataFrame
    """The numbers, unrounded and not times 100, for the CSV file."""
    shown: pd.DataFrame
    """The same as text, for the Markdown file and the report."""
    note: str = ""
    marks: tuple[str, ...] = ()
    """What kind of row each one is: paper, chosen or nothing."""

    def write(self, folder: Path) -> list[Path]:
        """Writes the CSV and the Markdown file."""
        paths = [folder / f"{self.name}.{kind}" for kind in ("csv", "md")]
        self.data.to_csv(paths[0], index=False)
        lines = [f"**{self.title}**", "", _markdown_row(self.shown.columns)]
        lines.append(_markdown_row("---" for _ in self.shown.columns))
        lines += [_markdown_row(row) for row in self.shown.itertuples(index=False)]
        lines += ["", self.note]
        paths[1].write_text("\n".join(lines).rstrip() + "\n")
        return paths


def task_table(study: Study) -> Table:
    """Makes the table of the tasks, their scores and majority lines."""
    keys = ["task", "metric", "main_split", "line", "train_examples"]
    data = study.runs[keys].drop_duplicates()
    return make_table(
        "tasks",
        "Tasks",
        data.to_dict("records"),
        {
            "Task": lambda row: task_label(row["task"]),
            "Score": lambda row: metric_label(row["metric"]),
            "Split": lambda row: row["main_split"].replace("_", " "),
            "Line of failure": lambda row: hundredfold(row["line"]),
            "Training examples": lambda row: _plain(row["train_examples"]),
        },
    )


def protocol_table(study: Study) -> Table:
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
    runs = study.runs.assign(
        epochs=[f"{n} × {_plain(each)}" if n > 1 else each for each, n in pairs]
    )
    rows = []
    for method, group in runs.groupby("method", sort=False):
        spell = {
            "learning_rate": rate,
            "max_norm": functools.partial(cell_threshold, method),
            "eps": rate,
        }
        row = {
            name: ", ".join(map(spell.get(name, _plain), group[name].drop_duplicates()))
            for name in columns
        }
        rows.append({"method": method} | row)
    pick = lambda name: lambda row: row[name]
    shown = {title: pick(name) for name, title in columns.items()}
    return make_table(
        "protocol",
        "Protocol",
        rows,
        {"Method": lambda row: method_label(row["method"])} | shown,
    )


def selection_table(cells: pd.DataFrame) -> Table:
    """Makes the table of the means on the holdout, the chosen cells marked."""
    return make_table(
        "selection",
        "Scores × 100 on the holdout",
        cells.drop(columns=["open", "planned"]).to_dict("records"),
        {
            **CELL_COLUMNS,
            "Runs": lambda row: str(row["runs"]),
            "Mean ± std": lambda row: mean_std(row["holdout_mean"], row["holdout_std"]),
            "Chosen": lambda row: "chosen" if row["chosen"] else "",
        },
        mark=lambda row: "chosen" if row["chosen"] else "",
    )


def clip_table(study: Study) -> Table:
    """Makes the table of what the clips reduced, over all steps of a run."""
    rows = []
    for cell in cells_of(study.runs):
        frame = of_cell(study.metrics, cell).sort_values(["run", "step"])
        if frame.empty or not clips(cell.method, cell.max_norm):
            continue
        # A record is the mean of the steps since the one before it.
        steps = frame.groupby("run")["step"].diff().fillna(frame["step"])
        row = cell._asdict() | {"runs": frame["run"].nunique()}
        for name in ("components", "elements"):
            rates = frame[f"clip_rate_{name}"]
            sums = pd.DataFrame(
                {"run": frame["run"], "clipped": rates * steps, "steps": steps}
            )
            sums = sums.groupby("run").sum()
            of_run = sums["clipped"] / sums["steps"]
            row |= {f"{name}_mean": of_run.mean(), f"{name}_std": of_run.std(ddof=0)}
        rows.append(row)

    def percent(name):
        return lambda row: mean_std(row[f"{name}_mean"], row[f"{name}_std"])

    return make_table(
        "clip_rates",
        "What was clipped, in percent",
        rows,
        {
            **CELL_COLUMNS,
            "Runs": lambda row: str(row["runs"]),
            "Components": percent("components"),
            "Elements": percent("elements"),
        },
        "The share of the components whose norm was reduced, and of all elements of "
        "the gradient that are in such components: the mean over the steps of a run, "
        "then mean ± std over the runs. Where everything is one component it is the "
        "share of the steps.",
    )


def failure_table(study: Study) -> Table:
    """Makes the list of failed, collapsed and diverged runs; shown is a row a cell."""
    diverged = study.runs["diverged_at_step"].notna()
    runs = study.runs[study.runs["failed"] | study.runs["collapsed"] | diverged]
    keys = [*CELL, "seed", "data_seed", "metric", "score", "line"]
    keys += ["failed", "collapsed", "diverged_at_step"]

    def seeds(frame, remarks):
        pairs = zip(frame["seed"], frame["data_seed"], remarks, strict=True)
        texts = [
            f"{seed}{remark}" if data == seed else f"{seed}/{data}{remark}"
            for seed, data, remark in pairs
        ]
        return ", ".join(texts) or NOTHING

    shown = []
    for cell in cells_of(runs):
        frame = of_cell(runs, cell)
        failed, collapsed = frame[frame["failed"]], frame[frame["collapsed"]]
        diverged = frame[frame["diverged_at_step"].notna()]
        scores = [f" ({hundredfold(score)})" for score in failed["score"]]
        steps = [f" ({step:g})" for step in diverged["diverged_at_step"]]
        shown.append(
            {title: show(cell._asdict()) for title, show in CELL_COLUMNS.items()}
            | {
                "Failed: seed (score)": seeds(failed, scores),
                "Collapsed: seed": seeds(collapsed, [""] * len(collapsed)),
                "Diverged: seed (at step)": seeds(diverged, steps),
            }
        )
    return Table(
        "failures",
        "Failed, collapsed and diverged runs",
        runs[keys],
        pd.DataFrame(shown),
        "Where the order of the data and the dropout have a seed of their own, it "
        "follows behind a stroke.",
    )


def make_table(
    name: str,
    title: str,
    rows: list[dict],
    columns: dict[str, Callable[[Any], str]],
    note: str = "",
    mark: Callable[[Any], str] = lambda row: "",
) -> Table:
    """Makes a table of rows of numbers.

    Args:
      name: The name of its files.
      title: Its heading.
      rows: The numbers.
      columns: What people see: by heading, the text made of a row.
      note: What must be known to read it.
      mark: Says what kind of row one is.

    Returns:
      The table.
    """
    shown = [{title: show(row) for title, show in columns.items()} for row in rows]
    return Table(
        name,
        title,
        pd.DataFrame(rows),
        pd.DataFrame(shown, columns=list(columns)),
        note,
        tuple(mark(row) for row in rows),
    )


def _or_nothing(write):
    return lambda value: NOTHING if math.isnan(value) else write(value)


CELL_COLUMNS: dict[str, Callable[[Any], str]] = {
    "Task": lambda row: task_label(row["task"]),
    "Method": lambda row: method_label(row["method"]),
    "Learning rate": lambda row: _or_nothing(rate)(row["learning_rate"]),
    "Threshold": lambda row: (
        NOTHING
        if math.isnan(row["max_norm"])
        else cell_threshold(row["method"], row["max_norm"])
    ),
}


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
    # What would be a tag; "<0.001" is none.
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)
