"""Steps with non-finite gradients: where they began, and when to give up."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cwgnc_train.config import listed


@dataclasses.dataclass
class NonfiniteSteps:
    """Non-finite steps of one run so far; JSON as a dict.

    Attributes:
      steps: How many there were.
      first_step: The first of them.
      first_components: The components whose gradient was not finite in it.
      in_a_row: How many the last finite step was ago.
      row_step: The first step of that row.
      row_components: The components whose gradient was not finite in it.
    """

    steps: int = 0
    first_step: int | None = None
    first_components: list[str] = dataclasses.field(default_factory=list)
    in_a_row: int = 0
    row_step: int | None = None
    row_components: list[str] = dataclasses.field(default_factory=list)

    def see(
        self, step: int, names: Sequence[str], norms: Float[np.ndarray, " components"]
    ) -> list[str]:
        """Takes the norms of a step; returns the components that are not finite."""
        finite = np.isfinite(norms)
        components = (
            []
            if finite.all()
            else [name for name, each in zip(names, finite, strict=True) if not each]
        )
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
