import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cwgnc_jax.models.dropout import (
    Noise,
    dropout,
    halves_share_words,
    neighbours_share_words,
)

WAYS = pytest.mark.parametrize("way", [neighbours_share_words, halves_share_words])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_expectation_is_kept_and_the_rate_is_met(rate, dtype):
    y = dropout(jax.random.key(0), jnp.ones((1000, 1000), dtype), rate)
    assert y.dtype == dtype
    y = np.asarray(y, np.float64)
    deviation = np.sqrt(rate * (1 - rate) / y.size)
    assert abs((y == 0).mean() - rate) < 4 * deviation
    # bfloat16 rounds the scale to 8 bits.
    rounding = 2**-8 if dtype == jnp.bfloat16 else 2**-23
    assert abs(y.mean() - 1) < 4 * deviation / (1 - rate) + rounding
    assert len(np.unique(y)) == 2


def test_every_example_and_head_has_its_own_mask():
    # Attention probabilities: (batch, heads, query, key).
    y = dropout(jax.random.key(0), jnp.ones((4, 6, 32, 32)), 0.5)
    masks = np.asarray(y != 0).reshape(24, -1)
    correlations = np.corrcoef(masks)
    np.fill_diagonal(correlations, 0)
    # Independent bits: normal with deviation 1/32, 276 pairs; 1 for a shared mask.
    assert np.abs(correlations).max() < 5 / 32


@WAYS
def test_all_bits_of_all_elements_are_fair_and_independent(way):
    bits = np.asarray(way(jax.random.key(0), shape=(500, 1000)))
    assert bits.dtype == np.uint16
    # Of uniform integers, mean and deviation; and each bit is as often 0 as 1.
    assert abs(bits.mean() / (2**16 - 1) - 0.5) < 5 / np.sqrt(12 * bits.size)
    ones = [((bits >> bit) & 1).mean() for bit in range(16)]
    np.testing.assert_allclose(ones, 0.5, atol=5 * 0.5 / np.sqrt(bits.size))
    # Whichever two share a word.
    mask = bits >= 20_000
    for one, other in (
        (mask[:, 0::2], mask[:, 1::2]),
        (mask[:, :500], mask[:, 500:]),
    ):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / 500


@WAYS
@pytest.mark.parametrize("shape", [(7,), (2, 3, 5), (1,), (4, 0), (0, 3)])
def test_any_shape_will_do(way, shape):
    assert way(jax.random.key(0), shape=shape).shape == shape
    assert dropout(jax.random.key(0), jnp.ones(shape), 0.5).shape == shape


def test_only_a_cpu_splits_words_along_an_axis_of_their_own():
    trace = jax.jit(dropout).trace(jax.random.key(0), jnp.ones((8, 6)), 0.5)
    for platform, splits in (("cpu", 1), ("cuda", 0), ("tpu", 0)):
        text = trace.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("bitcast_convert") == splits, platform


def test_keys_of_layers_derived_at_once_are_those_derived_one_by_one():
    noise = Noise(jax.random.key(3), None)
    for layer, own in enumerate(noise.of_layers(2, 4, 3)):
        for site in range(3):
            one = noise.at(2 + layer).at(site).key
            np.testing.assert_array_equal(
                jax.random.key_data(own.at(site).key), jax.random.key_data(one)
            )
    assert Noise(None, None).of_layers(2, 4, 3) == [Noise(None, None)] * 4


def test_a_rate_near_one_drops_nearly_everything_but_not_all():
    x = jnp.ones((2000, 1000))
    kept = np.asarray(dropout(jax.random.key(0), x, jnp.float32(1 - 1e-7)) != 0).sum()
    # 2e6 elements, each kept with probability 2**-16.
    assert 5 < kept < 80


def test_the_gradient_is_the_mask():
    key = jax.random.key(0)
    x = jnp.arange(1.0, 101.0)
    grad = jax.grad(lambda x: dropout(key, x, 0.25).sum())(x)
    np.testing.assert_allclose(grad * x, dropout(key, x, 0.25), rtol=1e-6)


def test_an_infinity_that_is_dropped_leaves_no_nan():
    y = dropout(jax.random.key(0), jnp.full(100, jnp.inf), 0.5)
    assert not jnp.isnan(y).any()


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan")])
def test_a_number_outside_the_range_is_refused(rate):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\), got"):
        dropout(jax.random.key(0), jnp.ones(3), rate)
