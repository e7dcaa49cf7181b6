import dataclasses
import types

import jax
import numpy as np
import pytest

from cwgnc_jax import models
from tests.train.conftest import MODEL
from train.batches import TokenArrays
from train.evaluation import evaluate, evaluation_packing, predict_logits
from train.inputs import Inputs
from train.parallel import Layout
from train.tasks import own_task

pytestmark = pytest.mark.usefixtures("compilation_cache")

LABELS = np.array([0, 1, 1, 0, 1], np.int32)


def a_set(labels):
    # The first token of an example is its label, which the stub below reads.
    tokens = np.stack([labels, labels], axis=1).astype(np.int32)
    mask = np.ones_like(tokens)
    mask[::2, 1] = 0
    return TokenArrays(tokens, mask, np.zeros_like(tokens), labels)


def step_fn(params, batch):
    """Run 0 is always right, run 1 always wrong, run 2 always answers 1."""
    first = batch["input_ids"].ravel()[batch["first_tokens"]]
    right = np.eye(2, dtype=np.float32)[first]
    return np.stack([right, right[:, ::-1], np.tile([0.0, 1.0], (len(right), 1))])


@pytest.fixture
def inputs():
    task = own_task(("text",), ("no", "yes"))
    sets = {"train": a_set(LABELS[:2]), "holdout": a_set(LABELS[:3])}
    checkpoint = types.SimpleNamespace(config=None)
    return Inputs(task, sets | {"validation": a_set(LABELS)}, None, checkpoint)


@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_each_run_gets_its_own_scores_on_each_set(inputs, batch_size):
    results = evaluate(step_fn, None, inputs, batch_size, Layout(3, 3))
    accuracies = [
        {name: e.scores["accuracy"] for name, e in result.items()} for result in results
    ]
    assert accuracies == [
        {"holdout": 1.0, "validation": 1.0},
        {"holdout": 0.0, "validation": 0.0},
        {"holdout": pytest.approx(2 / 3), "validation": 0.6},
    ]
    assert [e["validation"].collapsed for e in results] == [False, False, True]


def test_what_fills_up_a_batch_is_cut_off(inputs):
    arrays = inputs.scored["validation"]
    packing = evaluation_packing([arrays], 4)
    logits = predict_logits(step_fn, None, arrays, packing, Layout(3, 3))
    assert logits.shape == (3, 5, 2)
    np.testing.assert_array_equal(logits[0].argmax(-1), LABELS)


def arrays_of(rng, count, length, longest):
    lengths = rng.integers(2, longest + 1, count)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    ids, types = rng.integers(1, 20, mask.shape), rng.integers(0, 2, mask.shape)
    return TokenArrays(
        (ids * mask).astype(np.int32), mask, (types * mask).astype(np.int32), None
    )


@pytest.mark.parametrize("multiple", [1, 4])
def test_all_batches_of_all_sets_share_a_shape_with_little_padding(multiple):
    rng = np.random.default_rng(0)
    sets = [arrays_of(rng, count, 32, 24) for count in (70, 33)]
    packing = evaluation_packing(sets, 16, multiple)
    rows, length = packing.shape
    assert length == 32
    assert rows % multiple == packing.slots % multiple == 0
    for arrays, count in zip(sets, (5, 3), strict=True):
        taken = list(packing.batches(arrays))
        assert len(taken) == count
        seen = np.sort(np.concatenate([examples for examples, _ in taken]))
        np.testing.assert_array_equal(seen, np.arange(len(arrays)))
        shapes = {batch["input_ids"].shape for _, batch in taken}
        assert shapes == {(rows, length)}
        assert {len(batch["first_tokens"]) for _, batch in taken} == {packing.slots}
    places = 5 * rows * length
    assert sets[0].lengths.sum() > 0.7 * places


def test_packed_logits_are_those_of_examples_in_rows_of_their_own():
    config = dataclasses.replace(MODEL, num_hidden_layers=2, max_position_embeddings=16)
    params = models.init_params(config, jax.random.key(0))
    arrays = arrays_of(np.random.default_rng(1), 11, 16, 15)

    @jax.jit
    def packed(params, batch):
        logits = models.apply(
            config,
            params,
            batch["input_ids"],
            batch["attention_mask"],
            batch["token_type_ids"],
            first_tokens=batch["first_tokens"],
        ).logits
        return logits[None]

    packing = evaluation_packing([arrays], 4)
    [logits] = predict_logits(packed, params, arrays, packing)
    expected = models.apply(
        config, params, arrays.input_ids, arrays.attention_mask, arrays.token_type_ids
    ).logits
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 1e-2


def test_the_judged_set_and_its_majority_line(inputs):
    assert inputs.judged == "validation"
    assert inputs.majority_lines()["validation"]["accuracy"] == 0.6
