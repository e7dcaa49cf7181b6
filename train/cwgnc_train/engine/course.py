"""The course of a run between two lines of its records."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from cwgnc_train.engine.nonfinite import NonfiniteSteps
from cwgnc_train.engine.step import CURVES, Metrics


@dataclasses.dataclass
class Course:
    """What is known of a run so far; JSON as a dict."""

    curves: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: {name: [] for name in CURVES}
    )
    """The metrics of each step since the last line."""
    diverged_at: int | None = None
    """The first step whose loss was not finite, where nothing is done about it."""
    nonfinite: NonfiniteSteps = dataclasses.field(default_factory=NonfiniteSteps)
    gave_up_at: int | None = None

    @classmethod
    def of(cls, state: dict[str, Any] | None) -> "Course":
        """Makes a course from the dict of an earlier one."""
        if state is None:
            return cls()
        curves = {
            # JSON has no NaN.
            name: [float(value) for value in values]
            for name, values in state["curves"].items()
        }
        nonfinite = NonfiniteSteps(**state["nonfinite"])
        return cls(**state | {"curves": curves, "nonfinite": nonfinite})

    def take(
        self, number: int, names: Sequence[str], metrics: Metrics, policy: str
    ) -> list[str]:
        """Takes the metrics of a step.

        Args:
          number: The step, from 1.
          names: The components that the norms are of.
          metrics: Those of this run.
          policy: The policy for non-finite gradients.

        Returns:
          The components with non-finite gradients, if a row of such steps begins.
        """
        for name in CURVES:
            self.curves[name].append(float(getattr(metrics, name)))
        lost = policy == "propagate" and not np.isfinite(metrics.loss)
        if self.diverged_at is None and lost:
            self.diverged_at = number
        components = self.nonfinite.see(number, names, metrics.norms)
        return components if self.nonfinite.row_step == number else []

    def means(self) -> dict[str, float] | None:
        """Returns the means since the last call; None if there were no steps."""
        curves = self.curves
        if not curves["loss"]:
            return None
        self.curves = {name: [] for name in CURVES}
        return {name: float(np.mean(values)) for name, values in curves.items()}
