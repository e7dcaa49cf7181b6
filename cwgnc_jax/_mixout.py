"""Mixout, which is dropout towards the pretrained weights."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cwgnc_jax._checks import check_share
from cwgnc_jax._tree_paths import flatten_with_paths


def mixout(params: Any, pretrained: Any, rate: ArrayLike, key: jax.Array) -> Any:
    r"""Replaces random rows of the kernels by pretrained ones for one forward pass.

    Each kernel :math:`W`, a matrix of shape (in, out) whose name is ``kernel``, is
    mixed with its pretrained counterpart :math:`W_0`:

    .. math::
      \frac{n W + (1 - n) W_0 - p W_0}{1 - p}, \quad n \sim \mathrm{Bernoulli}(1 - p)

    with one :math:`n` for each input, shared by all outputs. The expectation is
    :math:`W`. Other parameters are not changed. Turn the model's dropout off.

    The gradient is that of the authors' code: a kernel receives :math:`n` times the
    gradient of the mixed kernel, without the :math:`1/(1 - p)` of the formula.

    Args:
      params: The parameters.
      pretrained: A tree like ``params``.
      rate: The probability p of the pretrained weights, in [0, 1): a number, or a
        scalar array, which may be traced.
      key: A random key; use a new one in each step.

    Returns:
      The mixed parameters, to be passed to the model in place of ``params``.

    Raises:
      TypeError: If ``rate`` is not a number.
      ValueError: If ``rate`` lies outside [0, 1), or the trees differ in structure.

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

    def mix(path: str, weight: jax.Array, target: jax.Array) -> jax.Array:
        if path.rpartition("/")[2] != "kernel" or jnp.ndim(weight) != 2:
            return weight
        # The draws of a path do not depend on which other parameters there are.
        own_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        kept = jax.random.bernoulli(own_key, 1 - rate, (weight.shape[0], 1))
        kept = kept.astype(weight.dtype)
        mixed = (kept * weight + (1 - kept - rate) * target) / (1 - rate)
        # The second term is 0 and gives the gradient; the first gives the value.
        passed = kept * weight
        return jax.lax.stop_gradient(mixed) + (passed - jax.lax.stop_gradient(passed))

    mixed = [mix(*triple) for triple in zip(paths, leaves, targets, strict=True)]
    return jax.tree.unflatten(treedef, mixed)
