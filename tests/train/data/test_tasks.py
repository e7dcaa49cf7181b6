import math

import numpy as np
import pytest

from cwgnc_train.config import UserError
from cwgnc_train.data import (
    GLUE,
    collapsed,
    find_task,
    has_failed,
    majority_line,
    own_task,
    score,
)

BINARY = own_task(("text",), ("no", "yes"))
THREE = own_task(("text",), ("a", "b", "c"))
NUMBER = own_task(("text",), None)


def test_the_classes_and_their_order_are_those_of_the_hub():
    assert {name: task.label_names for name, task in GLUE.items()} == {
        "cola": ("unacceptable", "acceptable"),
        "sst2": ("negative", "positive"),
        "mrpc": ("not_equivalent", "equivalent"),
        "stsb": None,
        "qqp": ("not_duplicate", "duplicate"),
        "mnli": ("entailment", "neutral", "contradiction"),
        "qnli": ("entailment", "not_entailment"),
        "rte": ("entailment", "not_entailment"),
        "wnli": ("not_entailment", "entailment"),
    }


def test_each_task_is_judged_by_the_papers_metric():
    main = {name: task.metric for name, task in GLUE.items()}
    assert main.pop("cola") == "matthews_correlation"
    assert main.pop("mrpc") == main.pop("qqp") == "f1"
    assert main.pop("stsb") == "pearson"
    assert set(main.values()) == {"accuracy"}


def test_a_number_has_one_output_and_three_classes_three():
    assert find_task("stsb").num_labels == 1
    assert find_task("stsb").regression
    assert find_task("mnli").num_labels == 3


@pytest.mark.parametrize(
    ("name", "near"), [("rtee", "rte"), ("MRPC", "mrpc"), ("SST-2", "sst2")]
)
def test_an_unknown_task_is_answered_with_the_nearest(name, near):
    with pytest.raises(UserError, match=f"'{name}', did you mean '{near}'.* cola sst"):
        find_task(name)


def test_a_task_that_is_near_to_none_is_answered_with_the_list():
    with pytest.raises(UserError, match="'imdb': the tasks are cola .* --train-file"):
        find_task("imdb")


def test_binary_scores_are_those_of_the_confusion_counts():
    # True positives 3, false positives 2, false negatives 1, true negatives 2.
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    predictions = np.array([1, 1, 1, 0, 1, 1, 0, 0])
    assert score(find_task("mrpc"), predictions, labels) == pytest.approx(
        {"f1": 2 * 3 / (2 * 3 + 2 + 1), "accuracy": 5 / 8}
    )
    assert score(find_task("cola"), predictions, labels) == pytest.approx(
        {"matthews_correlation": (3 * 2 - 2 * 1) / math.sqrt(5 * 4 * 4 * 3)}
    )


def test_f1_of_own_data_is_that_of_the_second_class_and_of_more_their_mean():
    assert score(BINARY, np.array([1, 0, 0]), np.array([1, 1, 0])) == pytest.approx(
        {"accuracy": 2 / 3, "f1": 2 / 3}
    )
    # F1: a 2/3, b 1, c 0.
    assert score(THREE, np.array([0, 0, 1]), np.array([0, 2, 1])) == pytest.approx(
        {"accuracy": 2 / 3, "macro_f1": 5 / 9}
    )


def test_correlations_are_those_of_numpy_and_of_ranks():
    rng = np.random.default_rng(0)
    labels = rng.uniform(0, 5, 50).astype(np.float32)
    predictions = (labels + rng.normal(size=50)).astype(np.float32)

    def ranks(values):
        return values.argsort().argsort()

    assert score(NUMBER, predictions, labels) == pytest.approx(
        {
            "pearson": np.corrcoef(predictions, labels)[0, 1],
            "spearmanr": np.corrcoef(ranks(predictions), ranks(labels))[0, 1],
            "mse": np.mean((predictions.astype(float) - labels) ** 2),
        }
    )
    assert list(score(find_task("stsb"), predictions, labels)) == [
        "pearson",
        "spearmanr",
    ]


@pytest.mark.parametrize("labels", [[0, 1, 1], [1, 1, 1], [0, 0, 0]])
@pytest.mark.parametrize("answer", [0, 1])
def test_a_single_class_predicted_has_no_matthews_correlation(labels, answer):
    predictions = np.full(3, answer)
    scores = score(find_task("cola"), predictions, np.array(labels))
    assert scores == {"matthews_correlation": 0.0}


def test_f1_is_0_if_no_positive_is_predicted():
    none = np.zeros(3, int)
    assert score(find_task("qqp"), none, none) == {"f1": 0.0, "accuracy": 1.0}
    assert score(find_task("qqp"), np.zeros(3, int), np.array([0, 1, 1])) == {
        "f1": 0.0,
        "accuracy": pytest.approx(1 / 3),
    }


@pytest.mark.parametrize(
    "predictions", [[2, 2, 2], [math.nan, 1, 2], [math.inf, 1, 2], [math.nan] * 3]
)
def test_a_constant_or_diverged_prediction_has_no_correlation(predictions):
    predictions = np.array(predictions, np.float32)
    scores = score(NUMBER, predictions, np.array([1, 2, 3], np.float32))
    assert scores["pearson"] == scores["spearmanr"] == 0


def test_predictions_and_labels_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"of one length.*\(2,\) and \(3,\)"):
        score(BINARY, np.zeros(2, int), np.zeros(3, int))
    with pytest.raises(ValueError, match=r"at least 1.*\(0,\)"):
        score(BINARY, np.zeros(0, int), np.zeros(0, int))


def test_the_majority_line_answers_the_most_frequent_label():
    labels = np.array([1, 1, 1, 0])
    assert majority_line(find_task("mrpc"), labels) == pytest.approx(
        {"f1": 2 * 3 / (2 * 3 + 1), "accuracy": 3 / 4}
    )
    assert majority_line(find_task("rte"), labels) == {"accuracy": 3 / 4}
    assert majority_line(find_task("cola"), labels) == {"matthews_correlation": 0}
    assert majority_line(find_task("mnli"), np.array([2, 0, 2])) == {
        "accuracy": pytest.approx(2 / 3)
    }


def test_the_majority_line_of_numbers_is_the_error_of_their_mean():
    labels = np.array([1, 2, 6], np.float32)
    assert majority_line(NUMBER, labels) == pytest.approx(
        {"pearson": 0, "spearmanr": 0, "mse": (4 + 1 + 9) / 3}
    )


def test_predictions_are_collapsed_if_they_are_all_one():
    assert collapsed(np.array([1, 1, 1]))
    assert not collapsed(np.array([1, 0, 1]))
    assert collapsed(np.full(3, np.nan))


@pytest.mark.parametrize(
    ("final", "failed"), [(0.6, False), (0.5, True), (0.4, True), (math.nan, True)]
)
def test_a_run_fails_whose_score_is_not_above_the_line(final, failed):
    assert has_failed(final, 0.5) == failed
