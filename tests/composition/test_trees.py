"""What a transform does to a leaf depends on its path, not on what holds it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cwgnc_jax
from tests.composition.transforms import (
    GRADS,
    LIKE_OTHERS,
    PARAMS,
    PRETRAINED,
    TRANSFORMS,
    as_jax,
    length,
    pairs,
    wide,
)
from tests.composition.trees import TREES
from tests.composition.ways import eager, jit

OFTEN = {"dict", "NNX State", "None", "MaskedNode, whole layer", "bfloat16"}


def usual(name, tree):
    seldom = LIKE_OTHERS | {"gradual_unfreezing"}
    return name not in seldom or tree in OFTEN


each_tree = pytest.mark.parametrize("tree", TREES)


def assert_same_leaves(tree, expected, like, rtol):
    """The values are right; structure and dtypes are those of ``like``."""
    assert jax.tree.structure(tree) == jax.tree.structure(like)
    leaves = (jax.tree.leaves(each) for each in (tree, expected, like))
    for leaf, right, before in zip(*leaves, strict=True):
        assert (leaf.dtype, leaf.shape) == (before.dtype, before.shape)
        np.testing.assert_allclose(wide(leaf), wide(right), rtol=rtol, atol=rtol / 10)


def assert_updates_leaves_as_alone(transform, kind, way):
    params, pretrained, *grads = map(kind.leaves, (PARAMS, PRETRAINED, *GRADS[:3]))
    with kind.precision():
        tx, trees = transform.make(kind.build(pretrained)), list(map(kind.build, grads))
        history = way(tx, kind.build(params), trees)
        expected = transform.alone(params, grads, pretrained)
        for updates, right, like in zip(history, expected, trees, strict=True):
            assert_same_leaves(updates, kind.build(right), like, kind.rtol)


@pytest.mark.parametrize(("name", "tree"), pairs(TREES, usual))
def test_a_leaf_is_updated_as_if_it_stood_alone(name, tree):
    # Outside of a program it compiles its conditions in each step.
    way = jit if name == "gradual_unfreezing" else eager
    assert_updates_leaves_as_alone(TRANSFORMS[name], TREES[tree], way)


@each_tree
def test_in_a_program_too(tree):
    assert_updates_leaves_as_alone(TRANSFORMS["clip by rules"], TREES[tree], jit)


@each_tree
def test_norms_are_those_of_the_leaves_by_path(tree):
    kind = TREES[tree]
    flat = kind.leaves(GRADS[0])
    with kind.precision():
        norms = cwgnc_jax.component_norms(kind.build(flat))
        sizes = cwgnc_jax.component_sizes(kind.build(flat))
    assert dict(sizes) == {path: np.size(leaf) for path, leaf in flat.items()}
    assert set(norms) == set(flat)
    for path, norm in norms.items():
        assert norm == pytest.approx(length([flat[path]]), rel=1e-6)


@each_tree
def test_mixout_draws_for_a_leaf_as_if_it_stood_alone(tree):
    kind, key = TREES[tree], jax.random.key(3)
    params, pretrained = kind.leaves(PARAMS), kind.leaves(PRETRAINED)
    with kind.precision():
        whole = kind.build(params)
        mixed = cwgnc_jax.mixout(whole, kind.build(pretrained), 0.5, key)
        alone = cwgnc_jax.mixout(as_jax(params), as_jax(pretrained), 0.5, key)
        assert_same_leaves(mixed, kind.build(alone), whole, kind.rtol)
    moved = [path for path in params if not np.array_equal(alone[path], params[path])]
    assert len(moved) > 1


@each_tree
def test_a_report_has_the_norms_of_the_leaves_by_path(tree):
    kind = TREES[tree]
    flat = kind.leaves(GRADS[0])
    tx = cwgnc_jax.component_clip_by_global_norm(1.5, keep_report=True)
    with kind.precision():
        params = kind.build(kind.leaves(PARAMS))
        _, state = tx.update(kind.build(flat), tx.init(params), params)
        report = cwgnc_jax.clip_report(state, params)
    norms = {path: length([leaf]) for path, leaf in flat.items()}
    assert report.norm == pytest.approx(norms, rel=1e-6)
    assert report.clipped == {path: norm > 1.5 for path, norm in norms.items()}
    clipped = sum(np.size(flat[path]) for path, norm in norms.items() if norm > 1.5)
    assert 0 < clipped < sum(map(np.size, flat.values()))
    share = clipped / sum(map(np.size, flat.values()))
    assert report.clip_rate_elements == pytest.approx(share)


def test_two_leaves_with_one_path_are_refused():
    tree = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    with pytest.raises(ValueError, match="a/b"):
        cwgnc_jax.component_norms(tree)
    with pytest.raises(ValueError, match="a/b"):
        cwgnc_jax.component_clip_by_global_norm(1.0).init(tree)


class Callable(eqx.Module):
    """A tree that is a function too, as most modules of Equinox are."""

    layer_0: jax.Array
    head: jax.Array

    def __call__(self, x):
        raise AssertionError("a transform calls what it is to take apart")


CALLABLE = Callable(jnp.ones(2), jnp.ones(2))


@pytest.mark.parametrize(
    "tx",
    [
        cwgnc_jax.gradual_unfreezing(optax.sgd(1.0), thaw_steps=[1]),
        cwgnc_jax.add_decayed_weights_towards(
            CALLABLE, 0.1, cwgnc_jax.decay_mask(CALLABLE)
        ),
        cwgnc_jax.cwgnc_adamw(0.1),
        cwgnc_jax.scale_by_layer_decay(0.5),
    ],
    ids=["unfreezing", "decay with a mask", "cwgnc_adamw", "layer decay"],
)
def test_a_module_that_can_be_called_is_a_tree_like_others(tx):
    updates, _ = tx.update(CALLABLE, tx.init(CALLABLE), CALLABLE)
    assert jax.tree.structure(updates) == jax.tree.structure(CALLABLE)


def test_rules_need_not_cover_what_is_no_parameter():
    linear = eqx.nn.Linear(2, 2, use_bias=False, key=jax.random.key(0))
    params = eqx.filter(linear, eqx.is_array)
    tx = cwgnc_jax.component_clip_by_global_norm([("weight", 0.1)])
    updates, _ = tx.update(params, tx.init(params))
    assert jnp.linalg.norm(updates.weight) == pytest.approx(0.1, rel=1e-4)
    with pytest.raises(TypeError, match="'activation' is no array .* eqx.filter"):
        mlp = eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(0))
        cwgnc_jax.component_clip_by_global_norm(1.0).init(mlp)


def test_the_order_of_components_is_that_of_their_names():
    names = [f"layer_{i}" for i in ("1", "001", "01", "10", "2")]
    sizes = cwgnc_jax.component_sizes({name: jnp.ones(1) for name in names})
    assert list(sizes) == ["layer_001", "layer_01", "layer_1", "layer_2", "layer_10"]
