"""Probe a frozen encoder: the accuracy of a linear classifier on its vectors.

Knows features and labels only, not which encoder they come from.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def probe_accuracy(
    train: NDArray[np.float32], train_labels: Sequence[str], test: NDArray[np.float32], test_labels: Sequence[str]
) -> float:
    """Fit a logistic regression on (texts, dim) features and return its accuracy on the test texts."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    classifier.fit(train, list(train_labels))
    return float(classifier.score(test, list(test_labels)))


def majority_accuracy(train_labels: Sequence[str], test_labels: Sequence[str]) -> float:
    """Accuracy of always predicting the most frequent training label: the floor of every probe."""
    favourite = Counter(train_labels).most_common(1)[0][0]
    return sum(label == favourite for label in test_labels) / len(test_labels)
