"""The norms of components, on one device or sharded over several."""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp

from cwgnc_jax._assignment import Assignment, Part, StackedAxes, assign
from cwgnc_jax._components import ComponentFn

if TYPE_CHECKING:
    from jaxtyping import Float, Num

AxisName = str | Sequence[str]
"""The mesh axis or axes over which leaves are sharded; ``()`` for none."""


def component_norms(
    updates: Any,
    component_fn: ComponentFn | None = None,
    *,
    stacked_axes: StackedAxes | None = None,
    axis_name: AxisName | None = None,
) -> OrderedDict[str, Float[jax.Array, ""]]:
    r"""Computes the norm of each component.

    The norm of a component with leaves :math:`g_1, \dots, g_n` is
    :math:`\sqrt{\sum_i \|g_i\|_2^2}`, accumulated in float32, or in float64 for leaves
    of that dtype.

    Args:
      updates: Gradients, updates or parameters: any tree of arrays.
      component_fn: Maps a parameter's "/"-joined path to its component's name; None is
        :func:`by_parameter`.
      stacked_axes: For leaves that hold several layers; see
        :func:`component_clip_by_global_norm`.
      axis_name: The mesh axes over which leaves are sharded inside ``jax.shard_map``;
        see :func:`component_clip_by_global_norm`.

    Returns:
      The norm of each component by name. Layer 10 comes after layer 2, also in what
      ``jax.jit`` returns.

    Raises:
      TypeError: If ``component_fn`` is not a function from a string to a string.
      ValueError: If rules leave a parameter without a component, or a leaf is sharded
        inside ``jax.shard_map`` and ``axis_name`` is None.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> grads = {"dense": {"kernel": jnp.array([[3.0]]), "bias": jnp.array([4.0])}}
      >>> norms = cwgnc_jax.component_norms(grads, cwgnc_jax.by_module)
      >>> {name: float(norm) for name, norm in norms.items()}
      {'dense': 5.0}

      In a chain, where ``optax.snapshot`` keeps the norms that reach the clip:

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
    assigned = assign(updates, component_fn, stacked_axes)
    (squares,) = squared_norms([assigned], axis_name)
    present = assigned.present()
    norms = roots([squares[i] for i in present])
    return OrderedDict((assigned.names[i], norms[row]) for row, i in enumerate(present))


@jax.named_scope("component_norms")
def squared_norms(
    trees: list[Assignment], axis_name: AxisName | None
) -> list[list[Float[jax.Array, ""]]]:
    """Computes the components' squared norms, with at most one collective."""
    squares = [_own_squares(tree, axis_name) for tree in trees]
    flat = [square for tree in squares for square in tree]
    if axis_name and flat:
        flat = jnp.unstack(cast(jax.Array, jax.lax.psum(jnp.stack(flat), axis_name)))
    rest = iter(flat)
    return [[next(rest) for _ in tree] for tree in squares]


def roots(squares: Sequence[Float[jax.Array, ""]]) -> Float[jax.Array, " components"]:
    """Takes all roots as one array, for which an accelerator has one kernel."""
    return jnp.sqrt(jnp.stack(squares)) if squares else jnp.zeros(0, jnp.float32)


def wide_dtype(dtype: Any) -> Any:
    """Returns the dtype in which leaves are computed with: float32 or their own."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def shards(leaf: Any, axis_name: AxisName | None) -> int:
    """Counts the shards of a leaf over the devices of these axes."""
    axes = _axes(axis_name)
    # Without check_vma the types say nothing, and every leaf counts as sharded.
    if axes and varying(jax.lax.axis_index(axes)):
        axes = tuple(axis for axis in axes if axis in varying(leaf))
    return math.prod(jax.lax.axis_size(axis) for axis in axes)


def varying(leaf: Any) -> frozenset[str]:
    """Reads from a leaf's type the manual mesh axes over which it varies."""
    manual = getattr(jax.typeof(leaf), "manual_axis_type", None)
    return getattr(manual, "varying", frozenset())


def _own_squares(
    tree: Assignment, axis_name: AxisName | None
) -> list[Float[jax.Array, ""]]:
    squares: list[list[jax.Array]] = [[] for _ in tree.names]
    for part in tree.parts:
        _check_whole(part, axis_name)
    whole = iter(_squared_norms([x.leaf for x in tree.parts if x.axis is None]))
    for part in tree.parts:
        if part.axis is None:
            square = next(whole)
        else:
            square = cast(jax.Array, _square(part.leaf, part.axis))
        if axis_name:
            # The sum over the axes counts each copy of a replicated leaf.
            devices = math.prod(map(jax.lax.axis_size, _axes(axis_name)))
            square = square / (devices // shards(part.leaf, axis_name))
        layers = [square] if part.axis is None else jnp.unstack(square)
        for component, layer in zip(part.components, layers, strict=True):
            squares[component].append(layer)
    nothing = jnp.zeros((), jnp.float32)
    return [functools.reduce(jnp.add, own) if own else nothing for own in squares]


def _squared_norms(leaves: list[jax.Array]) -> list[Float[jax.Array, ""]]:
    """Computes the squared norm of each leaf, in a way that suits the platform."""
    # Leaves that are stacked count as varying over the mesh axes of any of them.
    if not leaves or len(set(map(varying, leaves))) > 1:
        return one_by_one(leaves)
    found = jax.lax.platform_dependent(leaves, cpu=one_by_one, default=shape_by_shape)
    return cast(list[jax.Array], found)


def one_by_one(leaves: list[jax.Array]) -> list[Float[jax.Array, ""]]:
    """Sums the squares of each leaf: on a CPU no gradient waits for another."""
    return [_square(leaf, None) for leaf in leaves]


def shape_by_shape(leaves: list[jax.Array]) -> list[Float[jax.Array, ""]]:
    """Sums the squares of all leaves of a shape together.

    An accelerator has one kernel for all biases of a length; a matrix has one for its
    rows, whose sums are then added together with those of the matrices like it.
    """
    alike: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        alike.setdefault((jnp.shape(leaf), jnp.result_type(leaf)), []).append(i)
    squares: dict[int, jax.Array] = {}
    for (shape, dtype), numbers in alike.items():
        if len(shape) > 1 or jnp.issubdtype(dtype, jnp.complexfloating):
            rows = [cast(jax.Array, _square(leaves[i], 0)) for i in numbers]
            sums = jnp.sum(jnp.stack(rows), axis=range(1, rows[0].ndim + 1))
        else:
            sums = _square(jnp.stack([leaves[i] for i in numbers]), 0)
        own = jnp.unstack(cast(jax.Array, sums))
        squares |= zip(numbers, own, strict=True)
    return [squares[i] for i in range(len(leaves))]


# Jitted, so that it is traced once for all leaves of a shape.
@functools.partial(jax.jit, static_argnums=1)
def _square(leaf: Num[jax.Array, ...], axis: int | None) -> Float[jax.Array, "*layers"]:
    reduced = None if axis is None else [i for i in range(leaf.ndim) if i != axis]
    pieces = [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
    dtype = wide_dtype(pieces[0].dtype)
    return jnp.asarray(
        sum(jnp.sum(jnp.square(piece.astype(dtype)), reduced) for piece in pieces)
    )


def _check_whole(part: Part, axis_name: AxisName | None) -> None:
    if axis_name is None and (over := sorted(varying(part.leaf))):
        axes = over[0] if len(over) == 1 else tuple(over)
        raise ValueError(
            f"{part.path!r} is sharded over the mesh axis {axes!r} inside "
            f"jax.shard_map, where each device sees only the norm of its shard. Pass "
            f"axis_name={axes!r} to sum over the axis, or axis_name=() if each device "
            f"holds components of its own. (With check_vma=False this cannot be seen, "
            f"and each device clips by the norms of its shards.)"
        )


def _axes(axis_name: AxisName | None) -> tuple[str, ...]:
    return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())
