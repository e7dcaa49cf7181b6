"""The course of a run between two lines of its records."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from cwgnc_train.config import listed
from cwgnc_train.engine.step import CURVES, Metrics


@dataclasses.dataclass
class NonfiniteSteps:
    """The steps of a run with non-finite gradients so far; JSON as a dict."""

    steps: int = 0
    first_step: int | None = None
    first_components: list[str] = dataclasses.field(default_factory=list)
    """The components whose gradient was not finite in the first step."""
    in_a_row: int = 0
    row_step: int | None = None  # The first step of the last row of such steps.
    row_components: list[str] = dataclasses.field(default_factory=list)

    def see(
        self, step: int, names: Sequence[str], norms: Float[Array, " components"]
    ) -> list[str]:
        """Takes the norms of a step.

        Returns the components that are not finite, if a row of such steps begins.
        """
        components = [names[i] for i in np.flatnonzero(~np.isfinite(norms)).tolist()]
        if not components:
            self.in_a_row = 0
            return []
        self.in_a_row += 1
        self.steps += 1
        if self.steps == 1:
            self.first_step, self.first_components = step, components
        if self.in_a_row > 1:
            return []
        self.row_step, self.row_components = step, components
        return components

    def why_given_up(self) -> str:
        """Says where the last row of non-finite steps began, and what to try."""
        return (
            f"gave up: {self.in_a_row} steps in a row were skipped, from step "
            f"{self.row_step} on, because gradients were not finite, first in "
            f"{listed(self.row_components)}. Lower --learning-rate, check the data for "
            f"absurd labels, or raise --give-up-after"
        )

    def summary(self) -> dict[str, Any] | None:
        """Returns what results say of them; None if there were none."""
        if not self.steps:
            return None
        return {
            "steps": self.steps,
            "first_step": self.first_step,
            "components": self.first_components,
        }


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
        # JSON has no NaN.
        curves = {name: list(map(float, x)) for name, x in state["curves"].items()}
        nonfinite = NonfiniteSteps(**state["nonfinite"])
        return cls(**state | {"curves": curves, "nonfinite": nonfinite})

    def take(
        self, number: int, names: Sequence[str], metrics: Metrics, policy: str
    ) -> list[str]:
        """Takes the metrics of a step, counted from 1; returns as ``see`` does."""
        for name in CURVES:
            self.curves[name].append(float(getattr(metrics, name)))
        lost = policy == "propagate" and not np.isfinite(metrics.loss)
        if self.diverged_at is None and lost:
            self.diverged_at = number
        return self.nonfinite.see(number, names, metrics.norms)

    def means(self) -> dict[str, float] | None:
        """Returns the means since the last call; None if there were no steps."""
        if not self.curves["loss"]:
            return None
        means = {name: float(np.mean(x)) for name, x in self.curves.items()}
        self.curves = {name: [] for name in CURVES}
        return means
