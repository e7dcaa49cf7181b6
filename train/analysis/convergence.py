"""When the components of a run converge, as numbers."""

import numpy as np

from train.analysis.components import Components, Course


def racing_index(measured: Components, course: Course, total_steps: int) -> float:
    """Measures how far the components of a run are from converging in step.

    Each component is half-way at some step (see ``halfway_steps``). The index is the
    standard deviation (ddof 0) of these steps over the components, as shares of the
    run's steps: 0 if all converge in step. Key biases are left out, since their
    gradient is analytically zero (softmax is shift invariant) so that they follow
    rounding only; so are components that end where they started, as frozen ones do.

    Args:
      measured: The components.
      course: The statistics of the run.
      total_steps: The number of the run's steps.

    Returns:
      The index; NaN if fewer than two components are left, or if one of their
      differences is not finite.
    """
    racing = racers(measured) & (course.rmsd[-1] != 0)
    shares = halfway_steps(course.steps, course.rmsd[:, racing]) / total_steps
    return float(shares.std()) if len(shares) > 1 else float("nan")


def racers(measured: Components) -> np.ndarray:
    """Says of each component whether it takes part: all but the key biases."""
    return np.array([not part.is_key_bias for part in measured.components], bool)


def halfway_steps(steps: np.ndarray, rmsd: np.ndarray) -> np.ndarray:
    """Finds where each component first reaches half its final distance.

    Args:
      steps: The measured steps, counted from 1: ``[steps]``.
      rmsd: The distances to the weights at the start: ``[steps, components]``. At
        step 0 they are 0.

    Returns:
      The step of each component, linearly interpolated between measured steps; NaN
      for one that ends where it started or that has a distance that is not finite.
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


def progress(steps: np.ndarray, rmsd: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Interpolates each component's distance as a share of its final distance.

    Args:
      steps: The measured steps: ``[steps]``.
      rmsd: The distances to the weights at the start: ``[steps, components]``.
      grid: The steps that are wanted: ``[points]``.

    Returns:
      The shares, ``[points, components]``; NaN where a distance is not finite or the
      component ends where it started.
    """
    steps, rmsd = _from_zero(steps, rmsd)
    usable = np.isfinite(rmsd[-1]) & (rmsd[-1] > 0)
    shares = np.full((len(grid), rmsd.shape[1]), np.nan)
    for i in np.flatnonzero(usable):
        values = np.interp(grid, steps, rmsd[:, i] / rmsd[-1, i])
        shares[:, i] = np.where(np.isfinite(values), values, np.nan)
    return shares


def mean_of_finite(values: np.ndarray) -> np.ndarray:
    """Means over the first axis of what is finite; NaN where nothing is."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    total = np.where(finite, values, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _from_zero(steps, rmsd):
    start = np.zeros_like(rmsd[:1])
    return np.concatenate([[0], steps]), np.concatenate([start, rmsd])
