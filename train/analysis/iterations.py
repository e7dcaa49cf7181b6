"""The runs of gradual unfreezing, and what their iterations come to."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from train.analysis.cells import CELL
from train.analysis.components import Components
from train.analysis.convergence import racers
from train.analysis.study import Study


class Group(NamedTuple):
    """Runs that are compared: their recipes differ in the unfreezing only."""

    task: str
    clip: str
    """What follows the plus in the method's name, if anything does."""
    learning_rate: float
    max_norm: float
    epochs: int
    """Of one iteration."""
    iterations: int
    runs: dict[str, pd.DataFrame]
    """The runs by kind: carry, restart, and full if there are any."""


def unfreezing_groups(runs: pd.DataFrame) -> list[Group]:
    """Finds the runs of gradual unfreezing and those to compare them with.

    Args:
      runs: The finished runs.

    Returns:
      A group for each task, clip, learning rate, threshold, length and number of
      iterations; plain fine-tuning is in it if it has the epochs of one iteration.
    """
    base, clip = (runs["method"].str.partition("+")[i] for i in (0, 2))
    runs = runs.assign(clip=clip, kind=runs["unfreezing"].where(base != "full", "full"))
    keys = ["task", "clip", "learning_rate", "max_norm", "epochs"]
    groups = []
    thawing = runs[runs["kind"].isin(["carry", "restart"])]
    for key, group in thawing.groupby([*keys, "iterations"], sort=False):
        full = runs[runs["kind"] == "full"]
        for name, value in zip(keys, key, strict=False):
            full = full[full[name] == value]
        kinds = {kind: group[group["kind"] == kind] for kind in ("restart", "carry")}
        kinds["full"] = full
        kept = {kind: frame for kind, frame in kinds.items() if len(frame)}
        groups.append(Group(*key, kept))
    return groups


def layer_extremes(
    measured: Components, values: np.ndarray, extreme: Callable
) -> np.ndarray:
    """Takes the largest or smallest value of the components of each layer.

    Heads and key biases are left out: the classifier starts at random, and the
    gradient of a key bias is zero but for rounding.

    Args:
      measured: The components.
      values: A number of each component; those that are not finite are left out.
      extreme: ``max`` or ``min``.

    Returns:
      A number for the embeddings and for each layer from below; NaN where none is
      left.
    """
    usable = racers(measured) & np.isfinite(values)
    depths = np.array([part.depth for part in measured.components])
    layers = [values[usable & (depths == i)] for i in range(measured.layers + 1)]
    return np.array([extreme(layer, default=math.nan) for layer in layers], float)


def iteration_scores(study: Study, group: Group) -> list[dict[str, Any]]:
    """Summarises the scores at the end of each iteration.

    Args:
      study: The study.
      group: The runs.

    Returns:
      A row a kind and iteration: its cell, the number of runs, mean and std (ddof 0);
      none for an iteration that has no score.
    """
    rows = []
    for kind, frame in group.runs.items():
        courses = study.evaluations.merge(
            frame[["run", "steps", "iterations"]], on="run"
        )
        for iteration in range(1, frame["iterations"].iloc[0] + 1):
            ends = courses["steps"] * iteration // courses["iterations"]
            scores = courses["score"][courses["step"] == ends].dropna()
            if len(scores):
                rows.append(
                    row_of(frame, kind, iteration)
                    | {
                        "runs": len(scores),
                        "mean": scores.mean(),
                        "std": scores.std(ddof=0),
                        "metric": frame["metric"].iloc[0],
                    }
                )
    return rows


def layer_profiles(
    measured: Components, group: Group, statistic: str, extreme: Callable
) -> dict[str, np.ndarray]:
    """Takes the extremes of each layer at the end of each iteration.

    Args:
      measured: The statistics of the components.
      group: The runs.
      statistic: rmsd or cosine.
      extreme: ``max`` or ``min``, see ``layer_extremes``.

    Returns:
      By kind, ``[runs, iterations, depths]``; empty if no run of gradual unfreezing
      has statistics.
    """
    profiles = {}
    for kind, frame in group.runs.items():
        frame = frame[frame["run"].isin(measured.courses)]
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


def row_of(frame: pd.DataFrame, kind: str, iteration: int) -> dict[str, Any]:
    """Begins the row of a table: the cell of the runs, their kind and iteration."""
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
