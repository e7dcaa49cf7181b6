import itertools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from cwgnc_jax import cwgnc_adamw, encoder_depth, gradual_unfreezing, thawed

NAMES = ("embeddings", "layer_0", "layer_1", "layer_2", "pooler", "classifier")
STEPS = [0, 3, 5]
THAWS = dict(zip(NAMES, (5, 5, 3, 0, 0, 0), strict=True))


def params():
    return {name: {"kernel": jnp.full((2, 2), i + 1.0)} for i, name in enumerate(NAMES)}


def grads(step):
    return jax.tree.map(lambda x: jnp.cos(x + step), params())


def train(tx, steps, start=None):
    values = start or params()
    state, history = tx.init(values), [values]
    update = jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(grads(step), state, values)
        values = optax.apply_updates(values, updates)
        history.append(values)
    return history


@pytest.mark.parametrize("max_norm", [0.05, float("inf")])
def test_frozen_parameters_do_not_change_by_a_bit(max_norm):
    tx = gradual_unfreezing(cwgnc_adamw(0.1, max_norm), thaw_steps=STEPS)
    history = train(tx, 8)
    for name in NAMES:
        for step, values in enumerate(history):
            same = bool((values[name]["kernel"] == params()[name]["kernel"]).all())
            assert same == (step <= THAWS[name]), (name, step)


def test_a_layer_trains_as_if_it_began_when_it_thawed():
    tx = cwgnc_adamw(optax.linear_schedule(0.1, 0.0, 10), weight_decay=0.1)
    history = train(gradual_unfreezing(tx, thaw_steps=STEPS), 8)
    for name in NAMES:
        alone, state = {name: params()[name]}, None
        state = tx.init(alone)
        for step in range(THAWS[name], 8):
            updates, state = tx.update({name: grads(step)[name]}, state, alone)
            alone = optax.apply_updates(alone, updates)
        chex.assert_trees_all_close(history[-1][name], alone[name], rtol=1e-6)


def test_thawed_from_the_start_it_is_the_optimizer_itself():
    tx = cwgnc_adamw(0.1)
    unfrozen = train(gradual_unfreezing(tx, thaw_steps=[0, 0, 0]), 4)
    chex.assert_trees_all_close(unfrozen[-1], train(tx, 4)[-1], rtol=1e-6)


def test_layers_without_a_step_and_the_embeddings_stay_frozen():
    last = train(gradual_unfreezing(optax.sgd(0.1), thaw_steps=[0, 1]), 5)[-1]
    moved = {n for n in NAMES if (last[n]["kernel"] != params()[n]["kernel"]).any()}
    assert moved == {"pooler", "classifier", "layer_2", "layer_1"}


def test_the_rule_of_thawed_says_what_trains():
    """Each step thaws one more layer."""
    tx = gradual_unfreezing(optax.sgd(0.1), thaw_steps=[1, 2, 3])
    history = train(tx, 4)
    for step, (before, after) in enumerate(itertools.pairwise(history)):
        for name in NAMES:
            moved = (before[name]["kernel"] != after[name]["kernel"]).all()
            assert moved == thawed(f"{name}/kernel", 3, step)


@pytest.mark.parametrize("names", [["head"], ["embeddings", "head"]])
def test_a_model_without_layers_trains_from_the_start(names):
    tx = gradual_unfreezing(optax.sgd(1.0), thaw_steps=[])
    tree = {name: jnp.ones(1) for name in names}
    updates, _ = tx.update(tree, tx.init(tree), tree)
    assert all(update == -1 for update in updates.values())


def test_it_composes_with_scan_and_accumulation():
    tx = optax.MultiSteps(gradual_unfreezing(optax.sgd(0.1), thaw_steps=STEPS), 2)
    tx = tx.gradient_transformation()

    def body(carry, step):
        values, state = carry
        updates, state = tx.update(grads(step), state, values)
        return (optax.apply_updates(values, updates), state), None

    (last, _), _ = jax.lax.scan(body, (params(), tx.init(params())), jnp.arange(8))
    moved = {n for n in NAMES if (last[n]["kernel"] != params()[n]["kernel"]).any()}
    assert moved == {"pooler", "classifier", "layer_2", "layer_1"}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([0, 1, 2, 3], "thaw_steps has 4 steps, but there are 3 layers"),
        ([3, 1], "must not decrease, got"),
        ([-1, 1], "must be 0 or more"),
    ],
)
def test_bad_steps_are_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        gradual_unfreezing(optax.sgd(0.1), thaw_steps=steps).init(params())


def test_a_depth_function_that_leaves_a_parameter_out_is_named():
    tx = gradual_unfreezing(
        optax.sgd(0.1), lambda p: None if "pooler" in p else encoder_depth(p), [0]
    )
    with pytest.raises(TypeError, match="does not for 'pooler/kernel'"):
        tx.init(params())


@pytest.mark.parametrize(
    ("tx", "thaw_steps", "match"),
    [
        (0.1, [0], "tx must be an optax.GradientTransformation, got 0.1"),
        (optax.sgd(1.0), 3, "thaw_steps must be a list of steps, .* got 3"),
        (optax.sgd(1.0), "1,2", "thaw_steps must be a list of steps"),
        (optax.sgd(1.0), [1.5], "thaw_steps must be a list of steps"),
    ],
)
def test_what_is_no_optimizer_or_no_list_of_steps_is_refused(tx, thaw_steps, match):
    with pytest.raises(TypeError, match=match):
        gradual_unfreezing(tx, thaw_steps=thaw_steps)
