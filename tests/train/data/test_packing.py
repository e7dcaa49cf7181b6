"""Examples in rows: where they lie, and that nothing but the padding changes."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.padded import padded_batch
from cwgnc_jax import models
from cwgnc_train.config import PRESETS, OptimizerConfig, RegularizationConfig
from cwgnc_train.data import (
    BatchIndices,
    TokenArrays,
    batch_examples,
    evaluation_batches,
    make_packing,
    packed_batch,
    token_table,
)
from cwgnc_train.data.packing import best_sizes, first_fit
from cwgnc_train.engine import init_run, make_hparams, train_step
from tests.train.conftest import MODEL, STEP_CONFIG

LENGTH = 8


def arrays_of(count, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.arange(LENGTH) < rng.integers(2, 6, (count, 1))
    mask[0] = True
    return TokenArrays(
        rng.integers(5, 20, (count, LENGTH), np.int32) * mask,
        mask.astype(np.int32),
        rng.integers(0, 2, (count, LENGTH), np.int32) * mask,
        rng.integers(0, 2, count, np.int32),
    )


def batch_of(arrays, padding, step, max_length=LENGTH):
    how = make_packing(arrays, padding, 6, max_length)
    shape = how.shape([1], [step])
    assemble = jax.jit(functools.partial(packed_batch, shape=shape))
    return assemble(token_table(arrays), how.batch_indices(1, step, shape))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 10), min_size=1, max_size=20))
def test_no_two_examples_share_a_cell_and_none_crosses_a_row(lengths):
    firsts, rows = first_fit(np.array(lengths), 10)
    cells = [
        cell
        for first, length in zip(firsts, lengths, strict=True)
        for cell in range(first, first + length)
    ]
    assert len(set(cells)) == len(cells)
    assert max(cells) < 10 * rows
    for first, length in zip(firsts, lengths, strict=True):
        assert first // 10 == (first + length - 1) // 10
    # All rows but one are more than half full, or two of them would be one.
    assert (rows - 1) * 5 < sum(lengths) or rows == 1


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [([5, 5, 5, 5], 2), ([3, 3, 7, 7], 2), ([6, 6], 2), ([10, 1], 2), ([], 0)],
)
def test_rows_are_filled_to_the_end_longest_example_first(lengths, rows):
    assert first_fit(np.array(lengths, int), 10)[1] == rows


def test_few_sizes_waste_the_least():
    # 3 costs 1 for rounding 2 up; 2 and 9 would cost 6 for rounding 3 up.
    assert best_sizes([2, 3, 3, 9], 2) == [3, 9]
    assert best_sizes([2, 2, 2, 2, 3, 9, 9], 2) == [3, 9]
    assert best_sizes([4, 4], 3) == [4]
    assert best_sizes([1, 5, 7], 3) == [1, 5, 7]


@pytest.mark.parametrize("step", [0, 6])
def test_a_packed_batch_holds_what_the_padded_one_does(step):
    arrays = arrays_of(40)
    expected = padded_batch(arrays, 1, step, 6)
    batch = jax.device_get(batch_of(arrays, "packed", step))
    assert batch["input_ids"].shape[0] < 6
    count = int(expected["weights"].sum())
    assert count == (6 if step == 0 else 4)
    np.testing.assert_array_equal(batch["weights"], expected["weights"])
    np.testing.assert_array_equal(batch["labels"][:count], expected["labels"][:count])
    for slot in range(count):
        length = expected["attention_mask"][slot].sum()
        cells = np.arange(
            batch["cls_positions"][slot], length + batch["cls_positions"][slot]
        )
        for name in ("input_ids", "token_type_ids"):
            flat = batch[name].reshape(-1)
            np.testing.assert_array_equal(flat[cells], expected[name][slot, :length])
        assert (batch["segment_ids"].reshape(-1)[cells] == slot + 1).all()
    used = int(expected["attention_mask"][:count].sum())
    padding = batch["segment_ids"] == 0
    assert (~padding).sum() == used
    assert not batch["input_ids"][padding].any()
    assert not batch["token_type_ids"][padding].any()
    # Slots of padding begin somewhere in the batch as well.
    assert batch["cls_positions"].max() < padding.size


def test_a_batch_in_parts_is_the_batches_of_its_parts():
    arrays = arrays_of(40)
    how = make_packing(arrays, "packed", 6, LENGTH, parts=2)
    shape = how.shape([1], [0])
    indices, table = how.batch_indices(1, 0, shape), token_table(arrays)
    assemble = jax.jit(functools.partial(packed_batch, shape=shape))
    parts = [
        assemble(table, BatchIndices(*part)) for part in zip(*indices, strict=True)
    ]
    expected = jax.tree.map(lambda *x: np.stack(x), *parts)
    chex.assert_trees_all_equal(assemble(table, indices), expected)
    assert expected["weights"].sum() == 6


def test_the_last_cell_of_a_batch_may_be_an_example():
    mask = np.array([[1, 1, 1], [1, 0, 0]], np.int32)
    arrays = TokenArrays(7 * mask, mask, 0 * mask, np.array([0, 1], np.int32))
    indices = BatchIndices(np.arange(2), np.array([0, 3]), np.ones(2, np.float32))
    batch = packed_batch(token_table(arrays), indices, (1, 4))
    np.testing.assert_array_equal(batch["segment_ids"], [[1, 1, 1, 2]])
    np.testing.assert_array_equal(batch["cls_positions"], [0, 3])


def test_all_ways_of_padding_make_the_same_step():
    """Loss, norms and the updated run, with dropout off."""
    arrays = arrays_of(40)
    model = models.init_params(MODEL, jax.random.key(0))
    optimizer = PRESETS["code"].complete(OptimizerConfig())
    hparams = make_hparams(optimizer, RegularizationConfig(dropout=0.0), 100)
    hparams = hparams._replace(
        # At a tiny eps Adam makes whole steps of the key biases' rounding errors.
        learning_rate=jnp.float32(1e-2),
        eps=jnp.float32(1e-3),
    )
    results = {}
    for padding in ("packed", "longest", "max_length"):
        run = init_run(STEP_CONFIG, model, jax.random.key(1), hparams)
        step = jax.jit(functools.partial(train_step, STEP_CONFIG))
        for number in (0, 6):
            run, metrics = step(run, batch_of(arrays, padding, number))
        results[padding] = run.params, metrics
    for padding in ("longest", "max_length"):
        chex.assert_trees_all_close(
            results[padding], results["packed"], rtol=1e-4, atol=1e-6
        )
    moved = jax.tree.map(jnp.subtract, results["packed"][0], model)
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(moved)) > 1e-3


def test_the_shapes_of_each_padding():
    arrays = arrays_of(200)
    packed = make_packing(arrays, "packed", 6, LENGTH)
    assert {length for _, length in packed.shapes} == {LENGTH}
    # Some of the batches need a row for each example.
    assert packed.shapes[-1] == packed.usual == (6, LENGTH)
    assert 1 < len(packed.shapes) <= 4 and packed.shapes[0][0] < 5
    assert make_packing(arrays, "longest", 6, 16).shapes[-1] == (6, LENGTH)
    assert make_packing(arrays, "max_length", 6, 16).shapes == ((6, 16),)
    shared = make_packing(arrays, "packed", 6, LENGTH, multiple=2)
    assert all(rows % 2 == 0 for rows, _ in shared.shapes)
    assert any(rows % 2 for rows, _ in packed.shapes)


def test_three_lengths_leave_the_least_padding_in_the_first_batches():
    mask = (np.arange(64) < np.random.default_rng(0).integers(2, 65, (200, 1))) * 1
    arrays = TokenArrays(mask, mask, mask, None)
    how = make_packing(arrays, "longest", 3, 64)
    longest = [
        max(arrays.lengths[batch_examples(200, 0, step, 3)]) for step in range(512)
    ]
    # Lengths are multiples of 8, and one of them holds any batch.
    costs = {
        sizes: sum(min(size for size in sizes if size >= n) for n in longest)
        for sizes in itertools.combinations(range(8, 65, 8), 3)
        if sizes[-1] == 64
    }
    assert how.shapes == tuple((3, size) for size in min(costs, key=costs.__getitem__))


@pytest.mark.parametrize(("step", "usual"), [(511, 64), (512, 8)])
def test_an_example_that_no_sampled_batch_holds_makes_no_usual_shape(step, usual):
    lengths = np.full((2000, 1), 8)
    lengths[batch_examples(2000, 0, step, 3)[0]] = 64
    mask = (np.arange(64) < lengths).astype(np.int32)
    how = make_packing(TokenArrays(mask, mask, mask, None), "longest", 3, 64)
    assert how.usual == (3, usual) and how.shapes[-1] == (3, 64)


@pytest.mark.parametrize(
    ("longest", "usual", "limit", "expected"),
    [
        (24, 13, 128, 32),  # Two in 32, one in 24.
        (24, 13, 32, 32),
        (24, 13, 31, 24),  # The model may know no more positions.
        (24, 13, 24, 24),
        (24, 12, 128, 24),  # Two in either.
        (31, 8, 128, 32),  # Four in 32, three in 31.
        (17, 8, 128, 17),  # Two in 17, and in 16, which would not hold the longest.
        (40, 21, 128, 48),  # Three in 64, which is more than half again 40.
        (64, 45, 128, 96),  # Two in 96, one in 64 and in 80.
    ],
)
def test_the_length_of_rows_is_that_into_which_most_examples_fit(
    longest, usual, limit, expected
):
    """The longest example's, or a multiple of 16 up to half again as much."""
    lengths = np.array([[longest], *[[usual]] * 95])
    mask = (np.arange(longest) < lengths).astype(np.int32)
    how = make_packing(TokenArrays(mask, mask, mask, None), "packed", 12, limit)
    assert {length for _, length in how.shapes} == {expected}
    # Any batch fits into the last one.
    assert how.shapes[-1] == (12, expected)


def test_a_shape_follows_from_a_run_alone_or_is_the_same_for_all():
    arrays = arrays_of(200)
    how = make_packing(arrays, "packed", 6, LENGTH)
    alone = [how.shape([1], [step]) for step in range(60)]
    assert len(set(alone)) > 1
    for step, shape in enumerate(alone):
        examples = batch_examples(200, 1, step, 6)
        _, rows = first_fit(arrays.lengths[examples], LENGTH)
        assert shape == next(shape for shape in how.shapes if shape[0] >= rows)
    together = {how.shape([1, seed], [step]) for seed in (2, 3) for step in range(60)}
    assert together == {how.usual}


def test_a_batch_that_no_usual_shape_holds_has_a_row_for_each_example():
    arrays = arrays_of(200)
    how = make_packing(arrays, "packed", 6, LENGTH)
    how.lengths[:] = LENGTH
    assert how.shape([1, 2], [0]) == (6, LENGTH) == how.shape([1], [0])


def test_a_whole_epoch_visits_every_example_once():
    arrays = arrays_of(40)
    how = make_packing(arrays, "packed", 6, LENGTH)
    seen = []
    for step in range(7):
        shape = how.shape([3], [step])
        indices = how.batch_indices(3, step, shape)
        used = indices.weights > 0
        seen += indices.examples[used].tolist()
        # Slots of padding point past the last row.
        assert (indices.cls_positions[~used] == shape[0] * LENGTH).all()
    assert sorted(seen) == list(range(40))


def random_set(rng, count, length, longest):
    mask = (np.arange(length) < rng.integers(2, longest + 1, (count, 1))).astype(int)
    ids, types = rng.integers(1, 20, mask.shape), rng.integers(0, 2, mask.shape)
    ids, mask, types = ((array * mask).astype(np.int32) for array in (ids, mask, types))
    return TokenArrays(ids, mask, types, None)


def test_an_evaluation_batch_holds_examples_of_one_set_whole():
    rng = np.random.default_rng(1)
    sets = [random_set(rng, count, 16, 15) for count in (11, 6)]
    shape, batches = evaluation_batches([s.lengths for s in sets], 16, 5)
    assert all(indices.examples.shape == (5,) for indices in batches)
    seen = np.concatenate([b.examples[b.weights > 0] for b in batches])
    assert sorted(seen) == list(range(17))
    tokens = np.concatenate([arrays.input_ids for arrays in sets])
    lengths = np.concatenate([arrays.lengths for arrays in sets])
    assemble = jax.jit(functools.partial(packed_batch, shape=shape))
    for indices in batches:
        batch = jax.device_get(assemble(token_table(*sets), indices))
        count = int(indices.weights.sum())
        assert len(set(indices.examples[:count] < 11)) == 1
        for slot, example in enumerate(indices.examples[:count]):
            inside = batch["segment_ids"] == slot + 1
            assert inside.ravel()[batch["cls_positions"][slot]]
            np.testing.assert_array_equal(
                batch["input_ids"][inside], tokens[example, : lengths[example]]
            )
        assert (batch["segment_ids"] <= count).all()
