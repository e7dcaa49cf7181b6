"""Compiled programs: training steps and evaluation over the runs of a layout."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from cwgnc_train.data import Shape, TokenTable, packed_batch, token_table
from cwgnc_train.engine import memory
from cwgnc_train.engine.evaluation import EvaluationBatches
from cwgnc_train.engine.group import RunGroup
from cwgnc_train.engine.layout import Layout, first_run, over_runs
from cwgnc_train.engine.pmap import pmap_train_steps
from cwgnc_train.engine.step import (
    Metrics,
    RunState,
    StepConfig,
    eval_step,
    loss_and_grads,
    train_step,
    update,
)

_STEPS_AT_ONCE = 10


def steps_of_program(platform: str, step: int, end: int) -> tuple[range, range]:
    """Decides which steps one program takes, beginning with a certain one.

    A GPU or TPU does not wait for the host between the ten steps of one program. On a
    CPU calling a program costs nothing beside a step, so each step has batches of a
    shape of its own.

    Args:
      platform: What the program is written for.
      step: The first step.
      end: None is taken from this one on.

    Returns:
      The steps to take, ten or one, so that there are no programs of other numbers; and
      those whose batches share a shape, which does not depend on ``end``.
    """
    most = 1 if platform == "cpu" else _STEPS_AT_ONCE
    begin = step // most * most
    alike = range(begin, begin + most)
    whole = step == begin and alike.stop <= end
    return (alike if whole else range(step, step + 1)), alike


def compile_train_steps(
    config: StepConfig, layout: Layout, shape: Shape, measured: bool = False
) -> Callable[..., Any]:
    """Jits ``train_step`` over the runs of a layout and several steps.

    Args:
      config: What is fixed at compilation.
      layout: How many runs there are and where they lie.
      shape: Rows and length of the batches.
      measured: Whether the steps measure the components.

    Returns:
      A function from the runs, the training set (``Layout.place_table``) and the
      batches of the steps (``Layout.place_indices``) to the runs after these steps,
      whose buffers it reuses, and their metrics with axes over runs and steps.
    """

    def batch_of(table, indices):
        return layout.split_rows(packed_batch(table, indices, shape))

    def one_run(state, indices, table):
        def step(state, indices):
            batch = batch_of(table, indices)
            return train_step(config, state, batch, measured, layout)

        return jax.lax.scan(step, state, indices)

    def alone(states, indices, table):
        # The update keeps the axis over runs. Where it is taken off before and put
        # back behind, XLA's CPU backend does not see that the update can write over
        # what it reads, and copies it first: a fifth of MiniLM's step of 4 x 48 tokens.
        def step(states, indices):
            batch = batch_of(table, indices)
            found = loss_and_grads(config, first_run(states), batch, layout)
            found = jax.tree.map(lambda leaf: leaf[None], found)
            updates = functools.partial(update, config, measured=measured)
            return jax.vmap(updates)(states, *found)

        states, metrics = jax.lax.scan(step, states, first_run(indices))
        return states, jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), metrics)

    def steps(states, table, indices):
        states, metrics = over_runs(
            one_run, layout, (states, indices), (table,), alone=alone
        )
        return layout.constrain(states), _readable(layout, metrics)

    return jax.jit(steps, donate_argnums=0)


def compile_eval_step(
    config: StepConfig, layout: Layout, shape: Shape
) -> Callable[..., Any]:
    """Jits ``eval_step`` over the runs of a layout.

    Args:
      config: What is fixed at compilation.
      layout: How many runs there are and where they lie.
      shape: Rows and length of the batch.

    Returns:
      A function from the parameters of all runs, a table of tokens and the indices of
      one batch, the same for all runs, to logits ``[runs, examples, labels]``.
    """

    def one_run(params, batch):
        return eval_step(config, layout.gather(params), layout.split_rows(batch))

    def step(params, table, indices):
        batch = packed_batch(table, indices, shape)
        return _readable(layout, over_runs(one_run, layout, (params,), (batch,)))

    return jax.jit(step)


def _readable(layout: Layout, values: Any) -> Any:
    """Lets every process read values whole."""
    if not layout.mesh.is_multi_process:
        return values
    return jax.lax.with_sharding_constraint(values, layout.whole())


class Programs:
    """Compiles what runs need, each program once, and keeps it.

    Args:
      say: Is told what was compiled, and for how long.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._compiled: dict[Any, Any] = {}
        self._tables: dict[Any, TokenTable] = {}
        self.seconds = 0.0
        """What compiling has taken so far."""

    def clear(self) -> None:
        """Gives the memory of all programs back."""
        self._compiled.clear()

    def train_steps(
        self,
        group: RunGroup,
        iteration: int,
        steps: Sequence[int],
        shape: Shape,
        measured: bool,
    ) -> Callable[[RunState], tuple[RunState, Metrics]]:
        """Compiles steps of an iteration, with their batches.

        Args:
          group: The runs.
          iteration: Of gradual unfreezing, from 0.
          steps: To be taken, one after the other.
          shape: Rows and length of their batches.
          measured: Whether the components are measured.

        Returns:
          A function from the runs to the runs after these steps and their metrics.
        """
        program, *batches = self._train_program(
            group, iteration, steps, shape, measured
        )
        return lambda states: program(states, *batches)

    def bytes_needed(self, group: RunGroup) -> int:
        """Returns what the largest usual program of runs takes on each device."""
        program, *_ = self._train_program(
            group,
            iteration=group.of_task.iterations(group.first) - 1,
            steps=[0],
            shape=group.of_task.packing.usual,
            measured=group.first.statistics_every > 0,
        )
        return memory.bytes_needed(program)

    def evaluation(self, group: RunGroup) -> "EvaluationProgram":
        """Compiles the evaluation of runs, with all that it reads."""
        inputs, layout = group.of_task.inputs, group.layout
        key = ("evaluation", group.first.task, layout.mesh)
        batches = self._kept(
            key,
            lambda: EvaluationBatches(
                inputs.scored,
                group.of_task.training.eval_batch_size,
                layout.data_devices,
            ),
        )
        table = self._table(key, layout, batches.table)
        config = group.of_task.step_config(group.first)
        indices = batches.indices(layout, 0)
        program = self._program(
            ("eval", group.first.task, config.dtype, layout),
            lambda: compile_eval_step(config, layout, batches.shape),
            lambda: (group.abstract_state().params, table, indices),
            what=f"evaluation of {layout.runs} x {_times(batches.shape)}",
        )
        return EvaluationProgram(program, table, batches, layout)

    def _train_program(
        self,
        group: RunGroup,
        iteration: int,
        steps: Sequence[int],
        shape: Shape,
        measured: bool,
    ) -> tuple[Any, ...]:
        layout, run = group.layout, group.first
        config = group.of_task.step_config(run, iteration)
        table = self._table(
            ("train", run.task), layout, token_table(group.of_task.inputs.train)
        )
        indices = layout.place_indices(group.batch_indices(steps, shape))
        own_dropout = run.regularization.dropout is None
        if layout.strategy == "pmap":
            program = self._kept(
                ("pmap", run.task, config, own_dropout, layout, shape, measured),
                lambda: pmap_train_steps(config, layout, shape, measured),
            )
            return program, table, indices
        program = self._program(
            (run.task, config, own_dropout, layout, len(steps), shape, measured),
            lambda: compile_train_steps(config, layout, shape, measured),
            lambda: (group.abstract_state(iteration), table, indices),
            what=f"{layout.runs} x {_times(shape)}"
            + f", {len(steps)} steps" * (len(steps) > 1)
            + ", measured" * measured,
        )
        return program, table, indices

    def _program(
        self,
        key: Any,
        jitted: Callable[[], Any],
        arguments: Callable[[], tuple[Any, ...]],
        what: str,
    ) -> Any:
        def compiled():
            start = time.monotonic()
            program = jitted().lower(*arguments()).compile()
            seconds = time.monotonic() - start
            self.seconds += seconds
            self._say(f"compiled {what} in {seconds:.1f} s")
            return program

        return self._kept(key, compiled)

    def _kept(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._compiled:
            self._compiled[key] = make()
        return self._compiled[key]

    def _table(self, key: Any, layout: Layout, table: TokenTable) -> TokenTable:
        key = (key, layout.mesh)
        if key not in self._tables:
            self._tables[key] = layout.place_table(table)
        return self._tables[key]


class EvaluationProgram:
    """A compiled evaluation: from the parameters of runs to logits by set."""

    def __init__(
        self,
        program: Callable[..., Any],
        table: TokenTable,
        batches: EvaluationBatches,
        layout: Layout,
    ):
        self._program, self._table = program, table
        self._batches, self._layout = batches, layout

    def __call__(self, params: Any, check: Callable[[], None] = lambda: None):
        """Computes the logits of all sets.

        Args:
          params: The parameters of all runs.
          check: Called before each batch; may raise to end the evaluation.

        Returns:
          Logits ``[runs, examples, labels]`` by the name of the set.
        """
        parts = []
        for number in range(len(self._batches)):
            check()
            indices = self._batches.indices(self._layout, number)
            parts.append(self._program(params, self._table, indices))
        return self._batches.by_set(jax.device_get(parts))


def _times(shape: Shape) -> str:
    rows, length = shape
    return f"{rows} x {length} tokens"
