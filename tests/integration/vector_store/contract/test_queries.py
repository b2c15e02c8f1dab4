"""Queries: nearest by each vector, filtered, paged, fused, in batches, and refused where they are invalid."""

import pytest
from qdrant_client import grpc as api
from qdrant_client import models

from tests.integration.vector_store.contract.collection import NAME, group, ids
from vector_store.errors import InvalidPoint


def test_nearest_by_dense_vector(filled):
    found = filled.query_points(NAME, query=[0.0, 0.0, 1.0, 0.0], using="dense", limit=3).points
    assert ids(found) == [2, 6, 1] or set(ids(found)[:2]) == {2, 6}
    assert found[0].score >= found[1].score >= found[2].score


def test_nearest_by_sparse_vector_with_idf(filled):
    words = models.SparseVector(indices=[3, 100], values=[1.0, 1.0])
    found = filled.query_points(NAME, query=words, using="words", limit=10).points
    assert set(ids(found)[:2]) == {3, 8}
    assert found[0].score > 1.0, "the rare word weighs more than its stored value"
    assert found[2].score < 0.5, "the word in every point weighs almost nothing"


def test_nearest_by_multivector(filled):
    found = filled.query_points(NAME, query=[[1.0, 0.0]], using="many", limit=2).points
    assert [(p.id, p.score) for p in found] == [(9, 9.0), (8, 8.0)]


def test_an_empty_sparse_query_finds_nothing(filled):
    empty = models.SparseVector(indices=[], values=[])
    assert filled.query_points(NAME, query=empty, using="words").points == []


def test_limit_offset_and_score_threshold(filled):
    def search(**how):
        return filled.query_points(NAME, query=[[1.0, 0.0]], using="many", **how).points

    assert ids(search(limit=2, offset=3)) == [6, 5]
    assert ids(search(limit=10, score_threshold=7.5)) == [9, 8]
    assert len(search()) == 10


def test_without_a_query_points_are_ordered_by_id(filled):
    assert ids(filled.query_points(NAME, limit=3).points) == [0, 1, 2]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (models.Filter(must=[models.FieldCondition(key="group", match=models.MatchValue(value="a"))]), {0, 2, 4, 6, 8}),
        (models.Filter(must_not=[models.HasIdCondition(has_id=[0, 1, 2, 3, 4])]), {5, 6, 7, 8, 9}),
        (models.Filter(must=[models.FieldCondition(key="n", match=models.MatchAny(any=[1, 2]))]), {1, 2}),
        (models.Filter(must_not=[models.FieldCondition(key="group", match=models.MatchAny(any=["a"]))]), {1, 3, 5, 7, 9}),
        (models.Filter(must=[models.FieldCondition(key="n", range=models.Range(gt=2, lte=5))]), {3, 4, 5}),
        (models.Filter(must=[models.FieldCondition(key="n", match=models.MatchExcept(**{"except": [1]}))]),
         {0, 2, 3, 4, 5, 6, 7, 8, 9}),
        (models.Filter(should=[models.HasIdCondition(has_id=[1]), models.HasIdCondition(has_id=[2])]), {1, 2}),
        (models.Filter(must=[models.Filter(must_not=[group("a")])]), {1, 3, 5, 7, 9}),
        (models.Filter(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key="absent"))]), set(range(10))),
        (models.Filter(must=[models.HasVectorCondition(has_vector="dense")]), set(range(10))),
        (models.Filter(min_should=models.MinShould(
            conditions=[group("a"), models.HasIdCondition(has_id=[0, 1])], min_count=2)), {0}),
    ],
)  # fmt: skip
def test_count_scroll_and_search_filter_alike(filled, condition, expected):
    assert filled.count(NAME, count_filter=condition).count == len(expected)
    assert set(ids(filled.scroll(NAME, scroll_filter=condition, limit=100)[0])) == expected
    found = filled.query_points(NAME, query=[[1.0, 0.0]], using="many", query_filter=condition, limit=100)
    assert set(ids(found.points)) == expected


def test_scrolling_returns_every_point_once(filled):
    seen, offset = [], None
    while True:
        page, offset = filled.scroll(NAME, limit=3, offset=offset)
        seen += ids(page)
        if offset is None:
            break
    assert seen == list(range(10))


def test_points_are_ordered_by_an_indexed_field(filled):
    filled.create_payload_index(NAME, "n", models.PayloadSchemaType.INTEGER, wait=True)
    page, _ = filled.scroll(NAME, order_by=models.OrderBy(key="n", direction=models.Direction.DESC), limit=2)
    assert ids(page) == [9, 8]


@pytest.mark.parametrize("fusion", [models.Fusion.RRF, models.Fusion.DBSF])
def test_fusion_ranks_what_both_criteria_find_first(filled, fusion):
    found = filled.query_points(
        NAME,
        prefetch=[
            models.Prefetch(query=[0.0, 0.0, 0.0, 1.0], using="dense", limit=2),
            models.Prefetch(query=models.SparseVector(indices=[3], values=[1.0]), using="words", limit=2),
        ],
        query=models.FusionQuery(fusion=fusion),
        limit=3,
    ).points
    assert found[0].id == 3, "3 is first or second by both; 7 and 8 by one only"
    assert set(ids(found)) == {3, 7, 8}


def test_mmr_prefers_points_that_differ_from_those_before_them(filled):
    def search(diversity):
        query = models.NearestQuery(
            nearest=[1.0, 0.0, 0.0, 0.0], mmr=models.Mmr(diversity=diversity, candidates_limit=10)
        )
        return ids(filled.query_points(NAME, query=query, using="dense", limit=3).points)

    nearest = filled.query_points(NAME, query=[1.0, 0.0, 0.0, 0.0], using="dense", limit=3).points
    assert search(0.0) == ids(nearest) == [0, 4, 8], "all on the axis that is asked for"
    first, *others = search(0.7)
    assert first == 0
    assert len({number % 4 for number in (first, *others)}) == 3, "each on an axis of its own"


def test_a_batch_has_the_results_of_its_queries_one_by_one(filled):
    requests = [
        models.QueryRequest(query=[[1.0, 0.0]], using="many", limit=2, filter=group("a"), with_payload=True),
        models.QueryRequest(query=[0.0, 1.0, 0.0, 0.0], using="dense", limit=1),
    ]
    batch = filled.query_batch_points(NAME, requests)
    assert ids(batch[0].points) == [8, 6]
    assert batch[0].points[0].payload["group"] == "a"
    alone = filled.query_points(NAME, query=[0.0, 1.0, 0.0, 0.0], using="dense", limit=1)
    assert ids(batch[1].points) == ids(alone.points)
    assert batch[1].points[0].score == alone.points[0].score


@pytest.mark.parametrize(
    "request_",
    [
        api.QueryPoints(using="dense", query=api.Query(nearest=api.VectorInput(dense=api.DenseVector(data=[1])))),
        api.QueryPoints(using="gone", query=api.Query(nearest=api.VectorInput(dense=api.DenseVector(data=[1])))),
        api.QueryPoints(query=api.Query(fusion=api.Fusion.RRF)),
        api.QueryPoints(
            using="dense",
            query=api.Query(
                nearest_with_mmr=api.NearestInputWithMmr(
                    nearest=api.VectorInput(dense=api.DenseVector(data=[1, 0, 0, 0])), mmr=api.Mmr(diversity=1.5)
                )
            ),
        ),
    ],
)
def test_bad_queries_are_invalid_arguments(filled, client, request_):
    request_.collection_name = NAME
    with pytest.raises(InvalidPoint):
        client.call(client.points.Query, request_, 10)
