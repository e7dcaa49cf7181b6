"""The compiled programs of a study, each compiled once."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from train import memory, parallel
from train.evaluation import evaluation_packing
from train.experiments.plan import PlannedRun
from train.experiments.study import Study
from train.packing import Plan, Shape, TrainingSet, training_set
from train.parallel import Layout
from train.progress import StudyProgress
from train.steps import Metrics, Run


class Programs:
    """Compiles what the runs of a study need, and keeps it.

    Args:
      study: The study.
      progress: Is told what was compiled, and for how long.
    """

    def __init__(self, study: Study, progress: StudyProgress):
        self._study, self._progress = study, progress
        self._compiled: dict[Any, Any] = {}
        self._training_sets: dict[Any, TrainingSet] = {}
        self.seconds = 0.0
        """What compiling has taken so far."""

    def clear(self) -> None:
        """Gives the memory of all programs back."""
        self._compiled.clear()

    def train_steps(
        self,
        runs: Sequence[PlannedRun],
        layout: Layout,
        iteration: int,
        steps: Sequence[int],
        shape: Shape,
        measured: bool,
    ) -> Callable[[Run], tuple[Run, Metrics]]:
        """Steps of an iteration, compiled, with what they take.

        Args:
          runs: As many as the layout has, of one shape.
          layout: How they lie.
          iteration: Of gradual unfreezing, counted from 0.
          steps: To be taken, one after the other.
          shape: Rows and length of their batches.
          measured: Whether the components are measured.

        Returns:
          A function from the runs to the runs after these steps and their metrics.
        """
        program, examples, plans = self._train_program(
            runs, layout, iteration, steps, shape, measured
        )
        return lambda values: program(values, examples, plans)

    def bytes_needed(self, run: PlannedRun, layout: Layout) -> int:
        """What the largest usual program of a run takes on each device."""
        iteration = self._study.iterations(run) - 1
        program, *_ = self._train_program(
            *([run] * layout.runs, layout, iteration, [0]),
            shape=self._study.packings[run.task].usual,
            measured=run.statistics_every > 0,
        )
        return memory.bytes_needed(program)

    def _train_program(
        self,
        runs: Sequence[PlannedRun],
        layout: Layout,
        iteration: int,
        steps: Sequence[int],
        shape: Shape,
        measured: bool,
    ) -> tuple[Any, TrainingSet, Plan]:
        study, run = self._study, runs[0]
        recipe = study.recipe(run, iteration)
        examples = self._training_set(run.task, layout)
        plans = parallel.place_plans(layout, study.plans(runs, steps, shape))
        own_dropout = run.regularization.dropout is None
        key = (run.task, recipe, own_dropout, layout, len(steps), shape, measured)
        if key not in self._compiled:
            shapes = jax.eval_shape(lambda: study.start(runs, layout, iteration))
            rows, length = shape
            self._compiled[key] = self._compile(
                parallel.compile_train_steps(recipe, layout, shape, measured),
                *(parallel.placed(layout, shapes), examples, plans),
                what=f"{layout.runs} x {rows} x {length} tokens"
                + f", {len(steps)} steps" * (len(steps) > 1)
                + ", measured" * measured,
            )
        return self._compiled[key], examples, plans

    def eval_step(self, run: PlannedRun, layout: Layout) -> Callable[..., Any]:
        """Evaluation, compiled."""
        inputs, size = self._study.inputs[run.task], self._study.config.eval_batch_size
        recipe = self._study.recipe(run)
        key = (run.task, recipe.dtype, layout)
        if key not in self._compiled:
            copies = [run] * layout.runs
            shapes = jax.eval_shape(lambda: self._study.start(copies, layout))
            packing = evaluation_packing(
                list(inputs.scored.values()), size, layout.data_devices
            )
            rows, length = packing.shape
            _, batch = next(packing.batches(inputs.scored[inputs.judged]))
            self._compiled[key] = self._compile(
                parallel.compile_eval_step(recipe, layout),
                parallel.placed(layout, shapes).params,
                parallel.place_batch(layout, batch),
                what=f"evaluation of {layout.runs} x {rows} x {length} tokens",
            )
        return self._compiled[key]

    def _training_set(self, task: str, layout: Layout) -> TrainingSet:
        key = (task, layout.mesh)
        if key not in self._training_sets:
            arrays = self._study.inputs[task].train
            self._training_sets[key] = parallel.place_training_set(
                layout, training_set(arrays)
            )
        return self._training_sets[key]

    def _compile(self, step: Any, *arguments: Any, what: str) -> Any:
        start = time.monotonic()
        compiled = step.lower(*arguments).compile()
        seconds = time.monotonic() - start
        self.seconds += seconds
        self._progress.say(f"compiled for {what} in {seconds:.1f} s")
        return compiled
