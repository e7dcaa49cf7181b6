"""What Optax asks of the optimizers in its contrib, asked of each transform here."""

import collections
import inspect

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import cwgnc_jax
from tests.composition.transforms import (
    GRADS,
    PARAMS,
    PRETRAINED,
    SHAPES,
    TRANSFORMS,
    nested,
)
from tests.composition.wrappers import PLAIN, PULL, nested_labels

each = pytest.mark.parametrize("name", TRANSFORMS)
COPIES = {
    "scale_by_adam": 2,
    "scale_by_spam": 2,
    "cwgnc_adamw": 2,
    "gradual_unfreezing": 2,
    "spike_skip": 2,
}
"""How often each parameter is in the state; in that of the others it is not."""


def is_masked(node):
    return isinstance(node, optax.MaskedNode)


@each
def test_the_second_step_takes_extra_arguments_and_compiles_nothing(name):
    tx = optax.with_extra_args_support(TRANSFORMS[name].make(PULL))
    chex.clear_trace_counter()  # Chex counts by the name of the function.

    @jax.jit
    @chex.assert_max_traces(1)
    def step(grads, state, params, value):
        return tx.update(grads, state, params, unexpected=value)

    state = tx.init(PLAIN)
    history = []
    for value, grads in enumerate(GRADS[:2]):
        updates, state = step(nested(grads), state, PLAIN, value * 1.0)
        history.append(updates)
    for updates, right in zip(
        history, TRANSFORMS[name].alone(PARAMS, GRADS[:2]), strict=True
    ):
        chex.assert_trees_all_close(updates, nested(right), rtol=2e-5, atol=1e-6)


def test_gradual_unfreezing_hands_extra_arguments_to_its_optimizer():
    def update(updates, state, params=None, *, value):
        return optax.tree.scale(value, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    tx = cwgnc_jax.gradual_unfreezing(inner, thaw_steps=[0, 0])
    updates, _ = tx.update(PLAIN, tx.init(PLAIN), PLAIN, value=2.0)
    chex.assert_trees_all_close(updates, optax.tree.scale(2.0, PLAIN))


@each
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_state_and_updates_keep_their_dtypes(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        trees = (nested(flat) for flat in (PARAMS, GRADS[0], PRETRAINED))
        params, grads, pull = (optax.tree.cast(tree, dtype) for tree in trees)
        tx = TRANSFORMS[name].make(pull)
        state = tx.init(params)

        def step(state, skipped):
            # The two branches must have the same types.
            return jax.lax.cond(
                skipped,
                lambda: (grads, state),
                lambda: tx.update(grads, state, params),
            )

        updates, after = jax.eval_shape(step, state, True)
    assert types(updates) == types(grads)
    assert types(after) == types(state)


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)


@each
def test_state_and_updates_stay_where_the_parameters_are(name):
    devices = jax.devices()[:2]
    mesh = jax.make_mesh((2,), ("x",), (AxisType.Auto,), devices=devices)
    cut = NamedSharding(mesh, PartitionSpec("x"))
    params, grads, pull = jax.device_put((PLAIN, nested(GRADS[0]), PULL), cut)
    tx = TRANSFORMS[name].make(pull)
    update, states = jax.jit(tx.update), [tx.init(params)]
    for _ in range(2):
        updates, state = update(grads, states[-1], params)
        states.append(state)
        assert all(is_cut(leaf, cut) for leaf in jax.tree.leaves(updates))
    for state in states:
        leaves = jax.tree.leaves(state)
        # Nothing else in a state has the shape of a parameter here.
        copies = [leaf for leaf in leaves if leaf.shape in set(SHAPES.values())]
        assert len(copies) == COPIES.get(name, 0) * len(SHAPES)
        assert all(is_cut(leaf, cut) for leaf in copies)
    once, twice = map(jax.tree.leaves, states[1:])
    for one, other in zip(once, twice, strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)


def is_cut(leaf, sharding):
    return leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@each
def test_tree_map_params_finds_the_copies_of_each_parameter(name):
    tx = TRANSFORMS[name].make(PULL)
    state = tx.init(PLAIN)
    found = collections.Counter()

    def seen(leaf, path):
        if not is_masked(leaf):
            assert leaf.shape == SHAPES[path]
            found[path] += 1
        return leaf

    paths = nested_labels({path: path for path in SHAPES})
    after = optax.tree_map_params(tx, seen, state, paths, is_leaf=is_masked)
    chex.assert_trees_all_equal(after, state)
    copies = COPIES.get(name, 0)
    assert found == (dict.fromkeys(SHAPES, copies) if copies else {})


@each
def test_tree_map_params_replaces_what_is_no_parameter(name):
    tx = TRANSFORMS[name].make(PULL)
    state = tx.init(PLAIN)
    after = optax.tree_map_params(
        tx, lambda leaf: leaf, state, transform_non_params=lambda leaf: "other"
    )
    others = [leaf for leaf in jax.tree.leaves(after) if isinstance(leaf, str)]
    copies = COPIES.get(name, 0) * len(SHAPES)
    assert len(others) == len(jax.tree.leaves(state)) - copies


@each
def test_injected_it_is_the_plain_one_with_its_numbers_in_the_state(name):
    transform = TRANSFORMS[name]
    arguments = transform.arguments_with(PULL)
    plain = transform.make(PULL)
    injected = optax.inject_hyperparams(transform.factory, transform.static)
    tx = injected(**arguments)
    state, right = tx.init(PLAIN), plain.init(PLAIN)
    assert jax.tree.structure(state.inner_state) == jax.tree.structure(right)
    numbers = {
        name
        for name, value in arguments.items()
        if isinstance(value, float) and name not in transform.static
    }
    assert numbers <= set(state.hyperparams)
    _, state = jax.jit(tx.update)(nested(GRADS[0]), state, PLAIN)
    _, right = jax.jit(plain.update)(nested(GRADS[0]), right, PLAIN)
    chex.assert_trees_all_close(state.inner_state, right, rtol=1e-5, atol=1e-6)


@each
def test_injecting_needs_no_static_argument_for_a_function_left_out(name):
    transform = TRANSFORMS[name]
    for parameter in inspect.signature(transform.factory).parameters.values():
        if parameter.name in ("component_fn", "depth_fn"):
            assert parameter.default is None


def test_a_schedule_can_be_injected():
    schedule = optax.linear_schedule(1.0, 0.1, 2)
    factory = cwgnc_jax.component_clip_by_global_norm
    tx, plain = optax.inject_hyperparams(factory)(max_norm=schedule), factory(schedule)
    state, right = tx.init(PLAIN), plain.init(PLAIN)
    for grads in map(nested, GRADS[:3]):
        updates, state = tx.update(grads, state, PLAIN)
        expected, right = plain.update(grads, right, PLAIN)
        chex.assert_trees_all_close(updates, expected, rtol=1e-6)
    assert state.hyperparams["max_norm"] == pytest.approx(0.1)


def test_an_injected_threshold_can_be_changed_in_the_state():
    factory = cwgnc_jax.component_clip_by_global_norm
    tx = optax.inject_hyperparams(factory)(max_norm=0.1)
    state = tx.init(PLAIN)
    state.hyperparams["max_norm"] = jnp.float32(0.2)
    updates, _ = tx.update(nested(GRADS[0]), state, PLAIN)
    expected, _ = factory(0.2).update(nested(GRADS[0]), factory(0.2).init(PLAIN))
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)
