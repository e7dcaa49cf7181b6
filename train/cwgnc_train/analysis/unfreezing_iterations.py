"""The runs of gradual unfreezing, and the results of their iterations."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float

from cwgnc_train.analysis.cells import CELL
from cwgnc_train.analysis.component_courses import ComponentCourses
from cwgnc_train.analysis.convergence import no_key_biases
from cwgnc_train.analysis.labels import threshold_label
from cwgnc_train.analysis.study_records import StudyRecords
from cwgnc_train.config import Unfreezing

KINDS: tuple[str, ...] = get_args(Unfreezing)
"""The kinds of gradual unfreezing."""


class UnfreezingGroup(NamedTuple):
    """Runs to compare: their settings differ only in the unfreezing."""

    task: str
    added: str
    """What follows the plus in the method's name, if anything."""
    learning_rate: float
    max_norm: float
    epochs: int
    """Of one iteration."""
    iterations: int
    runs: dict[str, pd.DataFrame]
    """The runs by kind: ``KINDS``, and full (plain fine-tuning)."""

    @property
    def threshold(self) -> str:
        """The threshold as text; "none" without a clip."""
        clip = next(iter(self.runs.values()))["clip"].iloc[0]
        return threshold_label(self.max_norm, clip)


def unfreezing_groups(runs: pd.DataFrame) -> list[UnfreezingGroup]:
    """Finds the runs of gradual unfreezing and those to compare them with.

    Args:
      runs: The finished runs.

    Returns:
      One group for each task, addition to the method, learning rate, threshold, epochs
      and number of iterations. It includes plain fine-tuning of as many epochs as one
      iteration has.
    """
    base, added = (runs["method"].str.partition("+")[i] for i in (0, 2))
    runs = runs.assign(
        added=added, kind=runs["unfreezing"].where(base != "full", "full")
    )
    keys = ["task", "added", "learning_rate", "max_norm", "epochs"]
    groups = []
    thawing = runs.loc[runs["kind"].isin(KINDS)]
    for key, group in thawing.groupby([*keys, "iterations"], sort=False):
        *values, iterations = key  # pyright: ignore[reportGeneralTypeIssues]  # a tuple
        full = runs.loc[runs["kind"] == "full"]
        for name, value in zip(keys, values, strict=True):
            full = full.loc[full[name] == value]
        kinds = {kind: group[group["kind"] == kind] for kind in KINDS}
        kinds["full"] = full
        kept = {kind: frame for kind, frame in kinds.items() if len(frame)}
        groups.append(UnfreezingGroup(*values, iterations=iterations, runs=kept))
    return groups


def layer_extremes(
    measured: ComponentCourses,
    values: Float[np.ndarray, " components"],
    extreme: Callable,
) -> Float[np.ndarray, " depths"]:
    """Returns the largest or smallest value in each layer.

    Heads and key biases are left out: the classifier starts from random weights, and
    the gradient of a key bias is only rounding error.

    Args:
      measured: The components.
      values: One number per component; those that are not finite are left out.
      extreme: ``max`` or ``min``.

    Returns:
      One number for the embeddings, then one per layer from the bottom up; NaN where
      no component is left.
    """
    usable = no_key_biases(measured) & np.isfinite(values)
    depths = np.array([part.depth for part in measured.components])
    layers = [values[usable & (depths == i)] for i in range(measured.layers + 1)]
    return np.array([extreme(layer, default=math.nan) for layer in layers], float)


def iteration_scores(
    study: StudyRecords, group: UnfreezingGroup
) -> list[dict[str, Any]]:
    """Summarises the scores at the end of each iteration.

    Args:
      study: The records.
      group: The runs.

    Returns:
      One row per kind and iteration: its cell, number of runs, mean and std (ddof 0).
      Iterations without a score have no row.
    """
    rows = []
    for kind, frame in group.runs.items():
        courses = study.evaluations.merge(
            frame[["run", "steps", "iterations"]], on="run"
        )
        for iteration in range(1, frame["iterations"].iloc[0] + 1):
            ends = courses["steps"] * iteration // courses["iterations"]
            scores = courses.loc[courses["step"] == ends, "score"].dropna()
            if len(scores):
                rows.append(
                    row_start(frame, kind, iteration)
                    | {
                        "runs": len(scores),
                        "mean": scores.mean(),
                        "std": scores.std(ddof=0),
                        "metric": frame["metric"].iloc[0],
                    }
                )
    return rows


def layer_profiles(
    measured: ComponentCourses,
    group: UnfreezingGroup,
    statistic: str,
    extreme: Callable,
) -> dict[str, Float[np.ndarray, "runs iterations depths"]]:
    """Finds the extremes in each layer at the end of each iteration.

    Args:
      measured: The statistics of the components.
      group: The runs.
      statistic: rmsd or cosine.
      extreme: ``max`` or ``min``, see ``layer_extremes``.

    Returns:
      The extremes by kind of run; nothing if no run of gradual unfreezing has
      statistics.
    """
    profiles = {}
    for kind, frame in group.runs.items():
        frame = frame.loc[frame["run"].isin(measured.courses)]
        keys = zip(frame["run"], frame["steps"], frame["iterations"], strict=True)
        runs = [
            [
                _at(measured.courses[run], statistic, steps * i // iterations)
                for i in range(1, iterations + 1)
            ]
            for run, steps, iterations in keys
        ]
        if runs:
            take = lambda values: layer_extremes(measured, values, extreme)
            profiles[kind] = np.apply_along_axis(take, 2, np.array(runs))
    return profiles if profiles.keys() - {"full"} else {}


def row_start(frame: pd.DataFrame, kind: str, iteration: int) -> dict[str, Any]:
    """Starts a table row with the cell, kind and iteration of some runs."""
    return {
        **{name: frame[name].iloc[0] for name in CELL},
        "kind": kind,
        "iteration": iteration,
        "iterations": frame["iterations"].iloc[0],
    }


def _at(course, statistic, step):
    place = np.searchsorted(course.steps, step)
    if place == len(course.steps) or course.steps[place] != step:
        return np.full(getattr(course, statistic).shape[1], np.nan)
    return getattr(course, statistic)[place]
