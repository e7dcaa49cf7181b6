"""Scores of runs, from logits of packed batches."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest

from cwgnc_jax import models
from cwgnc_train.data import TokenArrays, own_task, packed_batch
from cwgnc_train.engine import Layout, StepConfig, evaluate, make_mesh
from cwgnc_train.engine.evaluation import EvaluationBatches
from cwgnc_train.engine.inputs import Inputs
from cwgnc_train.engine.programs import compile_eval_step
from tests.train.conftest import MODEL

LABELS = np.array([0, 1, 1, 0, 1], np.int32)
LAYOUT = Layout(make_mesh(jax.devices()[:1]))


def a_set(labels):
    # The first token of an example is its label, which the stub below reads.
    tokens = np.stack([labels, labels], axis=1).astype(np.int32)
    mask = np.ones_like(tokens)
    mask[::2, 1] = 0
    return TokenArrays(tokens, mask, np.zeros_like(tokens), labels)


def answer(shape, params, table, indices):
    """Run 0 is always right, run 1 always wrong, run 2 always answers 1."""
    batch = jax.device_get(packed_batch(table, indices, shape))
    first = batch["input_ids"].ravel()[batch["cls_positions"]]
    right = np.eye(2, dtype=np.float32)[first]
    return np.stack([right, right[:, ::-1], np.tile([0.0, 1.0], (len(right), 1))])


def program_of(sets, batch_size):
    batches = EvaluationBatches(sets, batch_size, LAYOUT)
    step = functools.partial(answer, batches.shape)
    return functools.partial(batches.logits, step)


@pytest.fixture
def inputs():
    task = own_task(("text",), ("no", "yes"))
    sets = {"train": a_set(LABELS[:2]), "holdout": a_set(LABELS[:3])}
    checkpoint = types.SimpleNamespace(config=None)
    return Inputs(task, sets | {"validation": a_set(LABELS)}, None, checkpoint)


@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_each_run_gets_its_own_scores_on_each_set(inputs, batch_size):
    results = evaluate(program_of(inputs.scored, batch_size), None, inputs)
    accuracies = [
        {name: e.scores["accuracy"] for name, e in result.items()} for result in results
    ]
    assert accuracies == [
        {"holdout": 1.0, "validation": 1.0},
        {"holdout": 0.0, "validation": 0.0},
        {"holdout": pytest.approx(2 / 3), "validation": 0.6},
    ]
    assert [e["validation"].collapsed for e in results] == [False, False, True]


def test_padding_slots_of_a_batch_are_cut_off(inputs):
    logits = program_of(inputs.scored, 4)(None)["validation"]
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
    sets = {str(count): arrays_of(rng, count, 32, 24) for count in (70, 33)}
    layout = Layout(make_mesh(jax.devices()[:multiple], multiple))
    batches = EvaluationBatches(sets, 16, layout)
    rows, length = batches.shape
    assert length == 32 and rows % multiple == 0
    taken = list(batches.placed())
    assert len(taken) == 5 + 3
    assert len({len(batch.examples) for batch in taken}) == 1
    assert len(taken[0].examples) % multiple == 0
    seen = [np.asarray(batch.examples)[batch.weights > 0] for batch in taken]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(103))
    # No batch mixes sets.
    assert all((examples < 70).all() or (examples >= 70).all() for examples in seen)
    assert sets["70"].lengths.sum() > 0.7 * 5 * rows * length


def test_packed_logits_are_those_of_examples_in_rows_of_their_own():
    model = dataclasses.replace(MODEL, num_hidden_layers=2, max_position_embeddings=16)
    params = models.init_params(model, jax.random.key(0))
    arrays = arrays_of(np.random.default_rng(1), 11, 16, 15)
    batches = EvaluationBatches({"all": arrays}, 4, LAYOUT)
    config = StepConfig(model, False, "by_parameter", 0.9, 0.999, "float32")
    step = compile_eval_step(config, LAYOUT, batches.shape)
    params_of_one = jax.tree.map(lambda leaf: leaf[None], params)
    [logits] = batches.logits(step, params_of_one)["all"]
    expected = models.apply(
        model, params, arrays.input_ids, arrays.attention_mask, arrays.token_type_ids
    ).logits
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 1e-2


def test_the_judged_set_and_its_majority_line(inputs):
    assert inputs.judged == "validation" and inputs.chosen_by == "holdout"
    assert inputs.majority_lines["validation"]["accuracy"] == 0.6


def test_without_a_validation_set_runs_are_judged_on_the_holdout(inputs):
    sets = {name: inputs.sets[name] for name in ("train", "holdout")}
    alone = dataclasses.replace(inputs, sets=sets)
    assert alone.judged == alone.chosen_by == "holdout"
