"""Weight decay towards the pretrained weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from cwgnc_jax._checks import check_nonnegative


def add_decayed_weights_towards(
    pretrained: Any,
    rate: ArrayLike,
    mask: Any | Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    r"""Adds to each update a multiple of the distance from the pretrained weights.

    .. math:: u_i + \text{rate} \, (w_i - w_i^{\text{pretrained}})

    Followed by a learning rate, this is decoupled weight decay that pulls the
    parameters towards the pretrained model instead of zero. With zeros for
    ``pretrained`` it is :func:`optax.add_decayed_weights`.

    Args:
      pretrained: A tree like the parameters. Under ``jax.jit`` pass it as an argument,
        so that it does not become a constant of the program.
      rate: A number of at least 0, or a scalar array, which may be traced.
      mask: A tree of booleans like the parameters, or a function that makes one from
        them, such as :func:`decay_mask`; False exempts a parameter.

    Returns:
      An :class:`optax.GradientTransformation` without state, whose ``update`` needs
      ``params``.

    Raises:
      TypeError: If ``rate`` is not a number.
      ValueError: If ``rate`` is negative; from ``init`` on if ``pretrained`` is not a
        tree like the parameters.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> tx = cwgnc_jax.add_decayed_weights_towards({"w": jnp.array([1.0])}, 0.1)
      >>> params = {"w": jnp.array([3.0])}
      >>> updates, _ = tx.update({"w": jnp.zeros(1)}, tx.init(params), params)
      >>> print(updates["w"])
      [0.2]

    References:
      Chelba and Acero, `Adaptation of Maximum Entropy Capitalizer
      <https://aclanthology.org/W04-3237>`_, 2004; Zhang et al., `Revisiting Few-sample
      BERT Fine-tuning <https://arxiv.org/abs/2006.05987>`_, 2021
    """
    check_nonnegative("rate", rate)

    def everywhere(leaf: Any) -> bool:
        return True

    def init_fn(params: optax.Params) -> optax.EmptyState:
        def shapes(tree: Any) -> Any:
            return jax.tree.map(jnp.shape, tree)

        if shapes(params) != shapes(pretrained):
            raise ValueError(
                "pretrained must be a tree like the parameters: the two differ in "
                "their structure or in the shape of a leaf"
            )
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError("add_decayed_weights_towards needs params in update")
        wanted = mask(params) if callable(mask) else mask
        if wanted is None:
            wanted = jax.tree.map(everywhere, params)

        def add(
            decayed: bool, update: jax.Array, param: jax.Array, target: jax.Array
        ) -> jax.Array:
            if not decayed:
                return update
            return (update + rate * (param - target)).astype(update.dtype)

        return jax.tree.map(add, wanted, updates, params, pretrained), state

    return optax.GradientTransformation(init_fn, update_fn)
