"""What a step must compute and keep, against counts made otherwise."""

import jax
import jax.numpy as jnp

from benchmarks.arithmetic import least_bytes, step_flops
from cwgnc_jax import models
from tests.benchmarks.conftest import CONFIG


def test_flops_are_three_times_those_of_the_forward_products():
    rows, length = 4, 8
    ids = jnp.ones((rows, length), int)
    jaxpr = jax.make_jaxpr(
        lambda params: models.apply(CONFIG, params, ids, ids, 0 * ids).logits
    )(models.init_params(CONFIG, jax.random.key(0)))
    forward = sum(_product_flops(equation) for equation in _equations(jaxpr.jaxpr))
    assert step_flops(CONFIG, [length] * rows) == 3 * forward


def test_least_bytes_by_hand():
    # Weights and two moments each; 4 x 32 numbers of each of 32 tokens and 2 x 8 of
    # softmax in 2 layers; 2 x 32 + 64 of 32 tokens in one and of 4 in the last; 32
    # after the embeddings; the gradient of 60 x 32.
    kept = 2 * (128 + 16) * 32 + 128 * (32 + 4) + 32 * 32
    expected = 4 * (3 * 1000 + kept + 1920)
    assert least_bytes(CONFIG, 1000, rows=4, length=8) == expected


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            # Of the branches for several platforms one is computed.
            value = value[0] if isinstance(value, tuple) and value else value
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def _product_flops(equation):
    if equation.primitive.name != "dot_general":
        return 0
    left = equation.invars[0].aval.shape
    (contracted, _), _ = equation.params["dimension_numbers"]
    flops = 2
    for axis in contracted:
        flops *= left[axis]
    for size in equation.outvars[0].aval.shape:
        flops *= size
    return flops
