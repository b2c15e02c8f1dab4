"""A query's IDF weights; frequent tokens are left out, and no query becomes empty."""

import math

import numpy as np
import pytest

from vector_store.schema import SparseVector
from vector_store.term_statistics import FEWEST_KEPT, UNPUBLISHED, TermStatistics, unpack


def frequencies(**of_token: int) -> np.ndarray:
    counts = np.zeros(30, np.uint32)
    for token, count in of_token.items():
        counts[int(token[1:])] = count
    return counts


STATISTICS = TermStatistics(frequencies(t7=40, t3=30, t9=20, t1=11, t20=10, t21=1), over=10, num_points=100)


def query(*tokens: int) -> SparseVector:
    return SparseVector(np.array(tokens, np.uint32), np.ones(len(tokens), np.float32))


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        ((20, 21, 22), (20, 21, 22)),
        ((7, 20, 3, 21, 22), (20, 21, 22)),
        ((7, 3, 9, 1), (3, 9, 1)),  # the rarest of the frequent, in the query's own order
        ((7, 9, 20, 3), (9, 20, 3)),
        ((7, 3), (7, 3)),
        ((90_000, 7, 21, 20), (90_000, 21, 20)),  # a token that no point has
        ((), ()),
    ],
)
def test_a_query_keeps_its_rare_tokens_and_at_least_its_rarest(tokens, kept):
    assert FEWEST_KEPT == 3
    assert tuple(STATISTICS.weighted(query(*tokens)).indices) == kept
    assert tuple(STATISTICS.weighted(query(*tokens), leave_out=False).indices) == tokens


def test_a_token_weighs_its_inverse_document_frequency():
    weighted = STATISTICS.weighted(SparseVector(np.array([20, 21, 22], np.uint32), np.array([1, 1, 2], np.float32)))
    wanted = [math.log(1 + 90.5 / 10.5), math.log(1 + 99.5 / 1.5), 2 * math.log(1 + 100.5 / 0.5)]
    np.testing.assert_allclose(weighted.values, wanted, rtol=1e-6)


def test_without_statistics_no_token_is_left_out_and_all_weigh_the_same():
    whole = query(1, 3, 7, 9, 11)
    assert UNPUBLISHED.weighted(whole) is whole


def test_statistics_are_read_back_from_their_bytes():
    found = unpack(STATISTICS.to_bytes())
    assert np.array_equal(found.frequencies, STATISTICS.frequencies)
    assert (found.over, found.num_points, found.num_frequent) == (10, 100, 4)
    assert unpack(None) is UNPUBLISHED
