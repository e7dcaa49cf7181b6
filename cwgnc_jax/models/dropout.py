"""Dropout with explicit keys and rates that may be traced."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray


class Rates(NamedTuple):
    """The rates of dropout in most types of models."""

    hidden: ArrayLike
    attention: ArrayLike
    classifier: ArrayLike


class Noise(NamedTuple):
    """The random key and the rates for the dropout of one forward pass."""

    key: PRNGKeyArray | None
    rates: Any
    """:class:`Rates`, or the NamedTuple that a type of model has instead."""

    def at(self, site: int) -> "Noise":
        """Derives the noise of one place in the model; without a key there is none."""
        if self.key is None:
            return self
        return self._replace(key=jax.random.fold_in(self.key, site))


def dropout(
    key: PRNGKeyArray | None, x: Float[Array, "*shape"], rate: ArrayLike | None
) -> Float[Array, "*shape"]:
    r"""Zeroes each element with probability ``rate`` and scales up the others.

    .. math:: y_i = m_i x_i / (1 - p), \quad m_i \sim \mathrm{Bernoulli}(1 - p)

    Each element of ``x`` has its own mask; examples and heads share nothing. Two
    elements use the two halves of one random 32-bit word, which halves the cost of
    dropout on a CPU. Therefore ``p`` is ``rate`` rounded to the nearest multiple of
    2**-16, an error of at most 7.6e-6. The scale uses the rounded ``p``, so that the
    expectation of ``y`` is exactly ``x``. Rate 0 returns ``x`` exactly.

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
    mask = _random_uint16(key, x.shape) >= threshold.astype(jnp.uint16)
    return jnp.where(mask, x * (1 / keep).astype(x.dtype), jnp.zeros((), x.dtype))


def _random_uint16(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    """Draws uniform 16-bit integers, two from each 32-bit word."""
    # jax.random.bits(dtype=uint16) would draw a whole word for each integer.
    *rest, last = shape
    words = jax.random.bits(key, (*rest, math.ceil(last / 2)), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16)
    return halves.reshape(*rest, -1)[..., :last]
