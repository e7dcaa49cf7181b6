"""The picture of a folder of runs: losses, clip rates and scores over the steps."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cwgnc_train.analysis.cells import cells_of
from cwgnc_train.analysis.labels import metric_label, run_count, task_label
from cwgnc_train.analysis.pictures import PALETTE, STYLE, WIDTH, set_title
from cwgnc_train.analysis.study_records import StudyRecords, read_study

_CLIPPED = {
    "clip_rate_components": "components\nclipped [%]",
    "clip_rate_elements": "elements\nclipped [%]",
}
_SUCCEEDED, _FAILED, _SAVED = PALETTE[4], PALETTE[0], PALETTE[6]


def draw_curves(workdir: Path) -> Path:
    """Draws ``curves.png`` from the records of all finished runs.

    A single run has a panel for its loss and one for its clip rates. Several runs have
    a line each, in one panel for every quantity; failed runs, and the run whose model
    was saved, stand out.

    Args:
      workdir: The folder of the records.

    Returns:
      The path of the picture.

    Raises:
      UserError: If the folder has no records, no run has finished, or a record is
        damaged.
    """
    workdir = Path(workdir)
    study = read_study(workdir)
    with rc_context(STYLE):
        figure = _one_run(study) if len(study.runs) == 1 else _several_runs(study)
        path = workdir / "curves.png"
        figure.savefig(path, dpi=150)
    return path


def _one_run(study: StudyRecords) -> Figure:
    figure = Figure(figsize=(WIDTH, 6), layout="constrained")
    loss, clipped = figure.subplots(2, 1, sharex=True)
    frame = study.metrics.sort_values("step")
    for axes, name, scale, color, label in (
        (loss, "loss", 1, PALETTE[4], None),
        (clipped, "clip_rate_components", 100, PALETTE[4], "of components"),
        (clipped, "clip_rate_elements", 100, PALETTE[0], "of elements"),
    ):
        values = scale * frame[name]
        axes.plot(frame["step"], values, color=color, alpha=0.25, linewidth=0.7)
        axes.plot(*_smooth(frame, values), color=color, label=label)
    loss.set(ylabel="training loss", ylim=(0, None))
    clipped.set(xlabel="step", ylabel="clipped [%]", ylim=(-2, 102))
    clipped.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    seed, steps = study.runs["seed"].iloc[0], _window_steps(frame)
    smoothed = f"\nStrong lines are averages over {steps} steps" if steps else ""
    set_title(figure, f"{_setting(study)}, seed {seed}{smoothed}")
    return figure


def _several_runs(study: StudyRecords) -> Figure:
    runs, scored = study.runs, study.evaluations
    panels = {"loss": "training loss"}
    if any(cell.clips for cell in cells_of(runs)):
        panels |= _CLIPPED
    if len(set(scored["step"])) > 1:
        panels["score"] = f"{metric_label(runs['metric'].iloc[0])} × 100"
    heights = [1.5 if name in _CLIPPED else 2.2 for name in panels]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.9), layout="constrained")
    rows = figure.subplots(
        len(panels), 1, height_ratios=heights, sharex=True, squeeze=False
    )
    looks = {
        run: _look(failed, saved is True)
        for run, failed, saved in zip(
            runs["run"], runs["failed"], runs["model_saved"], strict=True
        )
    }
    for axes, name in zip(rows[:, 0], panels, strict=True):
        frames = scored if name == "score" else study.metrics
        for run, frame in frames.sort_values("step").groupby("run"):
            values = frame[name] * (1 if name == "loss" else 100)
            points = (frame["step"], values)
            if name != "score":
                points = _smooth(frame, values)
            axes.plot(*points, **looks[run])
        axes.set_ylabel(panels[name])
        if name == "loss":
            axes.set_ylim(0, None)
        if name in _CLIPPED:
            axes.set_ylim(-4, 104)
        if name == "score":
            axes.axhline(100 * runs["line"].iloc[0], color="0.4", linestyle=":")
    rows[-1, 0].set_xlabel("step")
    _draw_legend(figure, runs, "score" in panels)
    steps = _window_steps(
        study.metrics.loc[study.metrics["run"] == runs["run"].iloc[0]]
    )
    smoothed = (
        f"\nLosses and clip rates are averages over {steps} steps" if steps else ""
    )
    set_title(figure, f"{_setting(study)}, {len(runs)} runs{smoothed}")
    return figure


def _draw_legend(figure: Figure, runs: pd.DataFrame, failure_line: bool) -> None:
    failed, saved = sum(runs["failed"]), runs.loc[runs["model_saved"].eq(True)]
    handles = {
        run_count(number, has_failed): _look(has_failed, False)
        for has_failed, number in ((False, len(runs) - failed), (True, failed))
        if number
    }
    if len(saved):
        handles[f"seed {saved['seed'].iloc[0]}, whose model was saved"] = _look(
            saved["failed"].iloc[0], True
        )
    if failure_line:
        handles["failure line"] = {"color": "0.4", "linestyle": ":"}
    figure.legend(
        [Line2D([], [], **look) for look in handles.values()],
        list(handles),
        loc="outside lower center",
        ncols=len(handles),
    )


def _look(failed, saved):
    return {
        "color": _SAVED if saved else _FAILED if failed else _SUCCEEDED,
        "linewidth": 1.6 if saved else 0.8,
        "linestyle": "--" if failed else "-",
        "alpha": 1 if saved else 0.7,
        "zorder": 3 if saved else 2,
    }


def _setting(study):
    cell = cells_of(study.runs)[0]
    clip = f"threshold {cell.threshold}" if cell.clips else "no clip"
    task = task_label(cell.task)
    if file := study.settings.get("train_file"):
        task = Path(str(file)).name
    return f"{task}, {study.model}, {clip}"


def _window(frame: pd.DataFrame) -> int:
    return max(1, len(frame) // 30)


def _window_steps(frame: pd.DataFrame) -> int | None:
    """Returns the steps that a smoothed value is over; None if it is one record."""
    window = _window(frame)
    return None if window == 1 else window * int(np.median(np.diff(frame["step"])))


def _smooth(frame: pd.DataFrame, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and moving averages of a run's values."""
    window, steps = _window(frame), frame["step"].to_numpy()
    if window == 1:
        return steps, values.to_numpy()
    return steps[window - 1 :], np.convolve(values, np.ones(window) / window, "valid")
