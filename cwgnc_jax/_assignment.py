"""The assignment of leaves, and of the layers in them, to components."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cwgnc_jax._components import (
    ComponentFn,
    by_parameter,
    check_all_used,
    check_component_fn,
    label_paths,
    ordered,
)
from cwgnc_jax._rules import FirstMatch
from cwgnc_jax._tree_paths import places

StackedAxes = Mapping[str, int]
"""Maps a pattern for a module's path to the axis of its leaves that counts layers."""


class Part(NamedTuple):
    """A leaf and its component, or if it holds several layers, one for each layer."""

    path: str
    leaf: Any
    components: list[int]
    axis: int | None


class Assignment(NamedTuple):
    """The leaves of a tree with their components."""

    names: list[str]
    """The components, with layer 10 after layer 2.

    Those of places that hold None are among them: updates may lack what parameters
    have, and both must count alike.
    """

    parts: list[Part]
    """The leaves, in JAX's order."""

    treedef: Any

    whole: bool
    """Whether no leaf is masked."""

    def sizes(self, shards: Callable[[Any], int] = lambda leaf: 1) -> list[int]:
        """Counts the elements of each component.

        Args:
          shards: The number of shards of a leaf, of which one is in sight.

        Returns:
          The numbers of elements in the order of the names.
        """
        sizes = [0] * len(self.names)
        for part in self.parts:
            elements = math.prod(jnp.shape(part.leaf)) * shards(part.leaf)
            for component in part.components:
                sizes[component] += elements // len(part.components)
        return sizes

    def present(self) -> list[int]:
        """Lists the components that have a leaf."""
        return sorted({i for part in self.parts for i in part.components})


def component_sizes(
    tree: Any,
    component_fn: ComponentFn | None = None,
    *,
    stacked_axes: StackedAxes | None = None,
) -> OrderedDict[str, int]:
    """Counts the elements of each component.

    Args:
      tree: Parameters or updates. The leaves need only a shape, so the result of
        ``jax.eval_shape`` works too.
      component_fn: Maps a path to its component's name; None is :func:`by_parameter`.
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
    assigned = assign(tree, component_fn, stacked_axes)
    sizes = assigned.sizes()
    return OrderedDict((assigned.names[i], sizes[i]) for i in assigned.present())


def assign(
    tree: Any,
    component_fn: ComponentFn | None,
    stacked_axes: StackedAxes | None,
    *,
    check: bool = False,
) -> Assignment:
    """Names the component of each leaf, or of each layer in it.

    Args:
      tree: Parameters or updates.
      component_fn: Maps a path to its component's name.
      stacked_axes: For leaves that hold several layers.
      check: Whether a rule without effect is an error, which cannot be judged where
        leaves are masked.

    Returns:
      The leaves with their components.
    """
    check_component_fn(component_fn)
    component_fn = by_parameter if component_fn is None else component_fn
    found = places(tree)
    paths = [path for path, _ in found.leaves]
    stacks = _Stacks(stacked_axes or {})
    stacked = [stacks.find(*leaf) for leaf in found.leaves]
    unstacked = [path for layer_paths, _ in stacked for path in layer_paths]
    whole = not found.masked
    if check and paths and whole:
        stacks.check_all_used(paths)
        check_all_used(unstacked, component_fn)
    labels = label_paths(unstacked, component_fn)
    names = ordered([*labels, *_labels_without(found.without, component_fn)])
    number = {name: i for i, name in enumerate(names)}
    components = iter([number[label] for label in labels])
    parts: list[Part] = []
    for (path, leaf), (layer_paths, axis) in zip(found.leaves, stacked, strict=True):
        own = list(itertools.islice(components, len(layer_paths)))
        if len(set(own)) == 1:
            own, axis = own[:1], None
        parts.append(Part(path, leaf, own, axis))
    return Assignment(names, parts, jax.tree.structure(tree), whole)


def _labels_without(paths: list[str], component_fn: ComponentFn) -> list[str]:
    """Names the components of places without an array, which may have none."""
    labels: list[str] = []
    for path in paths:
        # A function need not know a path without a parameter: a dict raises KeyError,
        # a failed match AttributeError, rules ValueError, None for a name TypeError.
        try:
            labels += label_paths([path], component_fn)
        except (AttributeError, LookupError, TypeError, ValueError):
            continue
    return labels


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
