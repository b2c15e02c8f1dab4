"""Tokens are counted, published with the collection, and weighed, or left out, by every reader's queries."""

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


def test_every_point_is_counted_and_the_counts_are_published(points, client, capped, manifest):
    assert term_statistics.read(client, capped) is term_statistics.UNPUBLISHED
    surveyed = term_statistics.publish_term_statistics(client, capped)
    read = term_statistics.read(client, capped)
    for statistics in (surveyed, read):
        assert statistics.frequencies[[0, EVERYWHERE, OFTEN, SELDOM, 100, 599]].tolist() == [0, 100, 50, 10, 1, 1]
        assert (statistics.over, statistics.num_points, statistics.num_frequent) == (40, 100, 2)
    assert Store(client, capped).manifest() == manifest
    assert Store(client, capped).count() == 100  # what is kept beside the points is none of them


def test_scores_are_those_of_the_published_counts_whatever_is_deleted(points, client, capped, manifest, store):
    """A Qdrant server's own IDF counts per shard, and the engine's counts deleted points until it is opened again."""
    term_statistics.publish_term_statistics(client, capped)
    asking = Query("00000000-0000-4000-8000-000000000001", words(SELDOM, 101), None)
    before = Retriever(client, capped, manifest, "keywords", count=3).neighbours([asking])
    gone = points[50:]
    for document in {point.document for point in gone}:
        store.delete(("document", document))
    after = Retriever(client, capped, manifest, "keywords", count=3).neighbours([asking])
    assert after.ids[0][0] == before.ids[0][0] == points[1].id
    assert after.scores[0, 0] == before.scores[0, 0] == pytest.approx(np.log1p(99.5 / 1.5), rel=1e-5)


def test_surveying_again_replaces_the_published_statistics(points, client, capped, config):
    term_statistics.publish_term_statistics(client, capped)
    term_statistics.publish_term_statistics(client, config)
    assert term_statistics.read(client, config).num_frequent == 0


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
