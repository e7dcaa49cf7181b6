"""Gradual unfreezing, in which layers start to train one by one from the top."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import optax

from cwgnc_jax._depth import (
    DepthFn,
    check_depth_fn,
    encoder_depth,
    is_thawed,
    rank_leaves,
)


def gradual_unfreezing(
    tx: optax.GradientTransformation,
    depth_fn: DepthFn = encoder_depth,
    thaw_steps: Sequence[int] = (0,),
) -> optax.GradientTransformationExtraArgs:
    """Applies an optimizer to more and more layers, from the output to the input.

    The highest depth (the heads) trains from the start. The next lower depth joins at
    step ``thaw_steps[0]``, the one below it at ``thaw_steps[1]``, and so on. The lowest
    depth (the embeddings) joins together with the last layer above it. Layers without a
    step stay frozen. :func:`thawed` is the same rule for a single path.

    While a depth is frozen, its updates are exactly zero and its optimizer state keeps
    its initial value, so that schedules and bias corrections of ``tx`` count from the
    step at which the depth thaws.

    ``tx`` acts on each depth separately. A component of the clip that joins parameters
    of several depths would be split; the paper's components, of one parameter each, are
    not affected.

    The gradients of frozen parameters are still computed, unless the loss stops them.

    Args:
      tx: The whole optimizer, including the learning rate.
      depth_fn: Maps a parameter's "/"-joined path to its depth, a number that rises
        from input to output.
      thaw_steps: The step, counted from 0, at which each layer starts to train, from
        the top layer down; must not decrease.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs`.

    Raises:
      TypeError: If ``depth_fn`` is not a function; from ``init`` on if it does not
        return a number.
      ValueError: If a step is negative or the steps decrease; from ``init`` on if there
        are more steps than layers.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> params = {"embeddings": jnp.ones(1), "layer_0": jnp.ones(1),
      ...           "layer_1": jnp.ones(1), "classifier": jnp.ones(1)}
      >>> tx = cwgnc_jax.gradual_unfreezing(optax.sgd(1.0), thaw_steps=[0, 1])
      >>> opt_state = tx.init(params)
      >>> for step in range(2):
      ...     updates, opt_state = tx.update(params, opt_state, params)
      ...     print([name for name in params if updates[name] != 0])
      ['layer_1', 'classifier']
      ['embeddings', 'layer_0', 'layer_1', 'classifier']

    References:
      Yang and Ma, `Improving Stability of Fine-Tuning Pretrained Language Models via
      Component-Wise Gradient Norm Clipping
      <https://aclanthology.org/2022.emnlp-main.322>`_, 2022, algorithm 1; Howard and
      Ruder, `Universal Language Model Fine-tuning for Text Classification
      <https://arxiv.org/abs/1801.06146>`_, 2018
    """
    steps = list(thaw_steps)
    if any(step < 0 for step in steps) or steps != sorted(steps):
        raise ValueError(
            f"thaw_steps must be 0 or more and must not decrease, got {steps}"
        )
    check_depth_fn(depth_fn)

    def partitioned(params: Any) -> optax.GradientTransformationExtraArgs:
        ranks, _, treedef = rank_leaves(params, depth_fn)
        transforms: dict[Hashable, optax.GradientTransformation] = {
            rank: tx if step == 0 else _from(tx, step)
            for rank, step in _thaw_steps(max(ranks, default=0), steps).items()
        }
        labels = [rank if rank in transforms else -1 for rank in ranks]
        return optax.partition(
            transforms | {-1: optax.set_to_zero()},
            jax.tree.unflatten(treedef, labels),
        )

    def init_fn(params: optax.Params) -> optax.OptState:
        return partitioned(params).init(params)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        # The updates have the same paths as the parameters.
        return partitioned(updates).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _from(
    tx: optax.GradientTransformation, thaw_step: int
) -> optax.GradientTransformationExtraArgs:
    def is_thawed_at(step: Any, **extra_args: Any) -> Any:
        return step >= thaw_step

    return optax.conditionally_mask(tx, is_thawed_at)


def _thaw_steps(top: int, steps: list[int]) -> dict[int, int]:
    """Finds the step at which each rank starts to train, if it ever does."""
    layers = max(top - 1, 0)
    if len(steps) > layers:
        raise ValueError(
            f"thaw_steps has {len(steps)} steps, but there are {layers} layers between "
            f"the heads and the embeddings"
        )
    depths = [*map(float, range(top)), math.inf]
    thaw_steps: dict[int, int] = {}
    for thawed_layers, step in enumerate([0, *steps]):
        for rank, depth in enumerate(depths):
            if is_thawed(depth, layers, thawed_layers):
                thaw_steps.setdefault(rank, step)
    return thaw_steps
