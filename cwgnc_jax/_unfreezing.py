"""Gradual unfreezing, in which layers start to train one by one from the top."""

import numbers
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import optax

from cwgnc_jax._checks import check_transformation
from cwgnc_jax._depth import DepthFn, check_depths, depths, is_thawed
from cwgnc_jax._rules import is_list


def gradual_unfreezing(
    tx: optax.GradientTransformation,
    depth_fn: DepthFn | None = None,
    thaw_steps: Sequence[int] = (0,),
    *,
    num_layers: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Applies an optimizer to more and more layers, from the output to the input.

    The heads train from the start. The top layer joins at step ``thaw_steps[0]``, the
    one below it at ``thaw_steps[1]``, and so on. The embeddings join together with the
    lowest layer. Layers without a step stay frozen. :func:`thawed` is the same rule for
    a single path.

    While a layer is frozen, its updates are exactly zero and its optimizer state keeps
    its initial value, so that schedules and bias corrections of ``tx`` count from the
    step at which the layer thaws.

    ``tx`` acts on the heads, on each layer and on the embeddings separately. A
    component of the clip that joins parameters of several of these would be split; the
    paper's components, of one parameter each, are not affected.

    The gradients of frozen parameters are still computed, unless the loss stops them.

    Args:
      tx: The whole optimizer, including the learning rate.
      depth_fn: Maps a parameter's "/"-joined path to its depth: 0 for the embeddings,
        1 to L for the layers, more for the heads. None is :func:`encoder_depth`.
      thaw_steps: The step, counted from 0, at which each layer starts to train, from
        the top layer down; must not decrease.
      num_layers: The number L; None reads it from the tree, as
        :func:`scale_by_layer_decay` does.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs`.

    Raises:
      TypeError: If ``tx`` is not a transformation, ``depth_fn`` is not a function or
        ``thaw_steps`` is not a list of ints; from ``init`` on if it does not
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
    check_transformation("tx", tx)
    steps = _checked_steps(thaw_steps)
    if any(step < 0 for step in steps) or steps != sorted(steps):
        raise ValueError(
            f"thaw_steps must be 0 or more and must not decrease, got {steps}"
        )
    check_depths(depth_fn, num_layers)
    # One group for each number of thawed layers with which it starts to train.
    transforms: dict[Hashable, optax.GradientTransformation] = {
        thawed_layers: _from(tx, step) if step else tx
        for thawed_layers, step in enumerate([0, *steps])
    }
    transforms[_EMBEDDINGS] = transforms[len(steps)]
    transforms[_FROZEN] = optax.set_to_zero()

    def labels(params: Any) -> Any:
        found, layers = depths(params, depth_fn, num_layers)
        if found and len(steps) > layers:
            raise ValueError(
                f"thaw_steps has {len(steps)} steps, but there are {layers} layers "
                f"between the heads and the embeddings"
            )
        groups = [_group(depth, layers, len(steps)) for depth in found]
        treedef: Any = jax.tree.structure(params)
        return jax.tree.unflatten(treedef, groups)

    def partitioned(params: Any) -> optax.GradientTransformationExtraArgs:
        # As a function, since a tree of labels may be callable itself.
        found = labels(params)
        return optax.partition(transforms, lambda _: found)

    def init_fn(params: optax.Params) -> optax.OptState:
        return partitioned(params).init(params)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        # Where updates are None parameters need a label.
        tree = updates if params is None else params
        return partitioned(tree).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _checked_steps(thaw_steps: Any) -> list[int]:
    if not is_list(thaw_steps) or not all(
        not isinstance(step, bool) and isinstance(step, numbers.Integral)
        for step in thaw_steps
    ):
        raise TypeError(
            f"thaw_steps must be a list of steps, which are ints, got {thaw_steps!r}"
        )
    return [int(step) for step in thaw_steps]


_EMBEDDINGS, _FROZEN = -1, -2


def _group(depth: float, num_layers: int, most: int) -> int:
    """Finds the smallest number of thawed layers with which a depth trains."""
    for thawed_layers in range(most + 1):
        if is_thawed(depth, num_layers, thawed_layers):
            with_a_layer = thawed_layers > 0 and depth <= num_layers - thawed_layers
            return _EMBEDDINGS if with_a_layer else thawed_layers
    return _FROZEN


def _from(
    tx: optax.GradientTransformation, thaw_step: int
) -> optax.GradientTransformationExtraArgs:
    def is_thawed_at(step: Any, **extra_args: Any) -> Any:
        return step >= thaw_step

    return optax.conditionally_mask(tx, is_thawed_at)
