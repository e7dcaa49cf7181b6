"""Gradual unfreezing: layers start to train one after the other, from the top."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from cwgnc_jax._depth import DepthFn, check_depth_fn, encoder_depth, rank_leaves


def gradual_unfreezing(
    tx: optax.GradientTransformation,
    depth_fn: DepthFn = encoder_depth,
    thaw_steps: Sequence[int] = (0,),
) -> optax.GradientTransformationExtraArgs:
    """Applies an optimizer to more and more layers, from the output to the input.

    The highest depth (the heads) trains from the start. The depth below it joins at
    step ``thaw_steps[0]``, the next at ``thaw_steps[1]`` and so on; the lowest one (the
    embeddings) joins together with the last layer above it, and layers without a step
    stay frozen. While a depth is frozen its updates are exactly zero and its optimizer
    state stays as it was initialised, so that schedules and bias corrections of ``tx``
    count from the step at which the depth thaws.

    ``tx`` acts on each depth apart. A component of the clip that joins parameters of
    several depths would be split; those of the paper, one parameter each, are not.

    Frozen gradients are computed all the same unless the loss stops them.

    Args:
      tx: The whole optimizer, the learning rate included.
      depth_fn: Maps a parameter's "/"-joined path to its depth, a number that rises
        from input to output.
      thaw_steps: For each layer from the top the step, counted from 0, at which it
        starts to train; must not fall.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs`.

    Raises:
      TypeError: If ``depth_fn`` is no function, or, from ``init`` on, returns no
        number.
      ValueError: If the steps are not rising; from ``init`` on if there are more steps
        than layers.

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
        raise ValueError(f"thaw_steps must be 0 or more and must not fall, got {steps}")
    check_depth_fn(depth_fn)

    def partitioned(params: Any) -> optax.GradientTransformationExtraArgs:
        ranks, _, treedef = rank_leaves(params, depth_fn)
        transforms = {
            rank: tx if step == 0 else _from(tx, step)
            for rank, step in _thaw_steps(max(ranks, default=0), steps).items()
        }
        labels = [rank if rank in transforms else -1 for rank in ranks]
        return optax.partition(
            transforms | {-1: optax.set_to_zero()},
            jax.tree.unflatten(treedef, labels),
        )

    def init_fn(params):
        return partitioned(params).init(params)

    def update_fn(updates, state, params=None, **extra_args):
        # The layout is read from the updates, which have the parameters' paths.
        return partitioned(updates).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _from(tx: optax.GradientTransformation, step: int):
    return optax.conditionally_mask(tx, lambda count: count >= step)


def _thaw_steps(top: int, steps: list[int]) -> dict[int, int]:
    """The step at which each rank that ever trains starts to."""
    layers = max(top - 1, 0)
    if len(steps) > layers:
        raise ValueError(
            f"thaw_steps has {len(steps)} steps, but there are {layers} layers between "
            f"the heads and the embeddings"
        )
    thawed = {top: 0} | {top - 1 - i: step for i, step in enumerate(steps)}
    if len(steps) == layers:
        thawed[0] = steps[-1] if steps else 0
    return thawed
