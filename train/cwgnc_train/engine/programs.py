"""Compiled programs: training steps and evaluation over the runs of a layout."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from cwgnc_train.data import Shape, packed_batch, token_table
from cwgnc_train.engine import memory
from cwgnc_train.engine.evaluation import EvaluationBatches
from cwgnc_train.engine.group import RunGroup
from cwgnc_train.engine.layout import Layout, first_run, over_runs
from cwgnc_train.engine.pmap import pmap_train_steps
from cwgnc_train.engine.step import (
    StepConfig,
    compute_logits,
    copies_to_multiply,
    train_step,
    train_step_alone,
)

_STEPS_AT_ONCE = 10


def steps_of_program(platform: str, step: int, end: int) -> tuple[range, range]:
    """Decides which steps one program takes, beginning with ``step``.

    A GPU or TPU does not wait for the host between the ten steps of one program; those
    that ``end`` leaves over are taken one at a time. On a CPU calling a program costs
    nothing beside a step, so each step has batches of a shape of its own. Also returns
    the steps whose batches share a shape with them; they do not depend on ``end``.
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

    Returns a function from the runs, the training set (``Layout.place_table``) and the
    batches of this shape (``Layout.place_indices``) to the runs after these steps,
    whose buffers it reuses, and their metrics with axes over runs and steps.
    """

    on_cpu = layout.platform == "cpu"

    def scanned(take_step, state, indices, table):
        def copies_of(state):
            # A CPU's program takes one step, so it would cast no less with copies.
            made = None if on_cpu else copies_to_multiply(config, state.params)
            return {} if made is None else {"copies": made}

        def step(carry, indices):
            state, copies = carry
            batch = layout.split_rows(packed_batch(table, indices, shape))
            state, metrics = take_step(config, state, batch, measured, layout, **copies)
            return (state, copies_of(state)), metrics

        (state, _), metrics = jax.lax.scan(step, (state, copies_of(state)), indices)
        return state, metrics

    one_run = functools.partial(scanned, train_step)

    def alone(states, indices, table):
        states, metrics = scanned(train_step_alone, states, first_run(indices), table)
        return states, jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), metrics)

    # On a TPU an axis of 1 in front of a table makes its tiles one row high.
    way = alone if on_cpu else None

    def steps(states, table, indices):
        states, metrics = over_runs(
            one_run, layout, (states, indices), (table,), alone=way
        )
        return layout.constrain(states), _readable(layout, metrics)

    return jax.jit(steps, donate_argnums=0)


def compile_eval_step(
    config: StepConfig, layout: Layout, shape: Shape
) -> Callable[..., Any]:
    """Jits ``compute_logits`` over the runs of a layout.

    Returns a function from the parameters of all runs, a table of tokens and the
    indices of a batch that they share to logits ``[runs, examples, labels]``.
    """

    def one_run(params, batch):
        return compute_logits(config, layout.gather(params), layout.split_rows(batch))

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

    ``say`` is told what was compiled, and for how long.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._made: dict[Any, Any] = {}
        self.seconds = 0.0  # What compiling has taken so far.

    def clock(self) -> float:
        """Tells the time in seconds, without those of the compiler."""
        return time.monotonic() - self.seconds

    def clear(self) -> None:
        """Gives the memory of all programs back."""
        self._made.clear()

    def train_steps(
        self,
        group: RunGroup,
        iteration: int,
        steps: Sequence[int],
        shape: Shape,
        measured: bool,
    ) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Compiles steps of an iteration of gradual unfreezing, counted from 0.

        Returns a function as of :func:`compile_train_steps`, and what it takes after
        the runs.
        """
        layout, run = group.layout, group.first
        config = group.of_task.step_config(run, iteration)
        table = self._kept(
            ("table", run.task, layout.mesh),
            lambda: layout.place_table(token_table(group.of_task.inputs.train)),
        )
        indices = layout.place_indices(group.batch_indices(steps, shape))
        own_dropout = run.regularization.dropout is None
        key = (run.task, config, own_dropout, layout, len(steps), shape, measured)

        def make():
            if layout.strategy == "pmap":
                return pmap_train_steps(config, layout, shape, measured)
            what = f"{layout.runs} x {shape[0]} x {shape[1]} tokens"
            what += f", {len(steps)} steps" * (len(steps) > 1) + ", measured" * measured
            program = compile_train_steps(config, layout, shape, measured)
            state = group.abstract_state(iteration)
            return self._compile(program, (state, table, indices), what)

        return self._kept(key, make), (table, indices)

    def bytes_needed(self, group: RunGroup) -> int:
        """Returns what the largest usual program of runs takes on each device."""
        last = group.of_task.iterations(group.first) - 1
        usual, measured = group.of_task.packing.usual, group.first.statistics_every > 0
        program, _ = self.train_steps(group, last, range(1), usual, measured)
        return memory.bytes_needed(program)

    def evaluation(self, group: RunGroup) -> Callable[..., dict[str, Any]]:
        """Compiles the evaluation of runs, which ``evaluate`` takes."""
        of_task, layout = group.of_task, group.layout
        batches = self._kept(
            ("evaluation", group.first.task, layout.mesh),
            lambda: EvaluationBatches(
                of_task.inputs.scored, of_task.training.eval_batch_size, layout
            ),
        )
        config, (rows, length) = of_task.step_config(group.first), batches.shape
        program = self._kept(
            ("eval", group.first.task, config.dtype, layout),
            lambda: self._compile(
                compile_eval_step(config, layout, batches.shape),
                (group.abstract_state().params, batches.table, next(batches.placed())),
                f"evaluation of {layout.runs} x {rows} x {length} tokens",
            ),
        )
        return functools.partial(batches.logits, program)

    def _compile(self, jitted: Any, arguments: tuple[Any, ...], what: str) -> Any:
        start = time.monotonic()
        program = jitted.lower(*arguments).compile()
        seconds = time.monotonic() - start
        self.seconds += seconds
        self._say(f"compiled {what} in {seconds:.1f} s")
        return program

    def _kept(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
