"""The assignment of leaves, and of the layers in them, to components."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike

from cwgnc_jax._components import (
    ComponentFn,
    by_parameter,
    check_all_used,
    check_component_fn,
    label_paths,
    ordered,
)
from cwgnc_jax._rules import FirstMatch
from cwgnc_jax._tree_paths import flatten_with_paths

StackedAxes = Mapping[str, int]
"""Maps a pattern for a module's path to the axis of its leaves that counts layers."""


class Part(NamedTuple):
    """A leaf and its component, or if it holds several layers, one for each layer."""

    path: str
    leaf: Any
    names: list[str]
    axis: int | None


def component_sizes(
    tree: Any,
    component_fn: ComponentFn = by_parameter,
    *,
    stacked_axes: StackedAxes | None = None,
) -> OrderedDict[str, int]:
    """Counts the elements of each component.

    Args:
      tree: Parameters or updates. The leaves need only a shape, so the result of
        ``jax.eval_shape`` works too.
      component_fn: Maps a path to its component's name.
      stacked_axes: For leaves that hold several layers; see
        :func:`component_clip_by_global_norm`.

    Returns:
      The number of elements of each component by name, with layer 10 after layer 2.

    Raises:
      TypeError: If ``component_fn`` is not a function from a string to a string.
      ValueError: If rules leave a parameter without a component.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> params = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
      >>> dict(cwgnc_jax.component_sizes(params, cwgnc_jax.by_module))
      {'dense': 8}
    """
    check_component_fn(component_fn)
    parts, _ = assign(tree, component_fn, stacked_axes)
    return sizes_of(parts)


def sizes_of(
    parts: list[Part], shards: Callable[[Any], int] = lambda leaf: 1
) -> OrderedDict[str, int]:
    """Counts the elements of each component; a leaf may be one of several shards."""
    sizes = OrderedDict.fromkeys(component_names(parts), 0)
    for part in parts:
        elements = math.prod(jnp.shape(part.leaf)) * shards(part.leaf)
        for name in part.names:
            sizes[name] += elements // len(part.names)
    return sizes


def component_names(parts: list[Part]) -> list[str]:
    """Lists the components, with layer 10 after layer 2."""
    return ordered(name for part in parts for name in part.names)


def assign(
    tree: Any,
    component_fn: ComponentFn,
    stacked_axes: StackedAxes | None,
    *,
    check: bool = False,
) -> tuple[list[Part], Any]:
    """Names the component of each leaf, or of each layer in it.

    Args:
      tree: Parameters or updates.
      component_fn: Maps a path to its component's name.
      stacked_axes: For leaves that hold several layers.
      check: Whether a rule without effect is an error.

    Returns:
      The leaves in JAX's order with their components, and the tree's structure.
    """
    paths, leaves, treedef = flatten_with_paths(tree)
    stacks = _Stacks(stacked_axes or {})
    stacked = [stacks.find(*item) for item in zip(paths, leaves, strict=True)]
    unstacked = [path for layer_paths, _ in stacked for path in layer_paths]
    if check and paths:
        stacks.check_all_used(paths)
        check_all_used(unstacked, component_fn)
    labels = iter(label_paths(unstacked, component_fn))
    parts: list[Part] = []
    for path, leaf, (layer_paths, axis) in zip(paths, leaves, stacked, strict=True):
        names = list(itertools.islice(labels, len(layer_paths)))
        if len(set(names)) == 1:
            names, axis = names[:1], None
        parts.append(Part(path, leaf, names, axis))
    return parts, treedef


class _Stacks:
    def __init__(self, stacked_axes: StackedAxes):
        _check_stacked_axes(stacked_axes)
        rules = list(stacked_axes.items())
        self._axes = [axis for _, axis in rules]
        self._patterns = FirstMatch(
            rules, kind="stacked_axes rule", thing="module", key="path", last=""
        )

    def find(self, path: str, leaf: Any) -> tuple[list[str], int | None]:
        """Finds the paths of the layers in a leaf, and the axis that counts them."""
        prefix = self._stack(path)
        if prefix is None:
            return [path], None
        rule, _ = self._patterns.cover([prefix])[0]
        shape, axis = jnp.shape(leaf), self._axes[rule]
        if not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"stacked_axes says that axis {axis} of {path!r} counts the layers, "
                f"but its shape is {shape}. Match only modules all of whose parameters "
                f"are stacked on that axis."
            )
        rest = path[len(prefix) :]
        return [f"{prefix}/{i}{rest}" for i in range(shape[axis])], axis % len(shape)

    def check_all_used(self, paths: list[str]) -> None:
        """Raises if a rule has no effect."""
        prefixes = [prefix for path in paths for prefix in _prefixes(path)]
        stacks = [prefix for path in paths if (prefix := self._stack(path))]
        self._patterns.check_all_used(list(dict.fromkeys(prefixes)), stacks)

    def _stack(self, path: str) -> str | None:
        return next(filter(self._patterns.find, _prefixes(path)), None)


def _check_stacked_axes(stacked_axes: Any) -> None:
    if not isinstance(stacked_axes, Mapping) or not all(
        isinstance(pattern, str) and isinstance(axis, int)
        for pattern, axis in stacked_axes.items()
    ):
        raise TypeError(
            f"stacked_axes must map patterns for modules' paths to axes, such as "
            f'{{"decoder/layers": 0}}, got {stacked_axes!r}'
        )


def _prefixes(path: str) -> list[str]:
    return list(itertools.accumulate(path.split("/"), "{}/{}".format))


def scaled(
    part: Part, coefficients: Mapping[str, ArrayLike | None], zeroing: bool = False
) -> Any:
    """Multiplies a leaf by the coefficients of its components and keeps its dtype.

    With ``zeroing`` a coefficient of 0 also turns NaN and infinity into 0.
    """
    factors = [coefficients[name] for name in part.names]
    if all(factor is None for factor in factors):
        return part.leaf
    ones: list[Any] = [1.0 if factor is None else factor for factor in factors]
    if part.axis is None:
        factor = ones[0]
    else:
        shape = [1] * jnp.ndim(part.leaf)
        shape[part.axis] = -1
        factor = jnp.stack(ones).reshape(shape)
    product = part.leaf * factor
    if zeroing:
        product = jnp.where(factor > 0, product, 0)
    return product.astype(jnp.result_type(part.leaf))
