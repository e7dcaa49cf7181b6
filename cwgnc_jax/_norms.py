"""The norms of components, also of ones that are spread over devices."""

import functools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cwgnc_jax._assignment import (
    Part,
    StackedAxes,
    assign,
    component_names,
)
from cwgnc_jax._components import ComponentFn, by_parameter, check_component_fn

AxisName = str | Sequence[str]
"""One or several mesh axes over which leaves are sharded; none is ``()``."""


def component_norms(
    updates: Any,
    component_fn: ComponentFn = by_parameter,
    *,
    stacked_axes: StackedAxes | None = None,
    axis_name: AxisName | None = None,
) -> OrderedDict[str, jax.Array]:
    r"""Computes the norm of each component.

    The norm of a component with leaves :math:`g_1, \dots, g_n` is
    :math:`\sqrt{\sum_i \|g_i\|_2^2}`, accumulated in float32 whatever the dtype of the
    leaves.

    Args:
      updates: Gradients, updates or parameters: any tree of arrays.
      component_fn: Maps a parameter's "/"-joined path to its component's name.
      stacked_axes: Where leaves hold several layers; see
        :func:`component_clip_by_global_norm`.
      axis_name: The mesh axes over which leaves are sharded inside ``jax.shard_map``;
        see :func:`component_clip_by_global_norm`.

    Returns:
      Component name to norm, a float32 scalar; layer 10 comes after layer 2, inside
      ``jax.jit`` and out of it.

    Raises:
      TypeError: If ``component_fn`` is no function from a string to a string.
      ValueError: If rules leave a parameter without a component, or a leaf is sharded
        inside ``jax.shard_map`` and there is no ``axis_name``.

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
    parts, _ = assign(updates, component_fn, stacked_axes)
    (norms,) = norms_of([parts], axis_name)
    return norms


def norms_of(
    trees: list[list[Part]], axis_name: AxisName | None
) -> list[OrderedDict[str, jax.Array]]:
    """The norms of several trees' components, by one collective at most."""
    squares = [_squares(parts, axis_name) for parts in trees]
    flat = [square for tree in squares for square in tree.values()]
    if axis_name and flat:
        flat = jnp.unstack(jax.lax.psum(jnp.stack(flat), axis_name))
    rest = iter(flat)
    return [
        OrderedDict((name, jnp.sqrt(next(rest))) for name in tree) for tree in squares
    ]


def shards(leaf: Any, axis_name: AxisName | None) -> int:
    """Into how many shards the devices of these axes cut the leaf."""
    axes = _axes(axis_name)
    # Without check_vma there are no types to tell by, and all count as sharded.
    if axes and _varying(jax.lax.axis_index(axes)):
        axes = tuple(axis for axis in axes if axis in _varying(leaf))
    return math.prod(jax.lax.axis_size(axis) for axis in axes)


def _squares(
    parts: list[Part], axis_name: AxisName | None
) -> OrderedDict[str, jax.Array]:
    squares = OrderedDict.fromkeys(component_names(parts), jnp.zeros((), jnp.float32))
    for part in parts:
        _check_whole(part, axis_name)
        square = _squared_norm(part.leaf, part.axis)
        if axis_name:
            # The sum over the axis counts a copy on every device.
            devices = math.prod(map(jax.lax.axis_size, _axes(axis_name)))
            square = square / (devices // shards(part.leaf, axis_name))
        layers = [square] if part.axis is None else jnp.unstack(square)
        for name, layer in zip(part.names, layers, strict=True):
            squares[name] = squares[name] + layer
    return squares


# Jitted, so that it is traced once for all leaves of a shape.
@functools.partial(jax.jit, static_argnums=1)
def _squared_norm(leaf: ArrayLike, axis: int | None) -> jax.Array:
    reduced = None if axis is None else [i for i in range(leaf.ndim) if i != axis]
    pieces = [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
    return sum(
        jnp.sum(jnp.square(piece.astype(jnp.float32)), reduced) for piece in pieces
    )  # type: ignore


def _check_whole(part: Part, axis_name: AxisName | None) -> None:
    if axis_name is None and (varying := sorted(_varying(part.leaf))):
        axes = varying[0] if len(varying) == 1 else tuple(varying)
        raise ValueError(
            f"{part.path!r} is sharded over the mesh axis {axes!r} inside "
            f"jax.shard_map, where a device knows only its shard's norm. Pass "
            f"axis_name={axes!r} to sum over the axis, or axis_name=() if each device "
            f"holds components of its own."
        )


def _axes(axis_name: AxisName | None) -> tuple[str, ...]:
    return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())


def _varying(leaf: Any) -> frozenset[str]:
    """The manual mesh axes over which a leaf varies, as far as check_vma tells."""
    manual = getattr(jax.typeof(leaf), "manual_axis_type", None)
    return getattr(manual, "varying", frozenset())
