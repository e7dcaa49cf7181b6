"""Weight decay towards the pretrained weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from cwgnc_jax._checks import check_inexact, check_nonnegative
from cwgnc_jax._messages import listed
from cwgnc_jax._tree_paths import places


def add_decayed_weights_towards(
    pretrained: Any | None,
    rate: ArrayLike,
    mask: Any | Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    r"""Adds to each update a multiple of the distance from the pretrained weights.

    .. math:: u_i + \text{rate} \, (w_i - w_i^{\text{pretrained}})

    Followed by a learning rate, this is decoupled weight decay that pulls the
    parameters towards the pretrained model instead of zero. With None for
    ``pretrained`` it pulls towards zero as :func:`optax.add_decayed_weights` does.

    Args:
      pretrained: A tree with the paths and shapes of the parameters, and others if
        ``optax.masked`` or ``optax.partition`` hides some of the parameters. Under
        ``jax.jit`` pass it as an argument, so that it does not become a constant of the
        program. None stands for zeros.
      rate: A number of at least 0, or a scalar array, which may be traced.
      mask: A tree of booleans like the parameters, or a function that makes one from
        them, such as :func:`decay_mask`; False exempts a parameter.

    Returns:
      An :class:`optax.GradientTransformation` without state, whose ``update`` needs
      ``params``.

    Raises:
      TypeError: If ``rate`` is not a number.
      ValueError: If ``rate`` is negative; from ``init`` on if ``pretrained`` lacks a
        parameter, has another shape, or has others while none is masked.

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

    targets = _by_path(pretrained)

    def init_fn(params: optax.Params) -> optax.EmptyState:
        found = places(params)
        check_inexact(found.leaves)
        if pretrained is not None:
            _check_like(targets, dict(found.leaves), whole=not found.masked)
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError("add_decayed_weights_towards needs params in update")
        weights = _by_path(params)
        # A tree may be callable itself, as the modules of Equinox are.
        if callable(mask) and jax.tree_util.all_leaves([mask]):
            decays = _by_path(mask(params))
        else:
            decays = _by_path(mask)
        treedef: Any = jax.tree.structure(updates)

        def add(path: str, update: jax.Array) -> jax.Array:
            if mask is not None and not _covering(decays, path):
                return update
            distance = weights[path] - targets.get(path, 0.0)
            return (update + rate * distance).astype(update.dtype)

        return jax.tree.unflatten(
            treedef, [add(*leaf) for leaf in places(updates).leaves]
        ), state

    return optax.GradientTransformation(init_fn, update_fn)


def _by_path(tree: Any) -> dict[str, Any]:
    return dict(places(tree).leaves)


def _check_like(
    targets: dict[str, Any], params: dict[str, Any], *, whole: bool
) -> None:
    start = "pretrained must be a tree like the parameters, but"
    for path, leaf in params.items():
        if path not in targets:
            raise ValueError(f"{start} lacks {path!r}")
        if (shape := jnp.shape(targets[path])) != jnp.shape(leaf):
            raise ValueError(
                f"{start} its {path!r} has the shape {shape} in place of "
                f"{jnp.shape(leaf)}"
            )
    if params and whole and (more := targets.keys() - params.keys()):
        raise ValueError(f"{start} has {listed(sorted(more))} in addition")


def _covering(decays: dict[str, Any], path: str) -> bool:
    """Finds a path's value in a mask, where one may stand for a whole subtree."""
    above = path
    while above not in decays and above:
        above = above.rpartition("/")[0]
    if not isinstance(decays.get(above), bool | np.bool_):
        raise TypeError(
            f"mask must be a tree of True and False like the parameters, or a function "
            f"that makes one, but for {path!r} it has {decays.get(above)!r}"
        )
    return bool(decays[above])
