"""A study as a value: its runs, and all that they are made from."""

import dataclasses
from typing import Any

import jax
import numpy as np

from train import batches, parallel
from train.experiments.plan import PlannedRun, StabilityConfig
from train.inputs import Inputs
from train.optimizer import hyperparameters
from train.steps import Recipe, Run


@dataclasses.dataclass(frozen=True)
class Study:
    """A study that is ready to start or to go on: everything has been read."""

    config: StabilityConfig
    inputs: dict[str, Inputs]
    """By task."""
    runs: list[PlannedRun]
    mesh: jax.sharding.Mesh | None

    def total_steps(self, run: PlannedRun) -> int:
        """The length of a run."""
        examples = len(self.inputs[run.task].train)
        return run.epochs * batches.steps_per_epoch(examples, self.config.batch_size)

    def scored_at(self, run: PlannedRun) -> set[int]:
        """The numbers of steps after which a run is evaluated."""
        total, count = self.total_steps(run), self.config.evaluations or run.epochs
        return {-(-total * (i + 1) // count) for i in range(count)}

    def recipe(self, run: PlannedRun) -> Recipe:
        """What is fixed when a run's step is compiled."""
        return self.inputs[run.task].recipe(
            run.optimizer, run.regularization, self.config.dtype
        )

    def shape(self, run: PlannedRun) -> tuple[Any, ...]:
        """Runs of one shape can go through a program together."""
        regularization = run.regularization
        return (
            *(run.task, self.total_steps(run), self.recipe(run)),
            *(regularization.reinit_layers, regularization.dropout is None),
        )

    def program_name(self, run: PlannedRun) -> str:
        """What tells a run's program from others in the records."""
        recipe = self.recipe(run)
        parts = [
            f"{run.task}, {self.inputs[run.task].train.input_ids.shape[1]} tokens",
            f"clip {recipe.components}",
            *(["mixout"] if recipe.mixout else []),
            *(["prior decay"] if recipe.prior_decay else []),
            *(["layer decay"] if recipe.layer_decay else []),
        ]
        return ", ".join(parts)

    def start(self, runs: list[PlannedRun], layout: parallel.Layout) -> Run:
        """Runs of one shape before their first step."""
        return parallel.init_runs(
            self.recipe(runs[0]),
            self.inputs[runs[0].task].checkpoint,
            [(run.seed, run.data_seed) for run in runs],
            [
                hyperparameters(
                    run.optimizer, run.regularization, self.total_steps(run)
                )
                for run in runs
            ],
            layout,
            runs[0].regularization.reinit_layers,
        )

    def batch(self, runs: list[PlannedRun], step: int) -> dict[str, np.ndarray]:
        """The batches of a step, with a leading axis of runs."""
        arrays, size = self.inputs[runs[0].task].train, self.config.batch_size
        each = [batches.train_batch(arrays, run.data_seed, step, size) for run in runs]
        return {name: np.stack([batch[name] for batch in each]) for name in each[0]}
