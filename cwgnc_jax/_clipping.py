"""Clipping the gradient norm of each component on its own."""

import math
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from cwgnc_jax._components import (
    ComponentFn,
    by_parameter,
    check_component_fn,
    check_components,
    label_leaves,
    ordered,
)


def component_clip_by_global_norm(
    max_norm: ArrayLike,
    component_fn: ComponentFn = by_parameter,
    *,
    eps: ArrayLike = 1e-6,
) -> optax.GradientTransformation:
    r"""Clips the norm of each component's updates on its own.

    The leaves :math:`g_1, \dots, g_n` of one component are scaled together by

    .. math::
      \min\left(1, \frac{\text{max\_norm}}{\|(g_1, \dots, g_n)\|_2 + \text{eps}}\right)

    while the other components keep their own scale. Put it before Adam: the clip acts
    on the moments through its variation over time, since Adam itself is indifferent to
    a factor that is constant.

    The norm is accumulated in float32; a leaf keeps its dtype and sharding. There is
    no state. A component whose norm is NaN becomes NaN, and one with an infinite norm
    becomes zero where it is finite and NaN elsewhere, as in torch; the other components
    are untouched by either.

    Args:
      max_norm: The largest norm a component may keep: a positive number, ``inf`` for
        no clipping, or a scalar array, which may be traced (swept by ``jax.vmap`` or
        injected by ``optax.inject_hyperparams(..., static_args="component_fn")``).
      component_fn: Maps a parameter's "/"-joined path to its component's name. The
        default, :func:`by_parameter`, is the paper's; with one component for
        everything this is :func:`optax.clip_by_global_norm`.
      eps: Added to the norm. ``1e-6`` is the rule of torch's ``clip_grad_norm_``, 0
        the exact clip.

    Returns:
      An :class:`optax.GradientTransformation`.

    Raises:
      TypeError: If ``max_norm`` or ``eps`` is no number, ``component_fn`` no function,
        or, from ``init`` on, if it returns no string.
      ValueError: If ``max_norm`` is not positive or ``eps`` negative; from ``init`` on
        if rules leave a parameter without a component or match none.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> params = {"loud": jnp.zeros(2), "quiet": jnp.zeros(2)}
      >>> grads = {"loud": jnp.array([3.0, 4.0]), "quiet": jnp.array([0.3, 0.4])}
      >>> tx = cwgnc_jax.component_clip_by_global_norm(1.0, eps=0)
      >>> updates, _ = tx.update(grads, tx.init(params))
      >>> print(updates["loud"], updates["quiet"])
      [0.6 0.8] [0.3 0.4]

      In front of an optimizer, with the paper's threshold:

      >>> tx = optax.chain(
      ...     cwgnc_jax.component_clip_by_global_norm(0.05), optax.adamw(2e-5)
      ... )
      >>> opt_state = tx.init(params)

    References:
      Yang and Ma, `Improving Stability of Fine-Tuning Pretrained Language Models via
      Component-Wise Gradient Norm Clipping
      <https://aclanthology.org/2022.emnlp-main.322>`_, 2022, section 3

    .. seealso:: :func:`component_norms`, :func:`cwgnc_adamw`.
    """
    _check_scalar("max_norm", max_norm)
    _check_scalar("eps", eps)
    if _is_known(max_norm) and not max_norm > 0:
        raise ValueError(
            f"max_norm must be positive, or inf for no clipping; got {max_norm}"
        )
    if _is_known(eps) and not 0 <= eps < math.inf:
        raise ValueError(f"eps must be 0 or a small positive number, got {eps}")
    check_component_fn(component_fn)

    def init_fn(params):
        check_components(params, component_fn)
        return optax.EmptyState()

    def update_fn(updates, state, params=None):
        del params
        names, leaves, treedef = label_leaves(updates, component_fn)
        factors = {
            name: _clip_factor(norm, max_norm, eps)
            for name, norm in _norms(names, leaves).items()
        }
        clipped = [
            (leaf * factors[name]).astype(jnp.result_type(leaf))
            for name, leaf in zip(names, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, clipped), state

    return optax.GradientTransformation(init_fn, update_fn)


def component_norms(
    updates: Any, component_fn: ComponentFn = by_parameter
) -> OrderedDict[str, jax.Array]:
    r"""Computes the norm of each component.

    The norm of a component with leaves :math:`g_1, \dots, g_n` is
    :math:`\sqrt{\sum_i \|g_i\|_2^2}`, accumulated in float32 whatever the dtype of the
    leaves.

    Args:
      updates: Gradients, updates or parameters: any tree of arrays.
      component_fn: Maps a parameter's "/"-joined path to its component's name.

    Returns:
      Component name to norm, a float32 scalar; layer 10 comes after layer 2, inside
      ``jax.jit`` and out of it.

    Raises:
      TypeError: If ``component_fn`` is no function from a string to a string.
      ValueError: If rules leave a parameter without a component.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> grads = {"dense": {"kernel": jnp.array([[3.0]]), "bias": jnp.array([4.0])}}
      >>> norms = cwgnc_jax.component_norms(grads, cwgnc_jax.by_module)
      >>> {name: float(norm) for name, norm in norms.items()}
      {'dense': 5.0}

      Inside a chain, as seen by the clip (``optax.snapshot`` keeps the last value):

      >>> import optax
      >>> tx = optax.chain(
      ...     optax.snapshot("norms", cwgnc_jax.component_norms),
      ...     cwgnc_jax.component_clip_by_global_norm(0.05),
      ...     optax.adam(1e-3),
      ... )
      >>> _, opt_state = tx.update(grads, tx.init(grads))
      >>> float(optax.tree_utils.tree_get(opt_state, "norms")["dense/bias"])
      4.0
    """
    check_component_fn(component_fn)
    names, leaves, _ = label_leaves(updates, component_fn)
    return _norms(names, leaves)


def _norms(names: list[str], leaves: list[Any]) -> OrderedDict[str, jax.Array]:
    squares = OrderedDict.fromkeys(ordered(names), jnp.zeros((), jnp.float32))
    for name, leaf in zip(names, leaves, strict=True):
        squares[name] = squares[name] + _squared_norm(leaf)
    return OrderedDict((name, jnp.sqrt(square)) for name, square in squares.items())


def _squared_norm(leaf: ArrayLike) -> jax.Array:
    leaf = jnp.asarray(leaf)
    parts = [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
    return sum(jnp.sum(jnp.square(part.astype(jnp.float32))) for part in parts)  # type: ignore


def _clip_factor(norm: jax.Array, max_norm: ArrayLike, eps: ArrayLike) -> jax.Array:
    max_norm = jnp.asarray(max_norm, jnp.float32)
    # The larger of the two in the denominator is min(1, .) without a division by 0.
    factor = max_norm / jnp.maximum(norm + eps, max_norm)
    return jnp.where(jnp.isinf(max_norm), 1.0, factor)


def _check_scalar(argument: str, value: Any) -> None:
    number = not isinstance(value, (bool, str, bytes)) and value is not None
    if number:
        try:
            dtype, shape = jnp.result_type(value), jnp.shape(value)
        except TypeError:
            number = False
        else:
            number = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(
                dtype, jnp.integer
            )
            if number and shape != ():
                raise ValueError(
                    f"{argument} must be a scalar, got an array of shape {shape}"
                )
    if not number:
        raise TypeError(f"{argument} must be a real number, got {value!r}")


def _is_known(value: ArrayLike) -> bool:
    return not isinstance(value, jax.core.Tracer)
