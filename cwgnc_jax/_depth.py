"""The depth of parameters, and which depths train."""

import math
import numbers
import re
from collections.abc import Callable
from typing import Any

from cwgnc_jax._checks import check_count
from cwgnc_jax._messages import listed
from cwgnc_jax._tree_paths import places

DepthFn = Callable[[str], float]
"""Maps a parameter's "/"-joined path to its depth.

With L layers this is 0 for the embeddings, 1 to L for the layers from input to output,
and more than L, such as infinity, for the heads above them.
"""

_CONTAINER = r"(?:.*(?:layer|block)|h|stage)s?"
_LAYER = re.compile(f"(?i){_CONTAINER}_?([0-9]+)")
_LAYERS = re.compile(f"(?i){_CONTAINER}")


def encoder_depth(path: str) -> float:
    """Reads the depth of an encoder's parameter from its path.

    A number counts only as that of a layer, block or stage, or of one of GPT-2's ``h``:
    as a name of its own below such a container (``layer/3``, ``blocks/3``), or at the
    end of such a name (``layer_3``, ``TransformerBlock_3``). That of ``Dense_0`` is
    none.

    Args:
      path: A parameter's path.

    Returns:
      0 for the embeddings; i + 1 for layer i; infinity for the parameters above all
      layers, such as the pooler and the classifier.

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
    for above, name in zip(["", *names], names, strict=False):
        if match := _LAYER.fullmatch(name):
            return float(match[1]) + 1
        if name.isdecimal() and _LAYERS.fullmatch(above):
            return float(name) + 1
    if any("embed" in name.lower() for name in names):
        return 0.0
    return math.inf


def thawed(
    path: str,
    num_layers: int,
    thawed_layers: int,
    depth_fn: DepthFn | None = None,
) -> bool:
    r"""Says whether a parameter trains while only the top layers of an encoder do.

    With :math:`L` layers, of which the top :math:`n` are thawed, a parameter of depth
    :math:`d` trains if

    .. math:: d > L - n \quad \text{or} \quad n = L

    so the heads always train, and the embeddings thaw with the last layer. This is the
    rule of :func:`gradual_unfreezing`.

    Args:
      path: The parameter's "/"-joined path.
      num_layers: The number of the encoder's layers.
      thawed_layers: How many of them train, from 0 to ``num_layers``.
      depth_fn: Maps a path to its depth: 0 for the embeddings, 1 to ``num_layers`` for
        the layers, more for what lies above them; None is :func:`encoder_depth`.

    Returns:
      Whether the parameter trains.

    Raises:
      TypeError: If ``depth_fn`` does not return a number.
      ValueError: If ``thawed_layers`` is negative or exceeds ``num_layers``.

    Examples:
      >>> import cwgnc_jax
      >>> cwgnc_jax.thawed("bert/encoder/layer/11/output/dense/bias", 12, 1)
      True
      >>> cwgnc_jax.thawed("bert/encoder/layer/10/output/dense/bias", 12, 1)
      False
      >>> cwgnc_jax.thawed("bert/embeddings/word_embeddings/embedding", 12, 12)
      True
    """
    if not 0 <= thawed_layers <= num_layers:
        raise ValueError(
            f"thawed_layers must lie between 0 and the {num_layers} layers, got "
            f"{thawed_layers}"
        )
    (depth,) = _depths_of([path], depth_fn)
    return is_thawed(depth, num_layers, thawed_layers)


def is_thawed(depth: float, num_layers: int, thawed_layers: int) -> bool:
    """Says whether parameters of this depth train; see :func:`thawed`."""
    return depth > num_layers - thawed_layers or thawed_layers == num_layers


def depths(
    tree: Any, depth_fn: DepthFn | None, num_layers: int | None
) -> tuple[list[float], int]:
    """Finds the depth of each leaf, and the number of layers.

    Args:
      tree: Any tree of arrays.
      depth_fn: Maps a path to its depth.
      num_layers: The number of layers; None is the largest finite depth of a path in
        the tree, also of those that are masked.

    Returns:
      The depths in JAX's order of leaves, and the number of layers.

    Raises:
      TypeError: If ``depth_fn`` does not return a number for each path.
    """
    found = places(tree)
    if num_layers is None:
        _check_layers_shown(found.masked, depth_fn)
        shown = _depths_of(found.paths, depth_fn)
        num_layers = int(max((d for d in shown if d < math.inf), default=0))
    return _depths_of([path for path, _ in found.leaves], depth_fn), num_layers


def _check_layers_shown(masked: list[str], depth_fn: DepthFn | None) -> None:
    if depth_fn not in (None, encoder_depth):
        return
    for path in masked:
        if _LAYERS.fullmatch(path.rpartition("/")[2]):
            raise ValueError(
                f"The number of layers cannot be read from the tree, since one entry "
                f"of a mask hides all of {path!r}. Pass num_layers."
            )


def _depths_of(paths: list[str], depth_fn: DepthFn | None) -> list[float]:
    found: list[Any] = [(depth_fn or encoder_depth)(path) for path in paths]
    without = [
        path
        for path, depth in zip(paths, found, strict=True)
        if isinstance(depth, bool)
        or not isinstance(depth, numbers.Real)
        or math.isnan(depth)
    ]
    if without:
        raise TypeError(
            f"depth_fn must return a number for each parameter, but does not for "
            f"{listed(without)}"
        )
    return found


def check_depths(depth_fn: Any, num_layers: Any) -> None:
    """Raises unless these are a function and a number of layers, or None."""
    if depth_fn is not None and not callable(depth_fn):
        raise TypeError(
            f"depth_fn must be a function from a parameter's path to its depth, got "
            f"{depth_fn!r}"
        )
    if num_layers is not None:
        check_count("num_layers", num_layers, 0, static=True)
