"""Measures of when the components of a run converge."""

import numpy as np
from jaxtyping import Bool, Float, Int

from cwgnc_train.analysis.component_courses import ComponentCourses, Course


def racing_index(measured: ComponentCourses, course: Course, total_steps: int) -> float:
    """Measures how far the components of a run are from converging at the same pace.

    Each component is halfway at some step (see :func:`halfway_steps`). The index is
    the standard deviation (ddof 0) of these steps over the components, as fractions of
    the run's steps: 0 if all components converge at the same pace.

    Key biases are left out, since their gradients are only rounding error (see
    :attr:`Component.is_key_bias`), and so are components that end where they started,
    such as frozen ones.

    Args:
      measured: The components.
      course: The statistics of the run.
      total_steps: The number of steps of the run.

    Returns:
      The index; NaN if fewer than two components are left, or if any of their
      distances is not finite.
    """
    used = no_key_biases(measured) & (course.rmsd[-1] != 0)
    shares = halfway_steps(course.steps, course.rmsd[:, used]) / total_steps
    return float(shares.std()) if len(shares) > 1 else float("nan")


def no_key_biases(measured: ComponentCourses) -> Bool[np.ndarray, " components"]:
    """Returns a mask of all components that are not key biases."""
    return np.array([not part.is_key_bias for part in measured.components], bool)


def halfway_steps(
    steps: Int[np.ndarray, " steps"], rmsd: Float[np.ndarray, "steps components"]
) -> Float[np.ndarray, " components"]:
    """Finds the step at which each component first reaches half its final distance.

    Args:
      steps: The measured steps, counted from 1.
      rmsd: The distances from the initial weights; at step 0 they are 0.

    Returns:
      The steps, interpolated linearly between measured ones. NaN for a component that
      ends where it started or that has a distance that is not finite.
    """
    steps, rmsd = _from_zero(steps, rmsd)
    usable = np.isfinite(rmsd).all(axis=0) & (rmsd[-1] > 0)
    result = np.full(rmsd.shape[1], np.nan)
    rmsd = rmsd[:, usable]
    half = rmsd[-1] / 2
    after = (rmsd >= half).argmax(axis=0)
    low, high = (np.take_along_axis(rmsd, i[None], 0)[0] for i in (after - 1, after))
    start, end = steps[after - 1], steps[after]
    result[usable] = start + (half - low) / (high - low) * (end - start)
    return result


def distance_shares(
    steps: Int[np.ndarray, " steps"],
    rmsd: Float[np.ndarray, "steps components"],
    grid: Float[np.ndarray, " points"],
) -> Float[np.ndarray, "points components"]:
    """Interpolates each component's distance as a share of its final distance.

    Args:
      steps: The measured steps, counted from 1.
      rmsd: The distances from the initial weights.
      grid: The steps to interpolate at.

    Returns:
      The shares; NaN where a distance is not finite or the component ends where it
      started.
    """
    steps, rmsd = _from_zero(steps, rmsd)
    usable = np.isfinite(rmsd[-1]) & (rmsd[-1] > 0)
    shares = np.full((len(grid), rmsd.shape[1]), np.nan)
    for i in np.flatnonzero(usable):
        values = np.interp(grid, steps, rmsd[:, i] / rmsd[-1, i])
        shares[:, i] = np.where(np.isfinite(values), values, np.nan)
    return shares


def finite_mean(values: Float[np.ndarray, "rows ..."]) -> Float[np.ndarray, "..."]:
    """Averages the finite values over the first axis; NaN where there are none."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    total = np.where(finite, values, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _from_zero(steps, rmsd):
    start = np.zeros_like(rmsd[:1])
    return np.concatenate([[0], steps]), np.concatenate([start, rmsd])
