"""A study as a value: its runs, and all that they are made from."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from train import batches, parallel
from train.experiments.plan import PlannedRun, StabilityConfig
from train.inputs import Inputs
from train.optimizer import hyperparameters
from train.packing import Packing, Plan, Shape, make_packing
from train.steps import Recipe, Run


@dataclasses.dataclass(frozen=True)
class Study:
    """A study that is ready to start or to go on: everything has been read."""

    config: StabilityConfig
    inputs: dict[str, Inputs]
    """By task."""
    runs: list[PlannedRun]
    mesh: jax.sharding.Mesh | None

    @functools.cached_property
    def packings(self) -> dict[str, Packing]:
        """By task how batches of its training set lie in rows."""
        config = self.config
        # Devices that share a batch have as many of its rows each.
        multiple = 1 if self.mesh is None else self.mesh.shape["data"]
        return {
            task: make_packing(
                *(inputs.train, config.padding, config.batch_size),
                *(config.max_length, multiple),
            )
            for task, inputs in self.inputs.items()
        }

    def iterations(self, run: PlannedRun) -> int:
        """How many iterations of gradual unfreezing a run has; 1 without."""
        if run.unfreezing is None:
            return 1
        return run.iterations or self.inputs[run.task].layers

    def iteration_steps(self, run: PlannedRun) -> int:
        """The length of each iteration of a run."""
        examples = len(self.inputs[run.task].train)
        return run.epochs * batches.steps_per_epoch(examples, self.config.batch_size)

    def total_steps(self, run: PlannedRun) -> int:
        """The length of a run."""
        return self.iterations(run) * self.iteration_steps(run)

    def scored_at(self, run: PlannedRun) -> set[int]:
        """The numbers of steps after which a run is evaluated.

        Evaluations are evenly spaced, and there is one at the end of each iteration of
        gradual unfreezing.
        """
        total, iterations = self.total_steps(run), self.iterations(run)
        usual = run.epochs if run.unfreezing is None else iterations
        counts = {self.config.evaluations or usual, iterations}
        return {-(-total * (i + 1) // count) for count in counts for i in range(count)}

    def is_measured(self, run: PlannedRun, step: int) -> bool:
        """Whether the components are measured in a step, counted from 0."""
        if not run.statistics_every:
            return False
        in_iteration = step % self.iteration_steps(run)
        last = in_iteration == self.iteration_steps(run) - 1
        return last or in_iteration % run.statistics_every == 0

    def recipe(self, run: PlannedRun, iteration: int | None = None) -> Recipe:
        """What is fixed when a run's step is compiled.

        Args:
          run: The run.
          iteration: Of gradual unfreezing, counted from 0; by default the last one.

        Returns:
          The recipe.
        """
        inputs = self.inputs[run.task]
        recipe = inputs.recipe(
            *(run.optimizer, run.regularization),
            *(self.config.dtype, self.config.remat),
        )
        layers = self.iterations(run) if iteration is None else iteration + 1
        frozen = run.unfreezing is not None and layers < inputs.layers
        return dataclasses.replace(
            recipe,
            trained_layers=layers if frozen else None,
            statistics=run.statistics_every > 0,
        )

    def shape(self, run: PlannedRun) -> tuple[Any, ...]:
        """Runs of one shape can go through a program together."""
        regularization = run.regularization
        return (
            *(run.task, self.total_steps(run), run.unfreezing, self.recipe(run)),
            *(regularization.reinit_layers, regularization.dropout is None),
        )

    def program_name(self, run: PlannedRun) -> str:
        """What tells a run's program from others in the records."""
        recipe = self.recipe(run)
        parts = [
            f"{run.task}, {self.inputs[run.task].train.input_ids.shape[1]} tokens",
            f"clip {recipe.components}",
            *([recipe.clip] if recipe.clip != "fixed" else []),
            *(["mixout"] if recipe.mixout else []),
            *(["prior decay"] if recipe.prior_decay else []),
            *(["layer decay"] if recipe.layer_decay else []),
            *(["unfreezing"] if run.unfreezing else []),
            *(["statistics"] if recipe.statistics else []),
        ]
        return ", ".join(parts)

    def start(
        self, runs: list[PlannedRun], layout: parallel.Layout, iteration: int = 0
    ) -> Run:
        """Runs of one shape before an iteration, with the weights of their start."""
        carried = runs[0].unfreezing == "carry"
        return parallel.init_runs(
            self.recipe(runs[0], iteration),
            self.inputs[runs[0].task].checkpoint,
            [(run.seed, run.data_seed) for run in runs],
            [
                hyperparameters(
                    run.optimizer, run.regularization, self.iteration_steps(run)
                )
                for run in runs
            ],
            layout,
            runs[0].regularization.reinit_layers,
            part=iteration if carried else 0,
        )

    def batch_shape(self, runs: Sequence[PlannedRun], steps: Sequence[int]) -> Shape:
        """Rows and length of the batches of a program; see ``Packing.shape``."""
        seeds = [run.data_seed for run in runs]
        orders = [self._order(runs[0], step) for step in steps]
        return self.packings[runs[0].task].shape(seeds, orders)

    def plans(
        self, runs: Sequence[PlannedRun], steps: Sequence[int], shape: Shape
    ) -> list[list[Plan]]:
        """What each run takes in each step."""
        packing = self.packings[runs[0].task]
        orders = [self._order(runs[0], step) for step in steps]
        return [
            [packing.plan(run.data_seed, order, shape) for order in orders]
            for run in runs
        ]

    def _order(self, run: PlannedRun, step: int) -> int:
        """The step of a plain run that has the batch of this one."""
        # Each iteration is a whole fine-tuning, the last one that of all layers.
        return step % self.iteration_steps(run) if run.unfreezing == "restart" else step
