"""From a parameter's path to its depth: the order of the layers."""

import math
import re
from collections.abc import Callable
from typing import Any

from cwgnc_jax._rules import listed
from cwgnc_jax._tree_paths import flatten_with_paths

DepthFn = Callable[[str], float]
"""Maps a parameter's "/"-joined path to a number that rises from input to output."""

_LAYER = re.compile(r"(?:.*_)?([0-9]+)")


def encoder_depth(path: str) -> float:
    """Reads the depth of an encoder's parameter from its path.

    Args:
      path: A parameter's path.

    Returns:
      0 for the embeddings, i + 1 for layer i (the first name that is the number i or
      ends in an underscore and i), infinity for what stands above all layers: the
      pooler and the classifier.

    Examples:
      >>> import cwgnc_jax
      >>> cwgnc_jax.encoder_depth("bert/embeddings/word_embeddings/embedding")
      0.0
      >>> cwgnc_jax.encoder_depth("bert/encoder/layer/11/output/dense/kernel")
      12.0
      >>> cwgnc_jax.encoder_depth("classifier/bias")
      inf
    """
    names = path.split("/")
    for name in names:
        if match := _LAYER.fullmatch(name):
            return float(match[1]) + 1
    if any("embed" in name.lower() for name in names):
        return 0.0
    return math.inf


def rank_leaves(tree: Any, depth_fn: DepthFn) -> tuple[list[int], list[Any], Any]:
    """Ranks the leaves of a tree by depth.

    Args:
      tree: Any tree of arrays.
      depth_fn: Maps a path to its depth.

    Returns:
      For each leaf how many smaller depths the tree has; the leaves; the structure.

    Raises:
      TypeError: If ``depth_fn`` returns no number for a path.
    """
    paths, leaves, treedef = flatten_with_paths(tree)
    depths = [depth_fn(path) for path in paths]
    without = [
        path
        for path, depth in zip(paths, depths, strict=True)
        if isinstance(depth, bool)
        or not isinstance(depth, int | float)
        or math.isnan(depth)
    ]
    if without:
        raise TypeError(
            f"depth_fn must return a number for every parameter, and does not for "
            f"{listed(without)}"
        )
    order = sorted(set(depths))
    return [order.index(depth) for depth in depths], leaves, treedef


def check_depth_fn(depth_fn: Any) -> None:
    """Raises if this is no function at all."""
    if not callable(depth_fn):
        raise TypeError(
            f"depth_fn must be a function from a parameter's path to its depth, got "
            f"{depth_fn!r}"
        )
