"""Steps whose gradients were not finite: where they began, and when to give up."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from train.tables import listed


@dataclasses.dataclass
class NonfiniteSteps:
    """What is known of them; JSON as a dict.

    Attributes:
      steps: How many there were.
      first_step: The first of all.
      first_components: Those whose gradient was not finite in it.
      in_a_row: How many there were until now without one between that was finite.
      row_step: The first of these.
      row_components: Those whose gradient was not finite in it.
    """

    steps: int = 0
    first_step: int | None = None
    first_components: list[str] = dataclasses.field(default_factory=list)
    in_a_row: int = 0
    row_step: int | None = None
    row_components: list[str] = dataclasses.field(default_factory=list)

    def see(self, step: int, norms: Mapping[str, Any]) -> list[str]:
        """Takes the norms of a step, and returns the components that are not finite."""
        components = [name for name, norm in norms.items() if not np.isfinite(norm)]
        if not components:
            self.in_a_row = 0
            return components
        if not self.in_a_row:
            self.row_step, self.row_components = step, components
        if not self.steps:
            self.first_step, self.first_components = step, components
        self.in_a_row += 1
        self.steps += 1
        return components

    def why_given_up(self) -> str:
        """Names the step and the components that the last row of them began with."""
        return (
            f"gave up: {self.in_a_row} steps in a row were skipped, from step "
            f"{self.row_step} on, whose gradients were not finite; it began in "
            f"{listed(self.row_components)}. Lower --learning-rate, see that the data "
            f"has no absurd labels, or raise --give-up-after"
        )

    def summary(self) -> dict[str, Any] | None:
        """What the results say of them; None if there were none."""
        if not self.steps:
            return None
        return {
            "steps": self.steps,
            "first_step": self.first_step,
            "components": self.first_components,
        }
