"""Metrics against numbers worked out by hand."""

import math

import pytest

from refbert.glue import GLUE
from refbert.scores import glue_average, main_score, score


def test_classification_metrics_equal_values_worked_out_by_hand():
    labels, predictions = (
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
    )  # 2 true and 1 false positive, 1 false and 2 true negative
    found = score(("accuracy", "f1", "macro_f1", "matthews"), labels, predictions)
    precision = recall = 2 / 3
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["macro_f1"] == pytest.approx(2 / 3)
    assert found["matthews"] == pytest.approx((2 * 2 - 1 * 1) / math.sqrt(3 * 3 * 3 * 3))


def test_f1_is_of_class_one_and_macro_f1_of_all():
    found = score(("f1", "macro_f1"), [1, 0, 0, 0], [1, 1, 0, 0])
    f1_of_one, f1_of_zero = 2 * (1 / 2) * 1 / (1 / 2 + 1), 2 * 1 * (2 / 3) / (1 + 2 / 3)
    assert found["f1"] == pytest.approx(f1_of_one)
    assert found["macro_f1"] == pytest.approx((f1_of_one + f1_of_zero) / 2)


def test_correlations_equal_values_worked_out_by_hand():
    labels, predictions = [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 3.0, 2.0]
    # deviations (-1.5, -0.5, 0.5, 1.5) and (-1.5, -0.5, 1.5, 0.5): products add up to 4, squares to 5 each
    found = score(("pearson", "spearman"), labels, predictions)
    assert found["pearson"] == pytest.approx(4 / 5)
    assert found["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert score(("spearman",), labels, [0.0, 1.0, 10.0, 1000.0])["spearman"] == pytest.approx(1)


@pytest.mark.parametrize("metric", ["matthews", "f1", "pearson", "spearman"])
def test_constant_predictions_score_zero(metric):
    assert score((metric,), [0, 1, 1, 0], [0, 0, 0, 0]) == {metric: 0.0}


def test_a_prediction_that_is_not_finite_is_refused():
    with pytest.raises(AssertionError, match="not a finite number"):
        score(("pearson",), [0.0, 1.0], [float("nan"), 1.0])


def test_the_main_score_is_the_mean_over_metrics_and_splits():
    assert main_score({"dev": {"accuracy": 0.8, "f1": 0.9}}) == pytest.approx(0.85)
    assert main_score({"dev_matched": {"accuracy": 0.8}, "dev_mismatched": {"accuracy": 0.7}}) == pytest.approx(0.75)
    assert glue_average({"MRPC": 0.85, "MNLI": 0.75, "CoLA": 0.5}) == pytest.approx(0.7)


def test_every_task_names_the_metrics_of_its_leaderboard():
    assert {name: task.metrics for name, task in GLUE.items()} == {
        "CoLA": ("matthews",),
        "SST-2": ("accuracy",),
        "MRPC": ("accuracy", "f1"),
        "STS-B": ("pearson", "spearman"),
        "QQP": ("accuracy", "f1"),
        **dict.fromkeys(("MNLI", "QNLI", "RTE", "WNLI"), ("accuracy",)),
    }
