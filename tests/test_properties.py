"""What a clip does to any tree, under any partition into components and threshold."""

import math
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from hypothesis import strategies as st

from cwgnc_jax import (
    by_layer,
    by_module,
    by_module_type,
    by_parameter,
    by_rules,
    component_clip_by_global_norm,
    component_norms,
    component_sizes,
    flatten_with_paths,
    per_element,
)

# How far a leaf is off after one rounding, and the least number above zero.
ROUNDING = {"float32": 1e-6, "bfloat16": 2**-7, "float16": 2**-9}
LEAST = {"float32": 1e-37, "bfloat16": 1e-37, "float16": 6e-8}
# Of few shapes, since each compiles operations of its own.
SHAPES = [(), (0,), (3,), (2, 3), (0, 4), (2, 1, 2)]
NAMES = ["w", "b", "layer", "0", "1", "10", "h_2", "Dense_0", "value", "ü", "a.b", "*"]

leaves = st.tuples(
    st.sampled_from(SHAPES),
    st.sampled_from(list(ROUNDING)),
    st.integers(-12, 9) | st.none(),
    st.integers(0, 99),
)
trees = st.recursive(
    leaves | st.none(),
    lambda below: (
        st.dictionaries(st.sampled_from(NAMES), below, max_size=4)
        | st.lists(below, max_size=3)
    ),
    max_leaves=8,
)
norms = st.sampled_from([1e-12, 1e-6, 0.05, 1.0, 1e4, math.inf])
quick = settings(max_examples=60, deadline=None, derandomize=True)


def array(leaf):
    """A leaf as drawn: its numbers are about as large as a power of ten, or zero."""
    shape, dtype, exponent, seed = leaf
    if exponent is None:
        return jnp.zeros(shape, dtype)
    numbers = np.random.default_rng(seed).normal(size=shape)
    # Float16 holds numbers up to 65,504.
    scale = 10.0 ** (min(exponent, 3) if dtype == "float16" else exponent)
    return jnp.asarray(scale * numbers, dtype)


def arrays(tree) -> Any:
    return jax.tree.map(array, tree, is_leaf=lambda x: isinstance(x, tuple))


@st.composite
def partitions(draw, paths):
    """A function from path to component: one of the library's, or rules at random."""
    if not paths or draw(st.booleans()):
        known = [by_parameter, by_module, by_layer, by_module_type, lambda path: "all"]
        return draw(st.sampled_from(known))
    names = [draw(st.sampled_from("xyz")) for _ in paths]
    return by_rules([(re.escape(p), n) for p, n in zip(paths, names, strict=True)])


@st.composite
def problems(draw):
    """Gradients, and how they are to be clipped."""
    grads = arrays(draw(trees))
    paths, *_ = flatten_with_paths(grads)
    return grads, draw(partitions(list(dict.fromkeys(paths)))), draw(norms)


def clip(grads, max_norm, component_fn=by_parameter, eps=1e-6):
    tx = component_clip_by_global_norm(max_norm, component_fn, eps=eps)
    return tx.update(grads, tx.init(grads))[0]


def by_component(grads, component_fn):
    """The leaves of each component in float64."""
    found: dict[str, list[np.ndarray]] = {}
    for path, leaf in zip(*flatten_with_paths(grads)[:2], strict=True):
        found.setdefault(component_fn(path), []).append(np.asarray(leaf, np.float64))
    return found


def norm_of(parts):
    return math.sqrt(sum(float(np.sum(part**2)) for part in parts))


def rounding(leaf):
    name = str(leaf.dtype)
    return {"rtol": ROUNDING[name], "atol": LEAST[name]}


@given(problem=problems())
@quick
def test_a_clip_is_what_numpy_says_it_is(problem):
    grads, component_fn, max_norm = problem
    clipped = clip(grads, max_norm, component_fn)
    assert jax.tree.structure(clipped) == jax.tree.structure(grads)
    norms = {name: norm_of(p) for name, p in by_component(grads, component_fn).items()}
    np.testing.assert_allclose(
        [component_norms(grads, component_fn)[name] for name in norms],
        list(norms.values()),
        rtol=1e-6,
    )
    for path, before, after in zip(
        *flatten_with_paths(grads)[:2], jax.tree.leaves(clipped), strict=True
    ):
        assert (after.dtype, after.shape) == (before.dtype, before.shape)
        factor = 1.0
        if not math.isinf(max_norm):
            factor = min(1.0, max_norm / (norms[component_fn(path)] + 1e-6))
        if factor == 1.0:
            np.testing.assert_array_equal(after, before)
        expected = factor * np.asarray(before, np.float64)
        np.testing.assert_allclose(
            np.asarray(after, np.float64), expected, **rounding(before)
        )


@given(problem=problems())
@quick
def test_no_component_is_longer_than_the_threshold_or_than_it_was(problem):
    grads, component_fn, max_norm = problem
    before, after = (
        by_component(tree, component_fn)
        for tree in (grads, clip(grads, max_norm, component_fn, eps=0))
    )
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(grads)} or {"float32"}
    slack = 1 + max(ROUNDING[dtype] for dtype in dtypes)
    for name, parts in before.items():
        size = sum(part.size for part in parts)
        # Small numbers of float16 are not rounded to a part of themselves.
        room = max(LEAST[dtype] for dtype in dtypes) * math.sqrt(size)
        assert norm_of(after[name]) <= max_norm * slack + room
        assert norm_of(after[name]) <= norm_of(parts) * slack
        if norm_of(parts) <= max_norm * (1 - 1e-6):
            chex.assert_trees_all_equal(after[name], parts)


@given(problem=problems(), seed=st.integers(0, 99))
@quick
def test_other_names_of_the_same_components_change_nothing(problem, seed):
    grads, component_fn, max_norm = problem
    paths, found, _ = flatten_with_paths(grads)
    order = np.random.default_rng(seed).permutation(len(found))
    renamed = {f"n{i}": found[i] for i in order}
    names = {f"n{i}": component_fn(path) for i, path in enumerate(paths)}
    expected = jax.tree.leaves(clip(grads, max_norm, component_fn))
    clipped = clip(renamed, max_norm, names.__getitem__)
    for i, leaf in enumerate(expected):
        np.testing.assert_allclose(
            np.asarray(clipped[f"n{i}"], np.float64),
            np.asarray(leaf, np.float64),
            **rounding(leaf),
        )


@given(problem=problems())
@quick
def test_a_clip_equals_optax_partition_of_clips(problem):
    grads, component_fn, max_norm = problem
    grads = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), grads)
    paths, _, treedef = flatten_with_paths(grads)
    labels = jax.tree.unflatten(treedef, [component_fn(path) for path in paths])
    oracle = optax.partition(
        {name: optax.clip_by_global_norm(max_norm) for name in jax.tree.leaves(labels)},
        {"root": labels},
    )
    tree = {"root": grads}
    expected = oracle.update(tree, oracle.init(tree))[0]["root"]
    clipped = clip(grads, max_norm, component_fn, eps=0)
    chex.assert_trees_all_close(clipped, expected, rtol=2e-6, atol=1e-37)


@given(problem=problems(), threshold=st.floats(1e-9, 1e6))
@quick
def test_rules_of_thresholds_are_clips_of_their_components(problem, threshold):
    grads, component_fn, max_norm = problem
    names = list(component_sizes(grads, component_fn))
    if not names:
        return
    first, *rest = names
    rules: list[Any] = [(re.escape(first), per_element(threshold))]
    rules += [(".*", max_norm)] if rest else []
    clipped = by_component(clip(grads, rules, component_fn), component_fn)
    size = component_sizes(grads, component_fn)[first]
    if size:
        mine = clip(grads, threshold * math.sqrt(size), component_fn)
        chex.assert_trees_all_close(
            clipped[first], by_component(mine, component_fn)[first], rtol=1e-6
        )
    others = by_component(clip(grads, max_norm, component_fn), component_fn)
    for name in rest:
        chex.assert_trees_all_equal(clipped[name], others[name])


@given(problem=problems())
@quick
def test_a_threshold_that_falls_to_zero_leaves_zeros_and_no_nan(problem):
    grads, component_fn, _ = problem
    for eps in (0.0, 1e-6):
        clipped = clip(grads, lambda step: 0.0 * step, component_fn, eps=eps)
        chex.assert_trees_all_equal(clipped, jax.tree.map(jnp.zeros_like, grads))
