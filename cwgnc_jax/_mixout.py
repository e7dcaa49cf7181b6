"""Mixout, which is dropout towards the pretrained weights."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cwgnc_jax._checks import check_share
from cwgnc_jax._rules import compiled
from cwgnc_jax._tree_paths import flatten_with_paths


def mixout(
    params: Any,
    pretrained: Any,
    rate: ArrayLike,
    key: jax.Array,
    kernels: Mapping[str, int] | None = None,
) -> Any:
    r"""Replaces random inputs of the kernels by pretrained ones for one forward pass.

    Each kernel :math:`W` is mixed with its pretrained counterpart :math:`W_0`:

    .. math::
      \frac{n W + (1 - n) W_0 - p W_0}{1 - p}, \quad n \sim \mathrm{Bernoulli}(1 - p)

    with one :math:`n` for each input, shared by all outputs. The expectation is
    :math:`W`. Other parameters are not changed. Turn the model's dropout off.

    Kernels are the matrices named ``kernel``, of shape (in, out). In other trees
    ``kernels`` says which they are and where their inputs are counted: ``{r".*weight":
    1}`` for Equinox, whose matrices have the shape (out, in), or ``{r".*kernel": -2}``
    for scanned layers, of shape (layers, in, out). In an array of three or more
    dimensions each matrix has draws of its own.

    The gradient is that of the authors' code: a kernel receives :math:`n` times the
    gradient of the mixed kernel, without the :math:`1/(1 - p)` of the formula.

    Args:
      params: The parameters.
      pretrained: A tree like ``params``.
      rate: The probability p of the pretrained weights, in [0, 1): a number, or a
        scalar array, which may be traced.
      key: A random key; use a new one in each step.
      kernels: Maps a regular expression, which must match the whole path of a kernel,
        to the axis of its inputs: the last or the last but one. Vectors that it matches
        are no kernels. None is ``{r"(.*/)?kernel": 0}`` for matrices.

    Returns:
      The mixed parameters, to be passed to the model in place of ``params``.

    Raises:
      TypeError: If ``rate`` is not a number, or ``kernels`` is not such a mapping.
      ValueError: If ``rate`` lies outside [0, 1), the trees differ in structure or
        shapes, no parameter is a kernel, or an axis is not one of the last two.

    Examples:
      >>> import cwgnc_jax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> params = {"dense": {"kernel": jnp.full((9, 2), 3.0), "bias": jnp.ones(2)}}
      >>> pretrained = jax.tree.map(jnp.zeros_like, params)
      >>> mixed = cwgnc_jax.mixout(params, pretrained, 0.5, jax.random.key(1))
      >>> sorted(set(mixed["dense"]["kernel"].ravel().tolist()))  # W_0 or W / (1 - p)
      [0.0, 6.0]
      >>> print(mixed["dense"]["bias"])
      [1. 1.]

    References:
      Lee et al., `Mixout: Effective Regularization to Finetune Large-scale Pretrained
      Language Models <https://arxiv.org/abs/1909.11299>`_, 2020
    """
    check_share("rate", rate)
    paths, leaves, treedef = flatten_with_paths(params)
    targets, target_treedef = jax.tree.flatten(pretrained)
    if target_treedef != treedef:
        raise ValueError(
            f"pretrained must be a tree like params: expected the structure {treedef}, "
            f"got {target_treedef}"
        )

    for path, leaf, target in zip(paths, leaves, targets, strict=True):
        if jnp.shape(leaf) != jnp.shape(target):
            raise ValueError(
                f"pretrained must be a tree like params, but its {path!r} has the "
                f"shape {jnp.shape(target)} in place of {jnp.shape(leaf)}"
            )
    _check_kernels(kernels)
    axes = [_input_axis(*leaf, kernels) for leaf in zip(paths, leaves, strict=True)]
    if leaves and all(axis is None for axis in axes):
        raise ValueError(
            "mixout finds no kernel among the parameters, of which the first is "
            f"{paths[0]!r} with the shape {jnp.shape(leaves[0])}. Say with kernels "
            'which they are, as in {r".*weight": 1}.'
        )

    def mix(
        path: str, weight: jax.Array, target: jax.Array, axis: int | None
    ) -> jax.Array:
        if axis is None:
            return weight
        # The draws of a path do not depend on which other parameters there are.
        own_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        outputs = weight.ndim - 1 if axis == weight.ndim - 2 else weight.ndim - 2
        shape = [1 if i == outputs else size for i, size in enumerate(weight.shape)]
        kept = jax.random.bernoulli(own_key, 1 - rate, shape).astype(weight.dtype)
        mixed = (kept * weight + (1 - kept - rate) * target) / (1 - rate)
        mixed = mixed.astype(weight.dtype)
        # The second term is 0 and gives the gradient; the first gives the value.
        passed = kept * weight
        return jax.lax.stop_gradient(mixed) + (passed - jax.lax.stop_gradient(passed))

    mixed = list(map(mix, paths, leaves, targets, axes))
    return jax.tree.unflatten(treedef, mixed)


def _check_kernels(kernels: Any) -> None:
    if kernels is not None and not (
        isinstance(kernels, Mapping)
        and all(isinstance(pattern, str) for pattern in kernels)
        and all(isinstance(axis, int) for axis in kernels.values())
    ):
        raise TypeError(
            f"kernels must map patterns for paths to axes, such as "
            f'{{".*weight": 1}}, got {kernels!r}'
        )


def _input_axis(path: str, leaf: Any, kernels: Mapping[str, int] | None) -> int | None:
    """Finds the axis that counts a kernel's inputs; None for another parameter."""
    dimensions = jnp.ndim(leaf)
    if kernels is None:
        is_kernel = path.rpartition("/")[2] == "kernel" and dimensions == 2
        return 0 if is_kernel else None
    for pattern, axis in kernels.items():
        if dimensions > 1 and compiled(pattern).fullmatch(path):
            inputs = axis + dimensions if axis < 0 else axis
            if not dimensions - 2 <= inputs < dimensions:
                raise ValueError(
                    f"kernels says that axis {axis} of {path!r}, whose shape is "
                    f"{jnp.shape(leaf)}, counts the inputs. It must be one of the last "
                    f"two axes: -2 or -1."
                )
            return inputs
    return None
