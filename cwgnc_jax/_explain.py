"""A table of the components of a model."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from cwgnc_jax._assignment import StackedAxes, assign
from cwgnc_jax._components import ComponentFn


class ComponentRow(NamedTuple):
    """A component and its leaves."""

    name: str
    size: int
    """The number of its elements."""

    paths: tuple[str, ...]
    """The paths of its leaves; one that holds several layers may be in several rows."""

    shapes: tuple[tuple[int, ...], ...]
    """The shape of each leaf, or of one layer in it."""


class ComponentTable(tuple[ComponentRow, ...]):
    """The rows of all components, which print as a plain table."""

    def __str__(self) -> str:
        lines = [("component", "size", "parameter", "shape")]
        for row in self:
            name, size = row.name, f"{row.size:,}"
            for path, shape in zip(row.paths, row.shapes, strict=True):
                lines.append((name, size, path, str(shape)))
                name = size = ""
        total = sum(row.size for row in self)
        lines.append((f"{len(self)} in all", f"{total:,}", "", ""))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table: list[str] = []
        for name, size, path, shape in lines:
            cells = (
                name.ljust(widths[0]),
                size.rjust(widths[1]),
                path.ljust(widths[2]),
            )
            table.append("  ".join((*cells, shape)).rstrip())
        return "\n".join(table)


def explain(
    params: Any,
    component_fn: ComponentFn | None = None,
    *,
    stacked_axes: StackedAxes | None = None,
) -> ComponentTable:
    """Lists the components of a model with their leaves, shapes and sizes.

    Args:
      params: A parameter tree. The leaves need only a shape, so the result of
        ``jax.eval_shape`` works too.
      component_fn: Maps a path to its component's name; None is :func:`by_parameter`.
      stacked_axes: For leaves that hold several layers; see
        :func:`component_clip_by_global_norm`.

    Returns:
      A row for each component, with layer 10 after layer 2. It prints as a table.

    Raises:
      TypeError: If ``component_fn`` is not a function from a string to a string.
      ValueError: If rules leave a parameter without a component, or a rule matches no
        parameter.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> params = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
      >>> table = cwgnc_jax.explain(params, cwgnc_jax.by_module)
      >>> table[0].size
      8
      >>> print(table)
      component  size  parameter     shape
      dense         8  dense/bias    (2,)
                       dense/kernel  (3, 2)
      1 in all      8
    """
    assigned = assign(params, component_fn, stacked_axes, check=True)
    sizes = assigned.sizes()
    leaves: dict[int, tuple[list[str], list[tuple[int, ...]]]] = {
        i: ([], []) for i in assigned.present()
    }
    for part in assigned.parts:
        shape = list(jnp.shape(part.leaf))
        if part.axis is not None:
            del shape[part.axis]
        for component in dict.fromkeys(part.components):
            paths, shapes = leaves[component]
            paths.append(part.path)
            shapes.append(tuple(shape))
    return ComponentTable(
        ComponentRow(assigned.names[i], sizes[i], tuple(paths), tuple(shapes))
        for i, (paths, shapes) in leaves.items()
    )
