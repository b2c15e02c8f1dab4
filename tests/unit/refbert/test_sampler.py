"""The order of training: every row once an epoch, texts of a step alike in length, and no number has a state."""

import numpy as np
import pytest

from refbert.sampler import SORTED_BATCHES, LengthSampler

LENGTHS = np.random.default_rng(0).integers(3, 200, 3 * SORTED_BATCHES * 8)


@pytest.fixture
def order() -> LengthSampler:
    return LengthSampler(LENGTHS, batch=4, per_step=2, seed=1)


def test_every_row_comes_once_an_epoch_in_a_new_order(order):
    epochs = [np.concatenate([order.rows(first + n) for n in range(96)]) for first in (0, 96)]
    assert all(sorted(epoch.tolist()) == list(range(len(LENGTHS))) for epoch in epochs)
    assert not np.array_equal(*epochs)
    assert not np.array_equal(epochs[0], np.concatenate([LengthSampler(LENGTHS, 4, 2, 2).rows(n) for n in range(96)]))


def test_a_micro_batch_is_a_function_of_its_number(order):
    assert np.array_equal(LengthSampler(LENGTHS, 4, 2, 1).rows(70), order.rows(70))


def test_texts_of_a_step_have_similar_lengths_and_steps_follow_in_any_order(order):
    steps = [np.concatenate([order.rows(2 * n), order.rows(2 * n + 1)]) for n in range(48)]
    spread = np.mean([np.ptp(LENGTHS[step]) for step in steps])
    assert spread < np.mean([np.ptp(LENGTHS[n : n + 8]) for n in range(0, 384, 8)]) / 5
    means = [LENGTHS[step].mean() for step in steps[:SORTED_BATCHES]]
    assert means != sorted(means)


def test_a_corpus_smaller_than_a_step_is_repeated():
    rows = LengthSampler([5, 3, 4], batch=4, per_step=2, seed=0).rows(1)
    assert len(rows) == 4
    assert set(rows.tolist()) <= {0, 1, 2}
