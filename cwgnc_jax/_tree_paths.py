"""The paths of parameters, spelled alike in every kind of tree."""

import re
import sys
from typing import Any

import jax


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

    Examples:
      >>> import cwgnc_jax
      >>> params = {"layer": [{"kernel": 1.0}, {"kernel": 2.0}], "bias": 3.0}
      >>> paths, leaves, treedef = cwgnc_jax.flatten_with_paths(params)
      >>> dict(zip(paths, leaves))
      {'bias': 3.0, 'layer/0/kernel': 1.0, 'layer/1/kernel': 2.0}
    """
    boxes = _box_types()

    def is_box(node: Any) -> bool:
        return isinstance(node, boxes)

    paths: list[str] = []
    for key_path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_box):
        # The first key inside a box is the box's own.
        skip = 1 if is_box(node) else 0
        for inner_path, _ in jax.tree_util.tree_leaves_with_path(node):
            whole = (*key_path, *inner_path[skip:])
            paths.append(jax.tree_util.keystr(whole, simple=True, separator="/"))
    leaves, treedef = jax.tree.flatten(tree)
    return paths, leaves, treedef


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
