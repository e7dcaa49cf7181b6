"""An optimizer gives the same updates however its steps are executed."""

import itertools

import pytest

from tests.composition.test_wrappers import assert_as_expected
from tests.composition.transforms import LIKE_OTHERS, TRANSFORMS, pairs
from tests.composition.ways import WAYS
from tests.composition.wrappers import WRAPPERS

# Under jit every transform runs in every wrapper, see test_wrappers.py.
OTHER_WAYS = [way for way in WAYS if way != "jit"]
# Leaves must be whole for these: the clip of cwgnc_adamw has no axis_name, and
# pretrained leaves are whole.
WHOLE = {"bertadam_clip", "cwgnc_adamw", "add_decayed_weights_towards"}
OFTEN = {"eager", "scan", "vmap", "shard_map"}
WITH_EVERY_KIND_OF_STATE = {"clip by module, reporting", "zclip", "scale_by_adam"}


def usual(name, way):
    if way in OFTEN:
        return name not in LIKE_OTHERS or way == "scan"
    return name in WITH_EVERY_KIND_OF_STATE


OF_A_CHAIN = [
    pair
    for pair in pairs(OTHER_WAYS, usual)
    if pair.values[1] != "shard_map" or pair.values[0] not in WHOLE
]
OF_THE_CLIP = [
    pytest.param(wrapper, way, marks=() if way == "scan" else pytest.mark.slow)
    for wrapper, way in itertools.product(WRAPPERS, OTHER_WAYS)
    if wrapper != "chain"
]


def assert_runs(name, wrapper, way):
    transform, wrapper = TRANSFORMS[name], WRAPPERS[wrapper]
    more = transform.for_shards if way == "shard_map" else {}
    tx = wrapper.optimizer(transform, **more)
    history = WAYS[way](tx, wrapper.params, wrapper.nested_grads())
    assert_as_expected(history, wrapper.expected(transform))


@pytest.mark.parametrize(("name", "way"), OF_A_CHAIN)
def test_a_chain_gives_the_same_however_it_runs(name, way):
    assert_runs(name, "chain", way)


@pytest.mark.parametrize(("wrapper", "way"), OF_THE_CLIP)
def test_the_clip_in_a_wrapper_gives_the_same_however_it_runs(wrapper, way):
    assert_runs("clip", wrapper, way)
