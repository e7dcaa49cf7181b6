"""Dropout with explicit keys and rates that may be traced."""

import functools
import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray, UInt16


class Rates(NamedTuple):
    """The rates of dropout in most types of models."""

    hidden: ArrayLike
    attention: ArrayLike
    classifier: ArrayLike


class Noise(NamedTuple):
    """The random key and the rates for the dropout of one forward pass."""

    key: PRNGKeyArray | None
    """A key, a vector of the keys of some places, or None for no dropout."""
    rates: Any
    """:class:`Rates`, or the NamedTuple that a type of model has instead."""

    def at(self, site: int) -> "Noise":
        """Derives the noise of one place in the model; without a key there is none."""
        if self.key is None:
            return self
        if self.key.ndim:
            return self._replace(key=self.key[site])
        return self._replace(key=jax.random.fold_in(self.key, site))

    def of_layers(self, first: int, layers: int, sites: int) -> list["Noise"]:
        """Derives the noise of so many sites in each of several places, one a layer.

        The keys are those of ``at(first + layer).at(site)``. Derived all at once they
        are one kernel on an accelerator, and one for each otherwise.
        """
        if self.key is None:
            return [self] * layers
        fold_in = jax.vmap(jax.random.fold_in, (None, 0))
        of_layers = fold_in(self.key, jnp.arange(first, first + layers))
        keys = jax.vmap(fold_in, (0, None))(of_layers, jnp.arange(sites))
        return [self._replace(key=keys[layer]) for layer in range(layers)]


def dropout(
    key: PRNGKeyArray | None, x: Float[Array, "*shape"], rate: ArrayLike | None
) -> Float[Array, "*shape"]:
    r"""Zeroes each element with probability ``rate`` and scales up the others.

    .. math:: y_i = m_i x_i / (1 - p), \quad m_i \sim \mathrm{Bernoulli}(1 - p)

    Each element of ``x`` has its own mask; examples and heads share nothing. Two
    elements use the two halves of one random 32-bit word, which halves the cost of
    dropout. Therefore ``p`` is ``rate`` rounded to the nearest multiple of 2**-16, an
    error of at most 7.6e-6. The scale uses the rounded ``p``, so that the expectation
    of ``y`` is exactly ``x``. Rate 0 returns ``x`` exactly. Which elements share a word
    depends on the platform: a key gives other masks on a GPU or TPU than on a CPU.

    Args:
      key: A key for this place and step; None for no dropout.
      x: An array of at least one dimension.
      rate: The probability p in [0, 1): a number, or a scalar array, which may be
        traced; None for no dropout.

    Returns:
      An array of the shape and dtype of ``x``.

    Raises:
      ValueError: If ``rate`` is a number outside [0, 1). Arrays are not checked.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from cwgnc_jax.models.dropout import dropout
      >>> y = dropout(jax.random.key(0), jnp.ones(10_000), 0.25)
      >>> bool(abs(y.mean() - 1) < 0.02)
      True
    """
    if isinstance(rate, int | float) and not 0 <= rate < 1:
        raise ValueError(f"a dropout rate must lie in [0, 1), got {rate}")
    if key is None or rate is None or (isinstance(rate, int | float) and rate == 0):
        return x
    # At most 2**16 - 1, so that a rate just below 1 does not drop everything.
    threshold = jnp.minimum(jnp.round(jnp.float32(rate) * 2**16), 2**16 - 1)
    keep = 1 - threshold / 2**16
    # jax.random.bits(dtype=uint16) would draw a whole word for each integer.
    halves = jax.lax.platform_dependent(
        key,
        cpu=functools.partial(neighbours_share_words, shape=x.shape),
        default=functools.partial(halves_share_words, shape=x.shape),
    )
    mask = cast(Array, halves) >= threshold.astype(jnp.uint16)
    return jnp.where(mask, x * (1 / keep).astype(x.dtype), jnp.zeros((), x.dtype))


def neighbours_share_words(
    key: PRNGKeyArray, shape: tuple[int, ...]
) -> UInt16[Array, "*shape"]:
    """Draws 16 random bits an element; two along the last axis share a word."""
    *rest, last = shape
    half = math.ceil(last / 2)
    words = jax.random.bits(key, (*rest, half), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16)
    return halves.reshape(*rest, 2 * half)[..., :last]


def halves_share_words(
    key: PRNGKeyArray, shape: tuple[int, ...]
) -> UInt16[Array, "*shape"]:
    """Draws 16 random bits an element; two far apart along axis 1 share a word.

    The halves of neighbours would be an axis of 2, which a TPU moves, or pads to 128.
    Along the first axis, of examples or tokens, the halves could belong to two devices,
    which would exchange them.
    """
    axis = min(1, len(shape) - 1)
    of_words = list(shape)
    of_words[axis] = math.ceil(shape[axis] / 2)
    words = jax.random.bits(key, tuple(of_words), jnp.uint32)
    halves = jnp.concatenate([words & 0xFFFF, words >> 16], axis)
    return jax.lax.slice_in_dim(halves, 0, shape[axis], axis=axis).astype(jnp.uint16)
