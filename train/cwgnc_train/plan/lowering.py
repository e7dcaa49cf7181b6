"""The programs of runs, lowered from shapes alone: no weights, no data, no device."""

from typing import Any

import jax
import jax.numpy as jnp

from cwgnc_jax import models
from cwgnc_train.config import OptimizerConfig, RegularizationConfig
from cwgnc_train.data import BatchIndices, Shape, TokenTable
from cwgnc_train.engine import (
    Layout,
    RunState,
    StepConfig,
    compile_eval_step,
    compile_train_steps,
    init_run,
    make_hparams,
)


def abstract_runs(
    config: StepConfig,
    layout: Layout,
    optimizer: OptimizerConfig | None = None,
    regularization: RegularizationConfig | None = None,
) -> RunState:
    """Returns the shapes of the runs of a layout, and where they lie."""
    hparams = make_hparams(
        optimizer or OptimizerConfig(),
        regularization or RegularizationConfig(),
        total_steps=1,
    )

    def one_run() -> RunState:
        key = jax.random.key(0)
        params = models.init_params(config.model, key)
        return init_run(config, params, key, hparams)

    def with_runs(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((layout.runs, *leaf.shape), leaf.dtype)

    return layout.abstract(jax.tree.map(with_runs, jax.eval_shape(one_run)))


def lower_train_steps(
    config: StepConfig,
    layout: Layout,
    runs: RunState,
    *,
    shape: Shape,
    slots: int,
    steps: int,
    examples: int,
    parts: int = 1,
) -> Any:
    """Lowers training steps of runs.

    Args:
      config: What is fixed at compilation.
      layout: How the runs lie, over devices of :func:`devices_of` or real ones.
      runs: See :func:`abstract_runs`.
      shape: Rows and length of a batch, or of each of its parts.
      slots: The most examples in one.
      steps: How many the program takes.
      examples: Those of the training set.
      parts: In how many a batch is taken.
    """
    of_parts = (parts,) if parts > 1 else ()
    indices = _indices((layout.runs, steps, *of_parts, slots), layout.over_runs())
    table = _table(examples, shape[1], layout)
    return compile_train_steps(config, layout, shape).lower(runs, table, indices)


def lower_evaluation(
    config: StepConfig,
    layout: Layout,
    runs: RunState,
    *,
    shape: Shape,
    slots: int,
    examples: int,
) -> Any:
    """Lowers an evaluation batch; see :func:`lower_train_steps`."""
    table = _table(examples, shape[1], layout)
    indices = _indices((slots,), layout.whole())
    return compile_eval_step(config, layout, shape).lower(runs.params, table, indices)


def _table(examples: int, length: int, layout: Layout) -> TokenTable:
    def column(*sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, jnp.int32, sharding=layout.whole())

    tokens = column(examples, length)
    return TokenTable(tokens, tokens, column(examples), column(examples))


def _indices(sizes: tuple[int, ...], sharding: Any) -> BatchIndices:
    dtypes = jnp.int32, jnp.int32, jnp.float32
    return BatchIndices(
        *(jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding) for dtype in dtypes)
    )
