import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import cwgnc_jax
from cwgnc_jax import bertadam_clip, cwgnc_adamw, scale_by_adam

GRADS = np.random.default_rng(0).normal(size=(20, 6)) * [1, 1e-1, 1e-3, 1e-5, 1e-6, 0]


def adam_by_hand(grads, b1, b2, eps, bias_correction):
    m = v = np.zeros(grads.shape[1])
    for t, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        scale = np.sqrt(1 - b2**t) / (1 - b1**t) if bias_correction else 1.0
        yield scale * m / (np.sqrt(v) + eps)


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("eps", [1e-8, 1e-6])
def test_equals_a_hand_run_loop_in_float64(bias_correction, eps):
    tx = scale_by_adam(0.9, 0.999, eps, bias_correction=bias_correction)
    state = tx.init(jnp.zeros(6))
    for g, expected in zip(
        GRADS, adam_by_hand(GRADS, 0.9, 0.999, eps, bias_correction), strict=True
    ):
        updates, state = tx.update(jnp.asarray(g, jnp.float32), state)
        np.testing.assert_allclose(updates, expected, rtol=3e-6, atol=1e-9)


def test_without_momentum_the_update_is_the_gradient_over_its_root_mean_square():
    grads = jnp.asarray(GRADS, jnp.float32)
    ours, theirs = scale_by_adam(b1=0.0), optax.scale_by_adam(b1=0.0)
    state, expected = ours.init(grads[0]), theirs.init(grads[0])
    for g in grads[:3]:
        updates, state = ours.update(g, state)
        wanted, expected = theirs.update(g, expected)
        # In smaller ones the place of eps would be seen.
        np.testing.assert_allclose(updates[:2], wanted[:2], rtol=1e-4)


def test_complex_gradients_have_the_moments_of_optax():
    grads = jnp.asarray(GRADS[0] + 1j * GRADS[1], jnp.complex64)
    ours, theirs = scale_by_adam(), optax.scale_by_adam()
    _, state = ours.update(grads, ours.init(grads))
    _, expected = theirs.update(grads, theirs.init(grads))
    np.testing.assert_allclose(state.mu, expected.mu, rtol=1e-6)
    np.testing.assert_allclose(state.nu, expected.nu, rtol=1e-6)
    assert state.nu.dtype == jnp.complex64


@pytest.mark.parametrize(
    ("gradient", "ratio"), [(1e-4, 0.997), (1e-5, 0.970), (1e-6, 0.767)]
)
def test_first_step_is_smaller_than_optax_by_the_placement_of_eps(gradient, ratio):
    grads = jnp.array([gradient])
    ours, theirs = scale_by_adam(), optax.scale_by_adam()
    step = ours.update(grads, ours.init(grads))[0][0]
    other = theirs.update(grads, theirs.init(grads))[0][0]
    assert step / other == pytest.approx(ratio, abs=6e-4)


def test_without_eps_equals_optax():
    ours, theirs = scale_by_adam(eps=0.0), optax.scale_by_adam(eps=0.0)
    state, other_state = ours.init(jnp.zeros(5)), theirs.init(jnp.zeros(5))
    for g in GRADS[:, :5]:
        g = jnp.asarray(g, jnp.float32)
        updates, state = ours.update(g, state)
        expected, other_state = theirs.update(g, other_state)
        np.testing.assert_allclose(updates, expected, rtol=1e-4)


def test_bias_correction_and_eps_may_be_swept_by_vmap():
    def first_step(bias_correction, eps):
        tx = scale_by_adam(eps=eps, bias_correction=bias_correction)
        grads = jnp.array([1e-5])
        return tx.update(grads, tx.init(grads))[0][0]

    switches, epss = jnp.array([True, False]), jnp.array([1e-8, 1e-6])
    swept = jax.jit(jax.vmap(first_step))(switches, epss)
    alone = [first_step(True, 1e-8), first_step(False, 1e-6)]
    np.testing.assert_allclose(swept, alone, rtol=1e-6)


@pytest.mark.parametrize("argument", ["b1", "b2"])
@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_decay_outside_its_range_is_refused(argument, decay):
    with pytest.raises(ValueError, match=rf"{argument} must lie in \[0, 1\), got"):
        scale_by_adam(**{argument: decay})


def test_negative_eps_is_refused():
    with pytest.raises(ValueError, match="eps must be 0 or a positive number, got -1"):
        scale_by_adam(eps=-1.0)


def test_decay_spares_biases_and_normalisation_layers():
    params = {
        "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "LayerNorm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "heads": {"bias": jnp.ones((2, 2))},
        "equinox_norm": {"weight": jnp.ones(2)},
        "word_embeddings": {"embedding": jnp.ones((3, 2))},
    }
    tx = cwgnc_adamw(0.1, weight_decay=0.5)
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    moved = [
        name for name, update in cwgnc_jax.component_norms(updates).items() if update
    ]
    assert moved == ["dense/kernel", "word_embeddings/embedding"]
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.05, rtol=1e-6)


def test_alias_is_the_chain_of_its_parts():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    grads = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 0.001)}
    alias = cwgnc_adamw(0.1, 0.05, weight_decay=0.01)
    parts = optax.chain(
        cwgnc_jax.component_clip_by_global_norm(0.05),
        scale_by_adam(),
        optax.add_decayed_weights(0.01, {"kernel": True, "bias": False}),
        optax.scale(-0.1),
    )
    updates, _ = alias.update(grads, alias.init(params), params)
    expected, _ = parts.update(grads, parts.init(params), params)
    np.testing.assert_allclose(updates["kernel"], expected["kernel"], rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], expected["bias"], rtol=1e-6)


def test_bertadam_clip_is_the_clip_of_early_bert_code():
    rng = np.random.default_rng(1)
    grads = [rng.normal(scale=s, size=(20, 6)) for s in (0.1, 10.0)]
    left = []
    for of_parameter in grads:
        parameter = torch.nn.Parameter(torch.zeros(6))
        for grad in of_parameter:
            parameter.grad = torch.tensor(grad, dtype=torch.float32)
            torch.nn.utils.clip_grad_norm_(parameter, 1.0)
            left.append(parameter.grad.numpy())
    expected = np.reshape(left, (2, 20, 6))
    adam = [adam_by_hand(np.float64(e), 0.9, 0.999, 1e-6, False) for e in expected]
    tx = optax.chain(bertadam_clip(), scale_by_adam(eps=1e-6, bias_correction=False))
    state = tx.init([jnp.zeros(6)] * 2)
    for t in range(20):
        step = [jnp.asarray(of_parameter[t], jnp.float32) for of_parameter in grads]
        clipped, _ = bertadam_clip().update(step, optax.EmptyState())
        np.testing.assert_allclose(clipped, expected[:, t], rtol=1e-6)
        updates, state = tx.update(step, state)
        np.testing.assert_allclose(
            updates, [next(a) for a in adam], rtol=2e-5, atol=1e-6
        )
    assert np.allclose(clipped[0], step[0]) and not np.allclose(clipped[1], step[1])


def test_bertadam_clip_can_be_off_and_refuses_what_is_no_threshold():
    grads = jnp.full(3, 1e6)
    updates, _ = bertadam_clip(jnp.inf).update(grads, optax.EmptyState())
    np.testing.assert_array_equal(updates, grads)
    with pytest.raises(ValueError, match="max_norm must be positive"):
        bertadam_clip(-1)
