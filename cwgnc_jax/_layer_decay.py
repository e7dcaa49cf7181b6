"""Smaller learning rates for lower layers."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from cwgnc_jax._checks import check_factor, check_inexact
from cwgnc_jax._depth import DepthFn, check_depths, depths
from cwgnc_jax._norms import wide_dtype
from cwgnc_jax._tree_paths import places


def scale_by_layer_decay(
    decay: ArrayLike,
    depth_fn: DepthFn | None = None,
    *,
    num_layers: int | None = None,
) -> optax.GradientTransformation:
    r"""Scales updates by a factor that falls with the distance from the output.

    In an encoder with L layers an update of depth d is multiplied by

    .. math:: \text{decay}^{\max(L + 1 - d, 0)}

    so the heads keep their learning rate, that of layer i, counted from 0, is
    multiplied by :math:`\text{decay}^{L - i}`, and that of the embeddings by
    :math:`\text{decay}^{L + 1}`. Put it after Adam, which would cancel constant
    factors.

    Args:
      decay: The factor from one depth to the next lower one, in (0, 1]: a number, or a
        scalar array, which may be traced.
      depth_fn: Maps a parameter's "/"-joined path to its depth: 0 for the embeddings,
        1 to L for the layers, more for the heads. None is :func:`encoder_depth`.
      num_layers: The number L. None reads the largest finite depth from the tree, where
        parameters hidden by ``optax.masked`` count too. Give it where one entry of a
        mask hides several layers, where a part of the model is not in the tree at all,
        or where the heads have a finite depth.

    Returns:
      An :class:`optax.GradientTransformation` without state.

    Raises:
      TypeError: If ``decay`` is not a number or ``depth_fn`` not a function; from
        ``init`` on if ``depth_fn`` does not return a number or a leaf is an integer.
      ValueError: If ``decay`` lies outside (0, 1] or ``num_layers`` is negative; from
        ``init`` on if the number of layers is hidden.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> params = {"embeddings": jnp.ones(1), "layer_0": jnp.ones(1),
      ...           "layer_1": jnp.ones(1), "classifier": jnp.ones(1)}
      >>> tx = cwgnc_jax.scale_by_layer_decay(0.5)
      >>> updates, _ = tx.update(params, tx.init(params))
      >>> {name: float(update[0]) for name, update in updates.items()}
      {'classifier': 1.0, 'embeddings': 0.125, 'layer_0': 0.25, 'layer_1': 0.5}

    References:
      Zhang et al., `Revisiting Few-sample BERT Fine-tuning
      <https://arxiv.org/abs/2006.05987>`_, 2021
    """
    check_factor("decay", decay)
    check_depths(depth_fn, num_layers)

    def factors(tree: optax.Params) -> list[ArrayLike]:
        found, layers = depths(tree, depth_fn, num_layers)
        return [decay ** max(layers + 1 - depth, 0.0) for depth in found]

    def init_fn(params: optax.Params) -> optax.EmptyState:
        check_inexact(places(params).leaves)
        factors(params)
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        leaves = jax.tree.leaves(updates)
        treedef: Any = jax.tree.structure(updates)
        scaled = [
            _scaled(jnp.asarray(leaf), factor)
            for leaf, factor in zip(leaves, factors(updates), strict=True)
        ]
        return jax.tree.unflatten(treedef, scaled), state

    return optax.GradientTransformation(init_fn, update_fn)


def _scaled(leaf: jax.Array, factor: ArrayLike) -> jax.Array:
    return (leaf.astype(wide_dtype(leaf.dtype)) * factor).astype(leaf.dtype)
