import uuid
from collections import Counter

import numpy as np
import pytest

from vector_store.errors import CollectionMissing
from vector_store.retriever import Retriever
from vector_store.schema import Query, SparseVector

CRITERIA = ["keywords", "dense", "hybrid", "random"]


@pytest.fixture
def points(store, manifest, make_points):
    store.ensure(manifest)
    points = make_points(120)
    store.upsert(points)
    return points


@pytest.fixture
def make_retriever(client, config, manifest):
    def make(criterion="keywords", **options):
        return Retriever(client, config, manifest, criterion, **options)

    return make


def ask(point, document=True):
    return Query(point.id, point.keywords, point.sentence, point.document if document else None)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_query_itself_its_document_and_excluded_splits_never_come_back(points, make_retriever, criterion):
    by_id = {point.id: point for point in points}
    found = make_retriever(criterion, exclude_splits=["test"]).neighbours([ask(point) for point in points])
    assert found.steps == ["live"] * len(points)
    for query, neighbour in zip(points, found.ids, strict=True):
        assert neighbour is not None
        assert neighbour != query.id
        assert by_id[neighbour].document != query.document
        assert by_id[neighbour].split != "test"


@pytest.mark.parametrize("criterion", CRITERIA)
def test_without_a_document_only_the_query_itself_is_kept_out(points, make_retriever, criterion):
    found = make_retriever(criterion).neighbours([ask(point, document=False) for point in points])
    assert all(neighbour not in (None, point.id) for point, neighbour in zip(points, found.ids, strict=True))


def test_dense_neighbours_are_the_exact_nearest(points, make_retriever):
    vectors = np.stack([point.sentence / np.linalg.norm(point.sentence) for point in points])
    scores = vectors @ vectors.T
    for i, one in enumerate(points):
        for j, other in enumerate(points):
            if one.document == other.document:
                scores[i, j] = -np.inf
    found = make_retriever("dense").neighbours([ask(point) for point in points])
    assert found.ids == [points[j].id for j in scores.argmax(1)]
    assert np.allclose(found.scores, scores.max(1), atol=1e-5)


def test_keyword_neighbours_share_the_weightiest_words(points, make_retriever):
    found = make_retriever().neighbours([ask(point) for point in points])
    by_id = {point.id: point for point in points}
    for point, neighbour in zip(points, found.ids, strict=True):
        assert set(point.keywords.indices) & set(by_id[neighbour].keywords.indices)


def test_the_neighbour_is_decoded_as_written(points, make_retriever):
    found = make_retriever(with_text=True).neighbours([ask(point) for point in points[:10]])
    by_id = {point.id: point for point in points}
    for row, neighbour in enumerate(found.ids):
        assert np.array_equal(found.states[row][found.mask[row]], by_id[neighbour].states)
        assert np.array_equal(found.token_ids[row][found.mask[row]], by_id[neighbour].token_ids)
        assert found.texts[row] == by_id[neighbour].text
    assert make_retriever().neighbours([ask(points[0])]).texts == [None]


def test_equal_scores_are_ordered_by_id(store, manifest, make_points, make_retriever):
    store.ensure(manifest)
    (first, *rest) = make_points(4, per_document=1)
    twins = [
        type(point)(**{**{f: getattr(point, f) for f in point.__slots__}, "keywords": first.keywords}) for point in rest
    ]
    store.upsert([first, *twins])
    found = make_retriever().neighbours([ask(first)])
    assert found.ids == [min(point.id for point in twins)]


def test_one_query_alone_answers_as_in_a_batch(points, make_retriever):
    retriever = make_retriever("hybrid")
    batch = retriever.neighbours([ask(point) for point in points[:8]])
    alone = [retriever.neighbours([ask(point)]).ids[0] for point in points[:8]]
    assert batch.ids == alone


def test_an_empty_query_has_no_neighbour_and_is_live(points, make_retriever):
    empty = SparseVector(np.zeros(0, np.uint32), np.zeros(0, np.float32))
    found = make_retriever().neighbours([Query(points[0].id, empty), ask(points[1])])
    assert found.steps == ["live", "live"]
    assert found.ids[0] is None
    assert not found.mask[0].any()
    assert found.ids[1] is not None


def test_own_points_come_with_the_neighbours(points, make_retriever, make_points):
    stranger = make_points(1, seed=5)[0]
    queries = [ask(points[0]), ask(stranger), ask(points[2])]
    found, own = make_retriever().neighbours_and_points(queries)
    assert own.ids == [points[0].id, None, points[2].id]
    assert own.steps == ["live"] * 3
    assert np.array_equal(own.states[0][own.mask[0]], points[0].states)
    assert found.ids == make_retriever().neighbours(queries).ids


def test_own_points_come_without_any_criterion(points, make_retriever):
    found, own = make_retriever("none").neighbours_and_points([ask(points[0])])
    assert found.steps == ["null"]
    assert found.ids == [None]
    assert own.ids == [points[0].id]


def test_random_is_the_same_for_an_id_and_differs_by_seed(points, make_retriever):
    queries = [ask(point) for point in points]
    once = make_retriever("random", seed=1).neighbours(queries).ids
    assert once == make_retriever("random", seed=1).neighbours(queries[::-1]).ids[::-1]
    assert once != make_retriever("random", seed=2).neighbours(queries).ids


def test_random_reaches_most_points_and_favours_none(points, make_retriever):
    keywords = points[0].keywords
    queries = [Query(str(uuid.uuid5(uuid.NAMESPACE_URL, str(i))), keywords) for i in range(1200)]
    retriever = make_retriever("random")
    drawn = Counter(i for start in range(0, 1200, 100) for i in retriever.neighbours(queries[start : start + 100]).ids)
    assert None not in drawn
    # Each point's share is its gap between ids: exponential around 10 draws.
    assert len(drawn) > 0.75 * len(points)
    assert max(drawn.values()) < 100


def test_a_store_with_only_the_query_has_no_neighbour(store, manifest, make_points, make_retriever):
    store.ensure(manifest)
    point = make_points(1)[0]
    store.upsert([point])
    for criterion in CRITERIA:
        found = make_retriever(criterion).neighbours([ask(point)])
        assert found.ids == [None]
        assert found.steps == ["live"]


def test_look_ups_are_counted_and_timed(points, make_retriever):
    retriever = make_retriever()
    retriever.neighbours([ask(point) for point in points[:3]])
    retriever.neighbours([ask(points[0])])
    assert retriever.counts == {"live": 4, "cached": 0, "null": 0}
    assert 0 < retriever.lookup_ms < 5000


def test_a_missing_collection_is_an_error_and_no_null_reference(make_retriever, make_points):
    with pytest.raises(CollectionMissing):
        make_retriever().neighbours([ask(make_points(1)[0])])
