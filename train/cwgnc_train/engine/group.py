"""Runs that train together, and everything about them that is not their state."""

import dataclasses
import functools
from collections.abc import Sequence

import jax

from cwgnc_train.config import RunSpec, TrainingConfig
from cwgnc_train.data import (
    BatchIndices,
    Packing,
    Shape,
    make_packing,
    steps_per_epoch,
)
from cwgnc_train.engine.inputs import Inputs
from cwgnc_train.engine.layout import Layout
from cwgnc_train.engine.optimizer import make_hparams
from cwgnc_train.engine.start import start_runs
from cwgnc_train.engine.step import RunState, StepConfig


@dataclasses.dataclass(frozen=True, eq=False)
class TaskRuns:
    """What all runs of a task have in common."""

    inputs: Inputs
    training: TrainingConfig
    max_length: int
    multiple: int = 1
    """What numbers of rows must be divisible by: the devices that share a batch."""
    parts: int = 1
    """Devices that each pack rows of their own, under ``pmap``."""

    @functools.cached_property
    def packing(self) -> Packing:
        """How batches of the training set lie in rows."""
        return make_packing(
            self.inputs.train,
            self.training.padding,
            self.training.batch_size,
            self.max_length,
            multiple=self.multiple,
            parts=self.training.accumulate * self.parts,
        )

    def iterations(self, run: RunSpec) -> int:
        """Returns the number of iterations of gradual unfreezing; 1 without."""
        if run.unfreezing is None:
            return 1
        return run.iterations or self.inputs.layers

    def iteration_steps(self, run: RunSpec) -> int:
        """Returns the length of each iteration of a run."""
        examples = len(self.inputs.train)
        return run.epochs * steps_per_epoch(examples, self.training.batch_size)

    def total_steps(self, run: RunSpec) -> int:
        """Returns the length of a run."""
        return self.iterations(run) * self.iteration_steps(run)

    def scored_at(self, run: RunSpec) -> set[int]:
        """Returns the numbers of steps after which a run is evaluated.

        Evaluations are evenly spaced, and there is one at the end of each iteration of
        gradual unfreezing.
        """
        total, iterations = self.total_steps(run), self.iterations(run)
        usual = run.epochs if run.unfreezing is None else iterations
        counts = {self.training.evaluations or usual, iterations}
        return {-(-total * (i + 1) // count) for count in counts for i in range(count)}

    def is_measured(self, run: RunSpec, step: int) -> bool:
        """Says whether the components are measured in a step, counted from 0."""
        if not run.statistics_every:
            return False
        in_iteration = step % self.iteration_steps(run)
        last = in_iteration == self.iteration_steps(run) - 1
        return last or in_iteration % run.statistics_every == 0

    def step_config(self, run: RunSpec, iteration: int | None = None) -> StepConfig:
        """Returns what is fixed when a run's step is compiled.

        Args:
          run: The run.
          iteration: Of gradual unfreezing, from 0; by default the last one.
        """
        config = self.inputs.step_config(run, self.training)
        layers = self.iterations(run) if iteration is None else iteration + 1
        frozen = run.unfreezing is not None and layers < self.inputs.layers
        return dataclasses.replace(config, trained_layers=layers if frozen else None)

    def kind(self, run: RunSpec) -> tuple[object, ...]:
        """Returns what runs must share to go through a program together."""
        return (
            run.task,
            self.total_steps(run),
            run.unfreezing,
            self.step_config(run),
            run.regularization.reinit_layers,
            run.regularization.dropout is None,
        )

    def program_name(self, run: RunSpec) -> str:
        """Returns the name of a run's program in the records."""
        config = self.step_config(run)
        clip = [config.clip] if config.clip != "fixed" else []
        traits = {
            "mixout": config.mixout,
            "prior decay": config.prior_decay,
            "layer decay": config.layer_decay,
            "unfreezing": run.unfreezing,
            "statistics": config.statistics,
        }
        return ", ".join(
            [
                f"{run.task}, {self.inputs.train.input_ids.shape[1]} tokens",
                f"clip {config.components}",
                *clip,
                *(name for name, on in traits.items() if on),
            ]
        )


@dataclasses.dataclass(frozen=True, eq=False)
class RunGroup:
    """Runs of one kind in one program.

    Copies of the last run fill the program's layout; nothing is recorded of them.
    """

    of_task: TaskRuns
    runs: tuple[RunSpec, ...]
    layout: Layout

    @property
    def first(self) -> RunSpec:
        """A run that stands for all in what they share."""
        return self.runs[0]

    @property
    def filled(self) -> list[RunSpec]:
        """The runs, as many as the layout has."""
        return [*self.runs, *[self.runs[-1]] * (self.layout.runs - len(self.runs))]

    @property
    def iteration_steps(self) -> int:
        """The length of each iteration."""
        return self.of_task.iteration_steps(self.first)

    @property
    def total_steps(self) -> int:
        """The length of each run."""
        return self.of_task.total_steps(self.first)

    def start(self, iteration: int = 0) -> RunState:
        """Starts the runs of an iteration from the checkpoint."""
        carried = self.first.unfreezing == "carry"
        return start_runs(
            self.of_task.step_config(self.first, iteration),
            self.of_task.inputs.checkpoint,
            [(run.seed, run.data_seed) for run in self.filled],
            [
                make_hparams(run.optimizer, run.regularization, self.iteration_steps)
                for run in self.filled
            ],
            self.layout,
            self.first.regularization.reinit_layers,
            part=iteration if carried else 0,
        )

    def abstract_state(self, iteration: int = 0) -> RunState:
        """Returns the shapes of the runs, and where they lie."""
        return self.layout.abstract(jax.eval_shape(lambda: self.start(iteration)))

    def batch_shape(self, steps: Sequence[int]) -> Shape:
        """Returns rows and length of the batches of one program."""
        seeds = [run.data_seed for run in self.filled]
        return self.of_task.packing.shape(seeds, [self._order(s) for s in steps])

    def batch_indices(
        self, steps: Sequence[int], shape: Shape
    ) -> list[list[BatchIndices]]:
        """Returns which examples each run takes in each step."""
        packing = self.of_task.packing
        return [
            [packing.batch_indices(run.data_seed, self._order(s), shape) for s in steps]
            for run in self.filled
        ]

    def _order(self, step: int) -> int:
        """The step of a plain run that has the batch of this one."""
        # Each iteration is a whole fine-tuning, the last one that of all layers.
        restarts = self.first.unfreezing == "restart"
        return step % self.iteration_steps if restarts else step
