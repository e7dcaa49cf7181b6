"""What Optax asks of its own transformations, asked of each of ours."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import cwgnc_jax
from cwgnc_jax import component_clip_by_global_norm

SHAPES = {
    "embeddings": {"embedding": (8, 4)},
    "layer_0": {"kernel": (8, 4), "bias": (8,)},
    "classifier": {"kernel": (8, 2)},
}


def random_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


PARAMS, PRETRAINED = random_tree(0), random_tree(1)
GRADS = [random_tree(2 + i, scale) for i, scale in enumerate((1.0, 3.0, 0.3, 2.0))]
CLIPS = {
    "clip": component_clip_by_global_norm(0.5),
    "clip, scheduled": component_clip_by_global_norm(
        optax.linear_schedule(1.0, 0.1, 3)
    ),
    "clip by rules": component_clip_by_global_norm([(".*bias", None), (".*", 0.5)]),
    "clip per element": component_clip_by_global_norm(cwgnc_jax.per_element(0.1)),
    "clip relative to params": component_clip_by_global_norm(
        cwgnc_jax.relative_to_params(0.1)
    ),
    "clip by module, zeroing": component_clip_by_global_norm(
        0.5, cwgnc_jax.by_module, nonfinite="zero"
    ),
    "clip of stacked layers": component_clip_by_global_norm(
        0.5, stacked_axes={"layer_0": 0}
    ),
    "clip, reporting": component_clip_by_global_norm(0.5, keep_report=True),
    "adagc": cwgnc_jax.adagc(warmup_steps=1),
    "aggc": cwgnc_jax.aggc(0.5, 1.5, keep_report=True),
    "olmo_clip": cwgnc_jax.olmo_clip(1.1),
    "autoclip": cwgnc_jax.autoclip(30, history_length=3),
    "zclip": cwgnc_jax.zclip(0.1, warmup_steps=2),
    "zclip, capped": cwgnc_jax.zclip(warmup_steps=2, max_global_norm=0.5),
    "aggc, capped": cwgnc_jax.aggc(
        0.9, 0.6, min_factor=0.9, max_factor=1.1, floor=0.01, raise_small=False
    ),
    "olmo_clip, warming": cwgnc_jax.olmo_clip(0.5, warmup_steps=2),
}
WITHOUT_MOMENTS = CLIPS | {
    "add_decayed_weights_towards": cwgnc_jax.add_decayed_weights_towards(
        PRETRAINED, 0.1
    ),
    "scale_by_layer_decay": cwgnc_jax.scale_by_layer_decay(0.5),
}
WITH_MOMENTS = {
    "scale_by_adam": cwgnc_jax.scale_by_adam(),
    "scale_by_spam": cwgnc_jax.scale_by_spam(
        interval=2, threshold=2.0, spared_steps=0, warmup_steps=1
    ),
    "spike_skip": cwgnc_jax.spike_skip(optax.scale_by_adam(), window=4),
    "cwgnc_adamw": cwgnc_jax.cwgnc_adamw(0.1, 0.5, weight_decay=0.1),
    "gradual_unfreezing": cwgnc_jax.gradual_unfreezing(optax.adam(0.1), thaw_steps=[1]),
}
EVERY = WITHOUT_MOMENTS | WITH_MOMENTS
each = pytest.mark.parametrize("name", EVERY)


def in_a_program(transformations, grads):
    """The updates of each step of each transformation; all are one scan."""

    def step(states, grads):
        results = {
            name: tx.update(grads, states[name], PARAMS)
            for name, tx in transformations.items()
        }
        states = {name: state for name, (_, state) in results.items()}
        return states, {name: updates for name, (updates, _) in results.items()}

    @jax.jit
    def run(grads):
        states = {name: tx.init(PARAMS) for name, tx in transformations.items()}
        return jax.lax.scan(step, states, grads)[1]

    updates = run(jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads))
    return [jax.tree.map(lambda leaf, i=i: leaf[i], updates) for i in range(len(grads))]


def step_by_step(name, grads):
    tx, updates = EVERY[name], []
    state = tx.init(PARAMS)
    for of_step in grads:
        of_step, state = tx.update(of_step, state, PARAMS)
        updates.append(of_step)
    return updates


@pytest.fixture(scope="module")
def scanned():
    return in_a_program(EVERY, GRADS)


@pytest.fixture(scope="module")
def accumulated():
    wrapped = {name: optax.MultiSteps(tx, 2) for name, tx in EVERY.items()}
    return in_a_program(wrapped, GRADS)


NANS = jax.tree.map(lambda leaf: leaf.at[..., 0].set(jnp.nan), GRADS[1])


@pytest.fixture(scope="module")
def skipping():
    wrapped = {name: optax.apply_if_finite(tx, 3) for name, tx in EVERY.items()}
    return in_a_program(wrapped, [GRADS[0], NANS, GRADS[2]])


@each
def test_a_scan_in_jit_equals_a_loop_without(name, scanned):
    # The compiler may contract products and sums.
    for one, other in zip(scanned, step_by_step(name, GRADS), strict=True):
        chex.assert_trees_all_close(one[name], other, rtol=1e-5, atol=1e-7)


@each
def test_accumulation_is_a_step_on_the_mean(name, accumulated):
    means = [jax.tree.map(lambda a, b: (a + b) / 2, *GRADS[i : i + 2]) for i in (0, 2)]
    expected = step_by_step(name, means)
    for waiting, stepped, of_mean in zip(
        accumulated[::2], accumulated[1::2], expected, strict=True
    ):
        assert not any(leaf.any() for leaf in jax.tree.leaves(waiting[name]))
        chex.assert_trees_all_close(stepped[name], of_mean, rtol=1e-5, atol=1e-7)


@each
def test_a_step_that_is_not_finite_can_be_left_out(name, skipping):
    expected = step_by_step(name, [GRADS[0], GRADS[2]])
    assert not any(leaf.any() for leaf in jax.tree.leaves(skipping[1][name]))
    chex.assert_trees_all_close(
        [skipping[0][name], skipping[2][name]], expected, rtol=1e-5, atol=1e-7
    )


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@each
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_updates_and_state_keep_shape_and_dtype(name, dtype):
    params, grads = (optax.tree.cast(tree, dtype) for tree in (PARAMS, GRADS[0]))
    state = jax.eval_shape(EVERY[name].init, params)
    updates, after = jax.eval_shape(EVERY[name].update, grads, state, params)
    assert shapes(updates) == shapes(grads)
    assert shapes(after) == shapes(state)


@pytest.mark.parametrize("name", WITHOUT_MOMENTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_updates_of_long_parameters_stay_short(name, dtype):
    tx, grads = EVERY[name], optax.tree.cast(GRADS[0], dtype)
    state = jax.eval_shape(tx.init, PARAMS)
    updates, after = jax.eval_shape(tx.update, grads, state, PARAMS)
    assert shapes(updates) == shapes(grads)
    assert shapes(after) == shapes(state)


def scale_by_value():
    def update(updates, state, params=None, *, value):
        return optax.tree.scale(value, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


@each
def test_extra_arguments_pass_by(name):
    tx = optax.chain(EVERY[name], scale_by_value())
    updates, _ = tx.update(GRADS[0], tx.init(PARAMS), PARAMS, value=2.0)
    [expected] = step_by_step(name, GRADS[:1])
    chex.assert_trees_all_close(updates, optax.tree.scale(2.0, expected), rtol=1e-6)


@pytest.mark.parametrize(
    ("factory", "numbers"),
    [
        (component_clip_by_global_norm, {"max_norm": 0.5, "eps": 1e-3}),
        (cwgnc_jax.adagc, {"ratio": 1.1, "decay": 0.5, "warmup_steps": 0}),
        (cwgnc_jax.aggc, {"low": 0.5, "high": 1.5, "decay": 0.5}),
        (
            cwgnc_jax.aggc,
            {"low": 0.9, "high": 0.6, "min_factor": 0.9, "max_factor": 1.1}
            | {"floor": 0.01},
        ),
        (cwgnc_jax.olmo_clip, {"ratio": 1.1, "decay": 0.5, "warmup_steps": 1}),
        (cwgnc_jax.autoclip, {"percentile": 30.0}),
        (cwgnc_jax.zclip, {"z_threshold": 0.1, "decay": 0.5, "warmup_steps": 1}),
        (cwgnc_jax.zclip, {"max_global_norm": 0.5}),
        (cwgnc_jax.bertadam_clip, {"max_norm": 0.5}),
        (cwgnc_jax.spike_skip, {"inner": optax.sgd(0.1), "sigmas": 3.0}),
        (cwgnc_jax.scale_by_spam, {"interval": 2, "threshold": 2.0, "eps": 1e-3}),
        (cwgnc_jax.scale_by_adam, {"b1": 0.8, "b2": 0.9, "eps": 1e-3}),
        (cwgnc_jax.cwgnc_adamw, {"learning_rate": 0.1, "weight_decay": 0.1}),
        (cwgnc_jax.scale_by_layer_decay, {"decay": 0.5}),
        (
            cwgnc_jax.add_decayed_weights_towards,
            {"pretrained": PRETRAINED, "rate": 0.1},
        ),
    ],
    ids=lambda argument: getattr(argument, "__name__", ""),
)
def test_numbers_can_be_injected(factory, numbers):
    static = {"component_fn", "depth_fn", "history_length", "window"}
    static &= set(inspect.signature(factory).parameters)
    plain = factory(**numbers)
    tx = optax.inject_hyperparams(factory, static_args=static)(**numbers)
    state, plain_state = tx.init(PARAMS), plain.init(PARAMS)
    structure = shapes(state)
    for grads in GRADS[:2]:
        updates, state = tx.update(grads, state, PARAMS)
        expected, plain_state = plain.update(grads, plain_state, PARAMS)
        chex.assert_trees_all_close(updates, expected, rtol=1e-5)
    assert shapes(state) == structure
    injected = {name for name in numbers if name not in ("pretrained", "inner")}
    assert injected <= set(state.hyperparams)


def test_updates_and_moments_stay_on_the_devices_of_the_parameters(scanned):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    params, grads = jax.device_put((PARAMS, GRADS[0]), sharding)

    def is_sharded(leaf):
        return leaf.ndim > 0 and leaf.sharding.is_equivalent_to(sharding, leaf.ndim)

    @jax.jit
    def update(grads, states, params):
        return {
            name: tx.update(grads, states[name], params) for name, tx in EVERY.items()
        }

    states = {name: tx.init(params) for name, tx in EVERY.items()}
    for name, (updates, after) in update(grads, states, params).items():
        chex.assert_trees_all_close(updates, scanned[0][name], rtol=1e-5, atol=1e-7)
        assert all(map(is_sharded, jax.tree.leaves(updates))), name
        before = jax.tree.leaves(states[name])
        kept = [
            is_sharded(new)
            for old, new in zip(before, jax.tree.leaves(after), strict=True)
            if is_sharded(old)
        ]
        assert all(kept), name
        assert len(kept) == (8 if name in WITH_MOMENTS else 0), name
