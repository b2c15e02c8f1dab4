"""GLUE's official metrics, macro F1 for other tasks, and the main score of a task and of the whole benchmark.

None is in percent: accuracy and F1 are 0 to 1, correlations -1 to 1. Wang et al. 2019, Section 3; predictions are class numbers
or, in a regression, scores.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn import metrics as sk


def _correlation(measure: Callable[..., tuple[float, float]], labels: NDArray, predictions: NDArray) -> float:
    """0 where a side is constant: nothing is correlated with it, and NaN would spoil every mean."""
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(measure(labels, predictions)[0])


METRICS: dict[str, Callable[[NDArray, NDArray], float]] = {
    "accuracy": lambda labels, predictions: float(np.mean(labels == predictions)),
    "f1": lambda labels, predictions: float(sk.f1_score(labels, predictions, zero_division=0)),  # of class 1
    "macro_f1": lambda labels, predictions: float(sk.f1_score(labels, predictions, average="macro", zero_division=0)),
    "matthews": lambda labels, predictions: float(sk.matthews_corrcoef(labels, predictions)),  # 0 where one is constant
    "pearson": lambda labels, predictions: _correlation(stats.pearsonr, labels, predictions),
    "spearman": lambda labels, predictions: _correlation(stats.spearmanr, labels, predictions),
}


def score(metrics: Sequence[str], labels: ArrayLike, predictions: ArrayLike) -> dict[str, float]:
    """Score the predictions of one split by each metric; labels and predictions have shape (rows,)."""
    truth, guess = np.asarray(labels), np.asarray(predictions)
    assert truth.shape == guess.shape, f"{truth.shape} labels, {guess.shape} predictions"
    assert truth.ndim == 1, "one number for each row"
    assert len(truth), "no rows to score"
    assert np.isfinite(guess).all(), "a prediction is not a finite number"
    return {name: METRICS[name](truth, guess) for name in metrics}


def main_score(splits: Mapping[str, Mapping[str, float]]) -> float:
    """Return a task's main score, as GLUE computes it: the mean over metrics (MRPC, QQP, STS-B) and over splits (MNLI)."""
    return float(np.mean([np.mean(list(scores.values())) for scores in splits.values()]))


def glue_average(main_scores: Mapping[str, float]) -> float:
    """Mean over tasks, each counted once, by `main_score`.

    GLUE's own is over all nine. Papers mostly leave WNLI out, and TinyBERT's Table 1 (77.0) also counts MNLI's two splits
    as two tasks and takes F1 alone for MRPC and QQP: name the tasks beside the number.
    """
    return float(np.mean(list(main_scores.values())))
