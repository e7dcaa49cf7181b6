"""The depth of parameters, and which depths train."""

import math
import re
from collections.abc import Callable
from typing import Any

from cwgnc_jax._messages import listed
from cwgnc_jax._tree_paths import flatten_with_paths

DepthFn = Callable[[str], float]
"""Maps a parameter's "/"-joined path to a number that rises from input to output."""

_LAYER = re.compile(r"(?:.*_)?([0-9]+)")


def encoder_depth(path: str) -> float:
    """Reads the depth of an encoder's parameter from its path.

    Args:
      path: A parameter's path.

    Returns:
      0 for the embeddings; i + 1 for layer i, whose number is the first name that is i
      or ends in an underscore and i; infinity for the parameters above all layers, such
      as the pooler and the classifier.

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


def thawed(
    path: str,
    layers: int,
    thawed_layers: int,
    depth_fn: DepthFn = encoder_depth,
) -> bool:
    r"""Says whether a parameter trains while only the top layers of an encoder do.

    With :math:`L` layers, of which the top :math:`n` are thawed, a parameter of depth
    :math:`d` trains if

    .. math:: d > L - n \quad \text{or} \quad n = L

    so the heads always train, and the embeddings thaw with the last layer. This is the
    rule of :func:`gradual_unfreezing`.

    Args:
      path: The parameter's "/"-joined path.
      layers: The number of the encoder's layers.
      thawed_layers: How many of them train, from 0 to ``layers``.
      depth_fn: Maps a path to its depth, as :func:`encoder_depth` does: 0 for the
        embeddings, 1 to ``layers`` for the layers, more for what lies above them.

    Returns:
      Whether the parameter trains.

    Raises:
      ValueError: If ``thawed_layers`` is negative or exceeds ``layers``.

    Examples:
      >>> import cwgnc_jax
      >>> cwgnc_jax.thawed("bert/encoder/layer/11/output/dense/bias", 12, 1)
      True
      >>> cwgnc_jax.thawed("bert/encoder/layer/10/output/dense/bias", 12, 1)
      False
      >>> cwgnc_jax.thawed("bert/embeddings/word_embeddings/embedding", 12, 12)
      True
    """
    if not 0 <= thawed_layers <= layers:
        raise ValueError(
            f"thawed_layers must lie between 0 and the {layers} layers, got "
            f"{thawed_layers}"
        )
    return is_thawed(depth_fn(path), layers, thawed_layers)


def is_thawed(depth: float, layers: int, thawed_layers: int) -> bool:
    """Says whether parameters of this depth train; see :func:`thawed`."""
    return depth > layers - thawed_layers or thawed_layers == layers


def rank_leaves(
    tree: Any, depth_fn: Callable[[str], Any]
) -> tuple[list[int], list[Any], Any]:
    """Ranks the leaves of a tree by depth.

    Args:
      tree: Any tree of arrays.
      depth_fn: Maps a path to its depth.

    Returns:
      The rank of each leaf, which is the number of smaller depths in the tree; the
      leaves; the tree's structure.

    Raises:
      TypeError: If ``depth_fn`` does not return a number for each path.
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
            f"depth_fn must return a number for each parameter, but does not for "
            f"{listed(without)}"
        )
    order = sorted(set(depths))
    return [order.index(depth) for depth in depths], leaves, treedef


def check_depth_fn(depth_fn: Any) -> None:
    """Raises unless this is a function."""
    if not callable(depth_fn):
        raise TypeError(
            f"depth_fn must be a function from a parameter's path to its depth, got "
            f"{depth_fn!r}"
        )
