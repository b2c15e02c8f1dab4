"""Frequent tokens are left out of queries, and no query becomes empty."""

import numpy as np
import pytest

from vector_store.schema import SparseVector
from vector_store.term_statistics import FEWEST_KEPT, UNPUBLISHED, TermStatistics

FREQUENT = TermStatistics(np.array([7, 3, 9, 1], np.uint32), over=10, num_points=100, num_sampled=100)


def query(*tokens: int) -> SparseVector:
    return SparseVector(np.array(tokens, np.uint32), np.arange(1, len(tokens) + 1, dtype=np.float32))


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        ((20, 21, 22), (20, 21, 22)),
        ((7, 20, 3, 21, 22), (20, 21, 22)),
        ((7, 3, 9, 1), (3, 9, 1)),  # the rarest of the frequent, in the query's own order
        ((7, 9, 20, 3), (9, 20, 3)),
        ((7, 3), (7, 3)),
        ((), ()),
    ],
)
def test_a_query_keeps_its_rare_tokens_and_at_least_its_rarest(tokens, kept):
    assert FEWEST_KEPT == 3
    cut = FREQUENT.cut(query(*tokens))
    assert tuple(cut.indices) == kept
    weights = dict(zip(tokens, query(*tokens).values.tolist(), strict=True))
    assert cut.values.tolist() == [weights[token] for token in kept]


def test_without_statistics_no_token_is_left_out():
    whole = query(1, 3, 7, 9, 11)
    assert UNPUBLISHED.cut(whole) is whole
