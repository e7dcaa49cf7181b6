"""One spelling of a parameter's path, whatever kind of tree holds it."""

import re
import sys
from typing import Any

import jax


def flatten_with_paths(tree: Any) -> tuple[list[str], list[Any], Any]:
    """Flattens a tree and spells the path of each leaf.

    A path is the names from the root to the leaf joined with "/": the keys of dicts,
    the indices of lists and tuples, the fields of dataclasses and modules. The boxes
    that Flax puts around arrays (NNX variables, Linen's partitioned arrays) leave no
    trace in it, so that the same network has the same paths in every library.

    Args:
      tree: A pytree; ``None`` counts as no leaf, as in JAX.

    Returns:
      The paths, the leaves in JAX's order, and the tree's structure.
    """
    boxes = _box_types()
    paths = []
    for key_path, node in jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: isinstance(node, boxes)
    ):
        # A box's own key, always its first, is dropped.
        skip = 1 if isinstance(node, boxes) else 0
        for inner_path, _ in jax.tree_util.tree_leaves_with_path(node):
            paths.append(_spell((*key_path, *inner_path[skip:])))
    leaves, treedef = jax.tree.flatten(tree)
    return paths, leaves, treedef


def natural_key(path: str) -> list[str | int]:
    """Sorts "layer/10" after "layer/2".

    Args:
      path: Any string.

    Returns:
      A key for ``sorted``, in which runs of digits compare as numbers.
    """
    parts = re.split(r"([0-9]+)", path)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _spell(key_path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def _box_types() -> tuple[type, ...]:
    # Flax is not required: a tree can only hold its boxes once it has been imported.
    boxes: list[type] = []
    if nnx := sys.modules.get("flax.nnx"):
        boxes.append(nnx.Variable)
    if meta := sys.modules.get("flax.core.meta"):
        boxes.append(meta.AxisMetadata)
    return tuple(boxes)
