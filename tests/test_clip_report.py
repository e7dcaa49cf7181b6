import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cwgnc_jax import (
    by_module,
    clip_report,
    component_clip_by_global_norm,
    component_norms,
)

GRADS = {
    "loud": {"kernel": jnp.array([[6.0, 8.0]]), "bias": jnp.zeros(2)},
    "quiet": {"kernel": jnp.array([[0.3, 0.4, 0.0]])},
    "free": jnp.array([7.0]),
}


def make(**kwargs):
    kwargs = {"eps": 0, "keep_report": True} | kwargs
    rules = [("free", None), (".*", 1.0)]
    return component_clip_by_global_norm(rules, by_module, **kwargs)


def test_report_tells_norm_coefficient_and_clip_rates_by_name():
    tx = optax.chain(make(), optax.adam(1e-3))
    _, opt_state = jax.jit(tx.update)(GRADS, tx.init(GRADS))
    report = clip_report(opt_state, GRADS, by_module)
    assert report.norm == {"free": 7.0, "loud": 10.0, "quiet": 0.5}
    assert report.coefficient == pytest.approx({"free": 1, "loud": 0.1, "quiet": 1})
    assert report.clipped == {"free": False, "loud": True, "quiet": False}
    assert report.clip_rate_components == pytest.approx(1 / 3)
    assert report.clip_rate_elements == pytest.approx(4 / 8)
    assert json.loads(json.dumps(report._asdict()))["norm"]["loud"] == 10.0


def test_report_before_the_first_step_is_blank():
    report = clip_report(make().init(GRADS), GRADS, by_module)
    assert report.norm == {"free": 0.0, "loud": 0.0, "quiet": 0.0}
    assert set(report.coefficient.values()) == {1.0}
    assert report.clip_rate_components == report.clip_rate_elements == 0.0


def test_reporting_clip_clips_as_the_silent_one():
    tx, silent = make(), make(keep_report=False)
    updates, _ = tx.update(GRADS, tx.init(GRADS))
    expected, _ = silent.update(GRADS, silent.init(GRADS))
    chex.assert_trees_all_equal(updates, expected)


def test_report_survives_scan_and_vmap_with_leading_axes():
    tx = optax.chain(make(), optax.sgd(1.0))
    scales = jnp.array([[1.0, 2.0, 3.0], [0.0, 1.0, jnp.nan]])

    def step(opt_state, scale):
        _, opt_state = tx.update(jax.tree.map(lambda g: g * scale, GRADS), opt_state)
        return opt_state, opt_state

    def run(scales):
        return jax.lax.scan(step, tx.init(GRADS), scales)[1]

    report = clip_report(jax.jit(jax.vmap(run))(scales), GRADS, by_module)
    np.testing.assert_allclose(report.norm["loud"], 10 * scales)
    assert report.clipped["loud"] == [[True, True, True], [False, True, False]]
    assert np.shape(report.clip_rate_elements) == (2, 3)


def test_report_inside_jit_and_scan_is_the_one_outside():
    params = {"layers": {str(i): {"kernel": jnp.ones(2 + i)} for i in range(11)}}
    tx = component_clip_by_global_norm(3.0, keep_report=True)

    def step(state, scale):
        _, state = tx.update(jax.tree.map(lambda p: p * scale, params), state)
        return state, (state, clip_report(state, params))

    @jax.jit
    def run(scales):
        return jax.lax.scan(step, tx.init(params), scales)[1]

    states, inside = run(jnp.array([1.0, jnp.nan, 1.4]))
    outside = clip_report(states, params)
    assert 0 < outside.clip_rate_components[0] < outside.clip_rate_components[2] < 1
    for one, other in zip(inside[:3], outside[:3], strict=True):
        assert list(one) == list(other)  # layer 10 after layer 2
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    np.testing.assert_allclose(inside[3:], outside[3:], rtol=1e-6)


def test_report_has_a_scalar_of_every_name_for_writers():
    _, state = make().update(GRADS, make().init(GRADS))
    scalars = clip_report(state, GRADS, by_module).scalars("my clip")
    assert len(scalars) == 2 + 3 * 3
    assert scalars["my clip/norm/loud"] == 10.0
    assert scalars["my clip/coefficient/loud"] == pytest.approx(0.1)
    assert scalars["my clip/clipped/loud"] == 1
    assert scalars["my clip/clipped/quiet"] == 0
    assert scalars["my clip/rate_elements"] == 0.5
    assert not any(isinstance(value, bool) for value in scalars.values())


def test_report_is_fetched_by_one_transfer(monkeypatch):
    _, state = make().update(GRADS, make().init(GRADS))
    assert len(jax.tree.leaves(state)) == 1
    fetched = []
    device_get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(x) or device_get(x))
    clip_report(state, GRADS, by_module)
    assert [array.shape for array in fetched] == [(2, 3)]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.masked(tx, {"loud": True, "quiet": True, "free": True}),
    ],
    ids=["MultiSteps", "apply_if_finite", "masked"],
)
def test_report_keeps_its_structure_in_wrappers_and_donation(wrap):
    tx = wrap(make())
    update = jax.jit(tx.update, donate_argnums=1)
    state = tx.init(GRADS)
    structure = jax.tree.structure(state)
    for _ in range(2):
        _, state = update(GRADS, state)
    assert jax.tree.structure(state) == structure
    assert clip_report(state, GRADS, by_module).norm["loud"] == 10.0


def test_report_of_a_scheduled_clip_keeps_the_count():
    tx = component_clip_by_global_norm(lambda step: 2.0 - step, keep_report=True, eps=0)
    state = tx.init(GRADS)
    for expected in (0.2, 0.1):
        updates, state = tx.update(GRADS, state)
        coefficient = clip_report(state, GRADS).coefficient["loud/kernel"]
        assert coefficient == pytest.approx(expected)
    assert component_norms(updates)["free"] == pytest.approx(1.0)


def test_report_of_an_empty_tree_is_empty():
    tx = component_clip_by_global_norm(1.0, keep_report=True)
    _, state = tx.update({}, tx.init({}))
    assert clip_report(state, {}) == ({}, {}, {}, 0.0, 0.0)


def test_report_of_stacked_layers_names_each():
    grads = {"layers": {"kernel": jnp.array([[3.0, 4.0], [0.3, 0.4]])}}
    tx = component_clip_by_global_norm(
        1.0, stacked_axes={"layers": 0}, keep_report=True
    )
    _, state = tx.update(grads, tx.init(grads))
    report = clip_report(state, grads, stacked_axes={"layers": 0})
    assert report.clipped == {"layers/0/kernel": True, "layers/1/kernel": False}


def test_state_without_a_report_or_with_two_is_refused_with_the_fix():
    with pytest.raises(
        ValueError, match="found 0. Make the clip with keep_report=True"
    ):
        clip_report(make(keep_report=False).init(GRADS), GRADS)
    with pytest.raises(
        ValueError, match=r"found 2. Pass the state of one.*opt_state\[0"
    ):
        clip_report(optax.chain(make(), make()).init(GRADS), GRADS)


def test_parameters_of_another_clip_are_refused_with_the_fix():
    with pytest.raises(ValueError, match="has 3 components, but the parameters .* 4"):
        clip_report(make().init(GRADS), GRADS)


def test_scalars_of_many_runs_are_numbers():
    tx = component_clip_by_global_norm(1.0, eps=0, keep_report=True)

    def run(scale):
        grads = {"w": scale * jnp.ones(4)}
        return tx.update(grads, tx.init(grads))[1]

    states = jax.vmap(run)(jnp.array([0.25, 1.0]))
    scalars = clip_report(states, {"w": jnp.ones(4)}).scalars()
    assert scalars["clip/clipped/w"] == [0, 1]
    assert [type(number) for number in scalars["clip/clipped/w"]] == [int, int]
    assert scalars["clip/rate_components"] == [0.0, 1.0]
