"""Measurements of components against NumPy in float64."""

import jax
import numpy as np
import pytest

from cwgnc_jax import component_sizes
from cwgnc_train.engine.component_statistics import (
    STATISTICS,
    component_statistics,
)

SHAPES = {"layer": {"10": {"kernel": (3, 5)}, "2": {"kernel": (4, 2), "bias": (7,)}}}


def a_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: (scale * rng.standard_normal(shape)).astype(np.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def by_name(tree):
    return {
        "layer/2/bias": tree["layer"]["2"]["bias"],
        "layer/2/kernel": tree["layer"]["2"]["kernel"],
        "layer/10/kernel": tree["layer"]["10"]["kernel"],
    }


@pytest.fixture
def trees():
    init_params, updates = a_tree(0), a_tree(1, 1e-3)
    params = jax.tree.map(np.add, init_params, updates)
    grads = a_tree(2)
    clipped = jax.tree.map(lambda g: g * np.float32(0.25), grads)
    return params, init_params, grads, clipped, updates


def measured(trees):
    rows = np.asarray(jax.jit(component_statistics)(*trees))
    assert rows.shape == (len(STATISTICS), 3) and rows.dtype == np.float32
    return dict(zip(STATISTICS, rows, strict=True))


def test_statistics_equal_numpy_in_float64(trees):
    rows, names = measured(trees), list(component_sizes(trees[0]))
    assert names == ["layer/2/bias", "layer/2/kernel", "layer/10/kernel"]
    for i, name in enumerate(names):
        p, o, g, c, u = (
            by_name(tree)[name].astype(np.float64).ravel() for tree in trees
        )
        norm = np.linalg.norm
        expected = {
            "rmsd": np.sqrt(np.mean((p - o) ** 2)),
            "grad_norm": norm(g),
            "clipped_norm": norm(c),
            "coefficient": 0.25,
            "param_norm": norm(p),
            "update_norm": norm(u),
            "grad_min": g.min(),
            "grad_max": g.max(),
            "grad_mean": g.mean(),
            "param_min": p.min(),
            "param_max": p.max(),
            "param_mean": p.mean(),
        }
        assert set(expected) | {"cosine"} == set(STATISTICS)
        for statistic, value in expected.items():
            np.testing.assert_allclose(rows[statistic][i], value, rtol=2e-4, atol=1e-7)
        turned = 1 - p @ o / norm(p) / norm(o)
        np.testing.assert_allclose(1 - rows["cosine"][i], turned, atol=1e-7)


def test_what_stands_still_has_not_moved_at_all(trees):
    _, init_params, grads, _, _ = trees
    zeros = jax.tree.map(np.zeros_like, grads)
    rows = measured((init_params, init_params, zeros, zeros, zeros))
    assert not rows["rmsd"].any() and not rows["update_norm"].any()
    assert (rows["cosine"] == 1).all() and (rows["coefficient"] == 1).all()


def test_a_vector_that_starts_at_zero_has_no_angle(trees):
    params, init_params, *rest = trees
    rows = measured((params, jax.tree.map(np.zeros_like, init_params), *rest))
    assert np.isnan(rows["cosine"]).all() and np.isfinite(rows["rmsd"]).all()
