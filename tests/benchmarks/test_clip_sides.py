"""The clips that are timed against each other."""

import jax
import numpy as np
import pytest

from benchmarks import clip_sides
from tests.benchmarks.conftest import CONFIG

GRADS = clip_sides.gradients_of(CONFIG)


@pytest.mark.parametrize("name", clip_sides.torch_sides(GRADS))
def test_the_sides_of_torch_clip_as_ours_does(name):
    theirs = clip_sides.torch_sides(GRADS)[name]()
    ours = jax.tree.leaves(clip_sides.Alone(clip_sides.OURS, GRADS)())
    changed = 0
    for before, one, other in zip(jax.tree.leaves(GRADS), ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
        changed += not np.array_equal(before, one)
    assert 10 < changed < len(ours) - 10


@pytest.mark.parametrize("side", [0, 1])
def test_a_clip_that_differs_in_one_component_is_noticed(side):
    names = clip_sides.OURS, clip_sides.PARTITION
    clipped = [dict(clip_sides.Alone(name, GRADS)()) for name in names]
    clip_sides.check_equal(GRADS, *clipped)
    clipped[side]["classifier"] = jax.tree.map(
        lambda leaf: leaf * np.float32(1.0001), clipped[side]["classifier"]
    )
    with pytest.raises(AssertionError):
        clip_sides.check_equal(GRADS, *clipped)
