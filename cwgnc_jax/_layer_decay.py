"""Smaller learning rates for lower layers."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from cwgnc_jax._checks import check_factor
from cwgnc_jax._depth import DepthFn, check_depth_fn, encoder_depth, rank_leaves


def scale_by_layer_decay(
    decay: ArrayLike, depth_fn: DepthFn = encoder_depth
) -> optax.GradientTransformation:
    r"""Scales updates by a factor that falls with the distance from the output.

    An update of the k-th depth from the top, counted from 0, is multiplied by

    .. math:: \text{decay}^k

    In an encoder with L layers the heads keep their learning rate; that of layer i,
    counted from 0, is multiplied by :math:`\text{decay}^{L - i}` and that of the
    embeddings by :math:`\text{decay}^{L + 1}`. Put it after Adam, which would cancel
    constant factors.

    Args:
      decay: The factor from one depth to the next lower one, in (0, 1]: a number, or a
        scalar array, which may be traced.
      depth_fn: Maps a parameter's "/"-joined path to its depth, a number that rises
        from input to output; parameters of equal depth share a factor.

    Returns:
      An :class:`optax.GradientTransformation` without state.

    Raises:
      TypeError: If ``decay`` is not a number or ``depth_fn`` not a function; from
        ``init`` on if ``depth_fn`` does not return a number.
      ValueError: If ``decay`` lies outside (0, 1].

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
    check_depth_fn(depth_fn)

    def init_fn(params: optax.Params) -> optax.EmptyState:
        rank_leaves(params, depth_fn)
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        ranks, leaves, treedef = rank_leaves(updates, depth_fn)
        top = max(ranks, default=0)
        scaled = [
            (leaf * decay ** (top - rank)).astype(jnp.result_type(leaf))
            for rank, leaf in zip(ranks, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, scaled), state

    return optax.GradientTransformation(init_fn, update_fn)
