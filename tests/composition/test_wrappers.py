"""Under a wrapper a transform does to leaves what it does to them alone."""

import chex
import pytest

from tests.composition.transforms import LIKE_OTHERS, TRANSFORMS, nested, pairs
from tests.composition.ways import jit
from tests.composition.wrappers import WRAPPERS


def assert_as_expected(history, expected):
    for updates, right in zip(history, expected, strict=True):
        right = (
            nested(right) if isinstance(right, dict) and "/" in min(right) else right
        )
        chex.assert_trees_all_close(updates, right, rtol=2e-5, atol=1e-6)


OFTEN = {"masked", "partition, all groups", "inject_hyperparams"}


def usual(name, wrapper):
    return name not in LIKE_OTHERS or wrapper in OFTEN


@pytest.mark.parametrize(("name", "wrapper"), pairs(WRAPPERS, usual))
def test_a_wrapper_changes_nothing_but_what_it_says(name, wrapper):
    transform, wrapper = TRANSFORMS[name], WRAPPERS[wrapper]
    tx = wrapper.optimizer(transform)
    history = jit(tx, wrapper.params, wrapper.nested_grads())
    assert_as_expected(history, wrapper.expected(transform))
