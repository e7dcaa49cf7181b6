import types

import numpy as np
import pytest

from train.batches import TokenArrays
from train.evaluation import evaluate, predict_logits
from train.inputs import Inputs
from train.parallel import Layout
from train.tasks import own_task

LABELS = np.array([0, 1, 1, 0, 1], np.int32)


def a_set(labels):
    # The first token of an example is its label, which the stub below reads.
    tokens = np.stack([labels, labels], axis=1).astype(np.int32)
    mask = np.ones_like(tokens)
    mask[::2, 1] = 0  # the shorter ones go first
    return TokenArrays(tokens, mask, np.zeros_like(tokens), labels)


def step_fn(params, batch):
    """Run 0 is always right, run 1 always wrong, run 2 always answers 1."""
    right = np.eye(2, dtype=np.float32)[batch["input_ids"][:, 0]]
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


def test_rows_that_fill_up_a_batch_are_cut_off(inputs):
    logits = predict_logits(step_fn, None, inputs.scored["validation"], 4, Layout(3, 3))
    assert logits.shape == (3, 5, 2)
    np.testing.assert_array_equal(logits[0].argmax(-1), LABELS)


def test_the_judged_set_and_its_majority_line(inputs):
    assert inputs.judged == "validation"
    assert inputs.majority_lines()["validation"]["accuracy"] == 0.6
