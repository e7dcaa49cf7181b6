"""Depths, rules and pretrained weights where a wrapper hides some of the leaves."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import cwgnc_jax
from cwgnc_jax import (
    add_decayed_weights_towards,
    by_rules,
    component_clip_by_global_norm,
    gradual_unfreezing,
    scale_by_layer_decay,
)

MODULES = ("embeddings", "layer_0", "layer_1", "classifier")
GRADS = {name: jnp.array([3.0]) for name in MODULES}
DECAYED = {"embeddings": 0.375, "layer_0": 0.75, "layer_1": 1.5, "classifier": 3.0}
SGD = optax.sgd(1.0)


def one_step(tx, grads=GRADS, params=GRADS):
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    return {name: float(leaf[0]) for name, leaf in updates.items() if leaf is not None}


def negative(tree):
    return {name: -value for name, value in tree.items()}


def test_layer_decay_in_gradual_unfreezing_counts_from_the_whole_tree():
    tx = optax.chain(SGD, scale_by_layer_decay(0.5))
    tx = gradual_unfreezing(tx, thaw_steps=[0, 0])
    assert one_step(tx) == negative(DECAYED)


@pytest.mark.parametrize("hidden", MODULES)
def test_layer_decay_counts_the_depths_that_a_mask_hides(hidden):
    mask = {name: name != hidden for name in MODULES}
    tx = optax.chain(SGD, optax.masked(scale_by_layer_decay(0.5), mask))
    assert one_step(tx) == negative(DECAYED | {hidden: 3.0})


@pytest.mark.parametrize("hidden", MODULES)
def test_layer_decay_counts_the_depths_of_none(hidden):
    grads = GRADS | {hidden: None}
    tx = scale_by_layer_decay(0.5)
    expected = {name: value for name, value in DECAYED.items() if name != hidden}
    assert one_step(tx, grads, grads) == expected
    assert one_step(tx, grads) == expected


@pytest.mark.parametrize("names", [["layer_0"], ["embeddings", "layer_1"]])
def test_layer_decay_can_be_told_the_number_of_layers(names):
    tx = scale_by_layer_decay(0.5, num_layers=2)
    tree = {name: GRADS[name] for name in names}
    assert one_step(tx, tree, tree) == {name: DECAYED[name] for name in names}


@pytest.mark.parametrize("hidden", MODULES)
def test_thawing_counts_the_depths_that_a_mask_hides(hidden):
    mask = {name: name != hidden for name in MODULES}
    tx = optax.masked(gradual_unfreezing(SGD, thaw_steps=[0, 1]), mask)
    thawed = {"embeddings": 0.0, "layer_0": 0.0, "layer_1": -3.0, "classifier": -3.0}
    assert one_step(tx) == thawed | {hidden: 3.0}


# --- Rules, each of which has its leaves in one group only.

BY_MODULE = by_rules([(name, f"the {name}") for name in MODULES])
LIMITS = [("classifier", None), ("layer_.", 2.0), ("embeddings", 1.0)]
CLIPS = {
    "by_rules": component_clip_by_global_norm(1.0, BY_MODULE, eps=0),
    "max_norm": component_clip_by_global_norm(LIMITS, eps=0),
}
CLIPPED = {
    "by_rules": dict.fromkeys(MODULES, 1.0),
    "max_norm": {"embeddings": 1.0, "layer_0": 2.0, "layer_1": 2.0, "classifier": 3.0},
}
each_clip = pytest.mark.parametrize("rules", CLIPS)


@each_clip
@pytest.mark.parametrize("hidden", MODULES)
def test_rules_for_leaves_that_a_mask_hides_are_no_error(rules, hidden):
    tx = optax.masked(CLIPS[rules], {name: name != hidden for name in MODULES})
    assert one_step(tx) == pytest.approx(CLIPPED[rules] | {hidden: 3.0})


@each_clip
def test_rules_for_leaves_of_another_group_are_no_error(rules):
    groups = dict.fromkeys(MODULES, "lower") | {"classifier": "upper"}
    tx = optax.partition({"lower": CLIPS[rules], "upper": CLIPS[rules]}, groups)
    assert one_step(tx) == pytest.approx(CLIPPED[rules])


@each_clip
def test_rules_for_leaves_of_another_depth_are_no_error(rules):
    tx = gradual_unfreezing(optax.chain(CLIPS[rules], SGD), thaw_steps=[0, 0])
    assert one_step(tx) == pytest.approx(negative(CLIPPED[rules]))


@each_clip
def test_a_rule_without_effect_is_an_error_in_a_whole_tree(rules):
    whole = {name: leaf for name, leaf in GRADS.items() if name != "classifier"}
    with pytest.raises(ValueError, match="rule .*classifier"):
        CLIPS[rules].init(whole)


@each_clip
def test_a_leaf_without_a_rule_is_an_error_under_a_mask_too(rules):
    tree = GRADS | {"pooler": jnp.ones(1)}
    tx = optax.masked(CLIPS[rules], {name: name != "classifier" for name in tree})
    with pytest.raises(ValueError, match="pooler"):
        tx.init(tree)


# --- Pretrained weights of the whole tree.

PRETRAINED = {name: jnp.array([float(i)]) for i, name in enumerate(MODULES)}
PULLED = {name: 3.0 + 0.5 * (3.0 - i) for i, name in enumerate(MODULES)}
PULL = add_decayed_weights_towards(PRETRAINED, 0.5)


@pytest.mark.parametrize("hidden", MODULES)
def test_pretrained_leaves_that_a_mask_hides_are_left_out(hidden):
    tx = optax.masked(PULL, {name: name != hidden for name in MODULES})
    assert one_step(tx) == PULLED | {hidden: 3.0}


def test_pretrained_leaves_of_other_groups_are_left_out():
    groups = dict.fromkeys(MODULES, "lower") | {"classifier": "upper"}
    tx = optax.partition({"lower": PULL, "upper": optax.identity()}, groups)
    assert one_step(tx) == PULLED | {"classifier": 3.0}


def test_pretrained_leaves_of_other_depths_are_left_out():
    tx = gradual_unfreezing(optax.chain(PULL, SGD), thaw_steps=[0, 0])
    assert one_step(tx) == negative(PULLED)


@pytest.mark.parametrize("mask", [dict.fromkeys(MODULES, True), cwgnc_jax.decay_mask])
def test_a_mask_of_the_decay_composes_with_one_around_it(mask):
    tx = add_decayed_weights_towards(PRETRAINED, 0.5, mask)
    tx = optax.masked(tx, {name: name != "layer_0" for name in MODULES})
    everything_is_a_vector = callable(mask)
    expected = dict.fromkeys(MODULES, 3.0) if everything_is_a_vector else PULLED
    assert one_step(tx) == expected | {"layer_0": 3.0}


@pytest.mark.parametrize(
    "pretrained",
    [
        {name: leaf for name, leaf in PRETRAINED.items() if name != "layer_0"},
        PRETRAINED | {"layer_0": jnp.ones(2)},
        PRETRAINED | {"pooler": jnp.ones(1)},
    ],
    ids=["a leaf less", "another shape", "a leaf more"],
)
def test_pretrained_of_another_model_is_refused(pretrained):
    tx = add_decayed_weights_towards(pretrained, 0.5)
    with pytest.raises(ValueError, match="pretrained must be a tree like"):
        tx.init(GRADS)


def test_report_under_a_mask_names_what_was_clipped():
    tx = component_clip_by_global_norm(1.0, eps=0, keep_report=True)
    tx = optax.masked(tx, {name: name != "layer_0" for name in MODULES})
    _, state = tx.update(GRADS, tx.init(GRADS), GRADS)
    seen = GRADS | {"layer_0": optax.MaskedNode()}
    report = cwgnc_jax.clip_report(state, seen)
    chex.assert_trees_all_close(
        report.norm, {name: 3.0 for name in MODULES if name != "layer_0"}
    )
    assert report.clip_rate_components == 1.0


LAYERS = {str(i): {"kernel": jnp.ones(1)} for i in range(3)}
MODEL = {"embeddings": jnp.ones(1), "layers": LAYERS, "head": jnp.ones(1)}
WITHOUT_LAYERS = {"embeddings": True, "layers": False, "head": True}


@pytest.mark.parametrize(
    ("make", "embeddings"),
    [
        (lambda **more: scale_by_layer_decay(0.5, **more), 0.5**4),
        (lambda **more: gradual_unfreezing(SGD, thaw_steps=[0, 0, 1], **more), 0.0),
    ],
    ids=["layer decay", "unfreezing"],
)
def test_layers_hidden_by_one_entry_of_a_mask_have_to_be_counted_by_hand(
    make, embeddings
):
    with pytest.raises(ValueError, match="hides all of 'layers'. Pass num_layers"):
        optax.masked(make(), WITHOUT_LAYERS).init(MODEL)
    tx = optax.masked(make(num_layers=3), WITHOUT_LAYERS)
    updates, _ = tx.update(MODEL, tx.init(MODEL), MODEL)
    assert updates["embeddings"] == embeddings
    assert updates["head"] != 0
