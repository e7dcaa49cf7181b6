"""The paths of parameters, spelled alike in every kind of tree."""

import collections
import re
import sys
from typing import Any, NamedTuple

import jax
import optax

from cwgnc_jax._messages import listed


class Places(NamedTuple):
    """What a tree says about paths, whichever of its leaves are in sight."""

    leaves: list[tuple[str, Any]]
    """The path of each leaf, and the leaf, in JAX's order."""

    without: list[str]
    """The paths that hold None, as those of arrays without a gradient do."""

    masked: list[str]
    """The paths that ``optax.masked`` and its like hide; each may stand for several."""

    @property
    def paths(self) -> list[str]:
        """All paths that the tree shows."""
        return [*(path for path, _ in self.leaves), *self.without, *self.masked]


def flatten_with_paths(
    tree: Any,
) -> tuple[list[str], list[Any], Any]:
    """Flattens a tree and names the path of each leaf.

    A path joins the names from the root to the leaf with "/": the keys of dicts, the
    indices of lists and tuples, the fields of dataclasses and modules. These are the
    paths that every ``component_fn`` and ``depth_fn`` receives. The boxes that Flax
    puts around arrays (NNX variables, Linen's partitioned arrays) leave no trace, so
    that the same network has the same paths in every library.

    Args:
      tree: A pytree; ``None`` is not a leaf, as in JAX.

    Returns:
      The paths, the leaves in JAX's order, and the tree's structure.

    Raises:
      ValueError: If two leaves have the same path, as in
        ``{"a/b": x, "a": {"b": y}}``.

    Examples:
      >>> import cwgnc_jax
      >>> params = {"layer": [{"kernel": 1.0}, {"kernel": 2.0}], "bias": 3.0}
      >>> paths, leaves, treedef = cwgnc_jax.flatten_with_paths(params)
      >>> dict(zip(paths, leaves))
      {'bias': 3.0, 'layer/0/kernel': 1.0, 'layer/1/kernel': 2.0}
    """
    found = places(tree).leaves
    return (
        [path for path, _ in found],
        [leaf for _, leaf in found],
        jax.tree.structure(tree),
    )


def places(tree: Any) -> Places:
    """Finds the paths of a tree's leaves and of the places without one."""
    boxes = _box_types()
    found = Places([], [], [])

    def is_place(node: Any) -> bool:
        return node is None or isinstance(node, optax.MaskedNode)

    def is_place_or_box(node: Any) -> bool:
        return is_place(node) or isinstance(node, boxes)

    def add(key_path: tuple[Any, ...], node: Any) -> None:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        if node is None:
            found.without.append(path)
        elif isinstance(node, optax.MaskedNode):
            found.masked.append(path)
        else:
            found.leaves.append((path, node))

    nodes: list[Any] = jax.tree_util.tree_leaves_with_path(tree, is_place_or_box)
    for key_path, node in nodes:
        if isinstance(node, boxes):
            inner: list[Any] = jax.tree_util.tree_leaves_with_path(node, is_place)
            for inner_path, leaf in inner:
                # The first key inside a box is the box's own.
                add((*key_path, *inner_path[1:]), leaf)
        else:
            add(key_path, node)
    counts = collections.Counter(path for path, _ in found.leaves)
    if twice := [path for path, count in counts.items() if count > 1]:
        raise ValueError(
            f"Each leaf needs a path of its own, but two have the path "
            f'{listed(twice)}. Use keys without "/".'
        )
    return found


def natural_key(path: str) -> list[str | int]:
    """Makes a key that sorts "layer/10" after "layer/2".

    Args:
      path: Any string.

    Returns:
      A key for ``sorted``, in which runs of digits compare as numbers.
    """
    parts = re.split(r"([0-9]+)", path)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _box_types() -> tuple[type, ...]:
    # Flax is optional: only once it is imported can a tree hold its boxes.
    boxes: list[type] = []
    if nnx := sys.modules.get("flax.nnx"):
        boxes.append(nnx.Variable)
    if meta := sys.modules.get("flax.core.meta"):
        boxes.append(meta.AxisMetadata)
    return tuple(boxes)
