"""Sides in processes of their own."""

import jax
import numpy as np
import pytest

from benchmarks.sides import ARRAYS, Side
from benchmarks.torch_step import PAPER, WELL
from benchmarks.train_step import check_equal, makers_of
from benchmarks.training import Work, complete_checkpoint, equal_shapes
from cwgnc_jax import models
from cwgnc_train.data import TokenArrays
from tests.benchmarks.conftest import CONFIG


class Arguments:
    precision, quick, keras, flax = "float32", True, None, None


def uneven() -> Work:
    """Texts of 3 to 20 tokens."""
    rng = np.random.default_rng(0)
    mask = (np.arange(20) < rng.integers(3, 21, (40, 1))).astype(np.int32)
    ids = rng.integers(5, 60, mask.shape).astype(np.int32) * mask
    labels = rng.integers(0, 2, 40).astype(np.int32)
    return Work("uneven", TokenArrays(ids, mask, 0 * ids, labels), (0, 1))


@pytest.mark.slow
def test_all_sides_have_the_same_losses(tmp_path):
    complete_checkpoint(tmp_path, CONFIG)
    ours, others = makers_of(tmp_path, Arguments)
    works = [equal_shapes(CONFIG, 3), uneven()]
    check_equal(ours, others, works, rtol=1e-4)
    with others[1](dropout=False, learning_rate=0.0) as side:
        assert set(side.ways(works[1])) == {WELL}
        assert set(side.versions) == {"torch", "transformers"}


@pytest.mark.slow
def test_another_model_is_noticed(tmp_path):
    complete_checkpoint(tmp_path / "ours", CONFIG)
    params = models.init_params(CONFIG, jax.random.key(7))
    models.save_pretrained(tmp_path / "theirs", CONFIG, params)
    ours, _ = makers_of(tmp_path / "ours", Arguments)
    _, [theirs, _] = makers_of(tmp_path / "theirs", Arguments)
    with pytest.raises(AssertionError, match=PAPER):
        check_equal(ours, [theirs], [uneven()], rtol=1e-3)


def test_a_side_learns_the_batch_size_from_its_arrays():
    work = equal_shapes(CONFIG, 2, batch=4)
    assert work.rows().shape == (2, 4) and "4 ×" in work.name
    arrays = {name: getattr(work.examples, name) for name in ARRAYS}
    told = Work.of(arrays | {"steps": np.asarray(work.steps), "rows": work.rows()})
    assert told.batch == 4
    np.testing.assert_array_equal(told.rows(), work.rows())


def test_a_side_that_ends_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="our_step ended with status 1"):
        Side("our_step", tmp_path, no="such setting")
