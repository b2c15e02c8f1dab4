"""Frequent tokens are estimated from a sample, published with the collection, and left out by every reader's queries."""

import dataclasses

import numpy as np
import pytest

from vector_store import term_statistics
from vector_store.retriever import Retriever
from vector_store.schema import Query, SparseVector
from vector_store.store import Store

EVERYWHERE, OFTEN, SELDOM = 1, 2, 3


def words(*tokens: int) -> SparseVector:
    return SparseVector(np.array(tokens, np.uint32), np.ones(len(tokens), np.float32))


@pytest.fixture
def points(store, manifest, make_points):
    """100 points: all have token 1, the even ones token 2, every tenth token 3, and each one of its own."""
    store.ensure(manifest)
    points = [
        dataclasses.replace(
            point,
            keywords=words(
                EVERYWHERE,
                *([OFTEN] if i % 2 == 0 else []),
                *([SELDOM] if i % 10 == 0 else []),
                100 + i,
                300 + i,
                500 + i,
            ),
        )
        for i, point in enumerate(make_points(100))
    ]
    store.upsert(points)
    return points


@pytest.fixture
def capped(config):
    return config.model_copy(update={"max_document_frequency": 40})


def test_tokens_over_the_limit_are_published_most_frequent_first(points, client, capped, manifest):
    assert term_statistics.read(client, capped) is term_statistics.UNPUBLISHED
    surveyed = term_statistics.publish_term_statistics(client, capped)
    read = term_statistics.read(client, capped)
    for statistics in (surveyed, read):
        assert statistics.frequent.tolist() == [EVERYWHERE, OFTEN]
        assert (statistics.over, statistics.num_points, statistics.num_sampled) == (40, 100, 100)
    assert Store(client, capped).manifest() == manifest


def test_a_sample_of_some_pages_estimates_the_whole_collection(points, client, capped, monkeypatch):
    monkeypatch.setattr(term_statistics, "SAMPLE_PAGE", 10)
    monkeypatch.setattr(term_statistics, "SAMPLE_POINTS", 60)
    statistics = term_statistics.survey(client, capped.model_copy(update={"max_document_frequency": 70}))
    assert statistics.num_sampled == 60
    assert statistics.frequent.tolist() == [EVERYWHERE]


def test_a_collection_within_the_limit_is_not_read(points, client, config):
    statistics = term_statistics.survey(client, config)
    assert len(points) < config.max_document_frequency
    assert (statistics.num_sampled, len(statistics.frequent)) == (0, 0)


def test_surveying_again_replaces_the_published_statistics(points, client, capped, config):
    term_statistics.publish_term_statistics(client, capped)
    term_statistics.publish_term_statistics(client, config)
    assert len(term_statistics.read(client, config).frequent) == 0


@pytest.mark.parametrize("criterion", ["keywords", "hybrid"])
def test_frequent_tokens_are_not_searched_by(points, client, capped, manifest, criterion):
    """The query shares two frequent tokens with point 2, three seldom ones with point 1."""
    asking = Query("00000000-0000-4000-8000-000000000001", words(EVERYWHERE, OFTEN, 101, 301, 999), points[1].sentence)
    term_statistics.publish_term_statistics(client, capped)
    assert Retriever(client, capped, manifest, criterion).neighbours([asking]).ids == [[points[1].id]]
    only_frequent = Query(asking.id, words(EVERYWHERE, OFTEN), points[1].sentence)
    assert Retriever(client, capped, manifest, criterion).neighbours([only_frequent]).ids != [[]]
    unknown = Query(asking.id, words(EVERYWHERE, 901, 902, 903))
    assert Retriever(client, capped, manifest, "keywords").neighbours([unknown]).ids == [[]]
    assert Retriever(client, capped, manifest, "keywords", exact=True).neighbours([unknown]).ids != [[]]
