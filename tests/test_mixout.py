import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cwgnc_jax import mixout

RATE = 0.7


def trees(rows=6, columns=4):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.array(rng.normal(size=shape), jnp.float32)
    return tuple(
        {
            "dense": {"kernel": draw(rows, columns), "bias": draw(columns)},
            "LayerNorm": {"scale": draw(columns)},
            "embedding": draw(5, columns),
        }
        for _ in range(2)
    )


def kernel(tree):
    return tree["dense"]["kernel"]


def kept_inputs(mixed, params, pretrained):
    """Which inputs kept their weights, read off the mixed kernel."""
    return (jnp.abs(kernel(mixed) - kernel(pretrained)) > 1e-5).any(axis=1)


def test_equals_the_formula_of_the_authors():
    params, pretrained = trees()
    mixed = mixout(params, pretrained, RATE, jax.random.key(0))
    noise = kept_inputs(mixed, params, pretrained)
    assert 0 < noise.sum() < noise.size
    # In torch's layout, (out, in), a row of noise is repeated for every output.
    n = torch.tensor(np.array(noise, np.float32)).repeat(4, 1)
    w, target = (torch.tensor(np.array(kernel(t))).T for t in (params, pretrained))
    expected = ((1 - n) * target + n * w - RATE * target) / (1 - RATE)
    np.testing.assert_allclose(kernel(mixed), expected.T.numpy(), rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_the_authors():
    params, pretrained = trees()
    coefficients = jnp.arange(24.0).reshape(6, 4) + 1

    def loss(params):
        mixed = mixout(params, pretrained, RATE, jax.random.key(0))
        return jnp.sum(coefficients * kernel(mixed))

    noise = kept_inputs(mixout(params, pretrained, RATE, jax.random.key(0)), *trees())
    grads = jax.grad(loss)(params)
    # Their backward pass multiplies by the noise and does not divide by 1 - p.
    np.testing.assert_array_equal(kernel(grads), coefficients * noise[:, None])


def test_the_expectation_is_the_weights():
    params, pretrained = trees()
    keys = jax.random.split(jax.random.key(0), 20_000)
    mixed = jax.vmap(lambda k: kernel(mixout(params, pretrained, RATE, k)))(keys)
    scale = jnp.abs(kernel(params) - kernel(pretrained)).max()
    error = jnp.abs(mixed.mean(0) - kernel(params)).max()
    assert error < 5 * scale * (RATE / (1 - RATE) / len(keys)) ** 0.5


def test_only_kernels_are_mixed():
    params, pretrained = trees()
    mixed = mixout(params, pretrained, RATE, jax.random.key(0))
    for path in (("dense", "bias"), ("LayerNorm", "scale")):
        assert (mixed[path[0]][path[1]] == params[path[0]][path[1]]).all()
    assert (mixed["embedding"] == params["embedding"]).all()


def test_rate_zero_changes_nothing_and_a_rate_may_be_traced():
    params, pretrained = trees()
    key = jax.random.key(0)
    mix = jax.jit(lambda rate: kernel(mixout(params, pretrained, rate, key)))
    np.testing.assert_array_equal(mix(0.0), kernel(params))
    fixed = kernel(mixout(params, pretrained, RATE, key))
    np.testing.assert_allclose(mix(RATE), fixed, rtol=1e-6)


def test_kernels_and_steps_have_draws_of_their_own():
    params, pretrained = trees(rows=64)
    params, pretrained = ({"a": t, "b": t} for t in (params, pretrained))
    mixed = mixout(params, pretrained, RATE, jax.random.key(0))
    other = mixout(params, pretrained, RATE, jax.random.key(1))
    assert (kernel(mixed["a"]) != kernel(mixed["b"])).any()
    assert (kernel(mixed["a"]) != kernel(other["a"])).any()


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_bad_rates_are_refused(rate):
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\)"):
        mixout(*trees(), rate, jax.random.key(0))


def test_other_trees_are_refused():
    params, pretrained = trees()
    with pytest.raises(ValueError, match="pretrained must be a tree like params"):
        mixout(params, pretrained["dense"], RATE, jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "shape", "axis", "drawn"),
    [
        ("weight", (4, 64), 1, (1, 64)),  # Equinox: (out, in)
        ("kernel", (3, 64, 4), -2, (3, 64, 1)),  # scanned: (layers, in, out)
        ("weight", (3, 4, 64), -1, (3, 1, 64)),  # both
    ],
)
def test_kernels_of_other_layouts_have_one_draw_for_each_input(
    name, shape, axis, drawn
):
    params = {"dense": {name: jnp.ones(shape)}, "norm": {name: jnp.ones(shape[-1])}}
    pretrained = jax.tree.map(jnp.zeros_like, params)
    kernels = {f".*{name}": axis}
    mixed = mixout(params, pretrained, 0.5, jax.random.key(0), kernels)
    np.testing.assert_array_equal(mixed["norm"][name], params["norm"][name])
    kept = np.asarray(mixed["dense"][name]) == 2.0
    inputs = kept.any(axis=tuple(np.flatnonzero(np.array(drawn) == 1)), keepdims=True)
    assert inputs.shape == drawn
    np.testing.assert_array_equal(kept, np.broadcast_to(inputs, shape))
    assert 0.3 < inputs.mean() < 0.7
    if len(shape) == 3:
        assert (inputs[0] != inputs[1]).any()


def test_a_tree_without_a_kernel_is_refused_with_the_fix():
    params = {"weight": jnp.ones((4, 2))}
    with pytest.raises(
        ValueError, match="finds no kernel .* 'weight' .* Say with kern"
    ):
        mixout(params, params, 0.5, jax.random.key(0))
    with pytest.raises(
        ValueError, match="axis 0 of 'weight', .* must be one of the la"
    ):
        mixout(
            {"weight": jnp.ones((3, 4, 2))},
            {"weight": jnp.ones((3, 4, 2))},
            *(0.5, jax.random.key(0), {"weight": 0}),
        )


def test_kernels_keep_their_dtype_whatever_that_of_the_rate():
    params = {"kernel": jnp.ones((3, 2), jnp.bfloat16)}
    for rate in (np.float64(0.5), jnp.float32(0.5)):
        mixed = mixout(params, params, rate, jax.random.key(0))
        assert mixed["kernel"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("target", "kernels", "error", "match"),
    [
        (jnp.ones((1, 2)), None, ValueError, r"'kernel' has the shape \(1, 2\)"),
        (jnp.ones((3, 2)), {"kernel": 5}, ValueError, "axis 5 of 'kernel'"),
        (jnp.ones((3, 2)), ["kernel"], TypeError, "must map patterns for paths"),
        (jnp.ones((3, 2)), {"kernel": "0"}, TypeError, "must map patterns for paths"),
    ],
)
def test_kernels_that_do_not_fit_are_refused(target, kernels, error, match):
    params = {"kernel": jnp.ones((3, 2))}
    with pytest.raises(error, match=match):
        mixout(params, {"kernel": target}, 0.5, jax.random.key(0), kernels)
