import dataclasses
import uuid
from collections import Counter

import numpy as np
import pytest

from vector_store.errors import CollectionMissing
from vector_store.pipeline import pipelined
from vector_store.retriever import Retriever
from vector_store.schema import Choice, Query, SparseVector

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


def twins_of(point, others):
    """Each other point with this one's vectors."""
    return [dataclasses.replace(other, keywords=point.keywords, sentence=point.sentence) for other in others]


@pytest.mark.parametrize("criterion", ["keywords", "dense", "hybrid"])
@pytest.mark.parametrize("num_twins", [3, 40])  # more than the candidates that are asked for at first
def test_equal_scores_are_ordered_by_id(store, manifest, make_points, make_retriever, criterion, num_twins):
    store.ensure(manifest)
    first, *rest = make_points(num_twins + 1, per_document=1)
    twins = twins_of(first, rest)
    store.upsert([first])
    for twin in sorted(twins, key=lambda point: point.id, reverse=True):  # an engine may prefer what was written first
        store.upsert([twin])
    store.upsert(make_points(30, seed=9))
    found = make_retriever(criterion).neighbours([ask(first, document=False)])
    assert found.ids == [min(point.id for point in twins)]


def test_a_fused_neighbour_is_good_by_both_criteria(store, manifest, make_points, make_retriever):
    store.ensure(manifest)
    asking, both, by_words, by_meaning, *others = make_points(40, per_document=1)
    near = asking.sentence + 0.1 * both.sentence / np.linalg.norm(both.sentence)
    store.upsert(
        [
            *others,
            dataclasses.replace(both, keywords=asking.keywords, sentence=near),
            dataclasses.replace(by_words, keywords=asking.keywords, sentence=-asking.sentence),
            dataclasses.replace(by_meaning, sentence=asking.sentence, keywords=others[0].keywords),
        ]
    )
    assert make_retriever("hybrid").neighbours([ask(asking)]).ids == [both.id]


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
    assert retriever.counts == {"live": 4, "cached": 0, "null": 0, "cache_hits": 1, "missing": 0}
    assert 0 < retriever.lookup_ms < 5000


def test_a_missing_collection_is_an_error_and_no_null_reference(make_retriever, make_points):
    with pytest.raises(CollectionMissing):
        make_retriever().neighbours([ask(make_points(1)[0])])


def same(one, other):
    """Whether two answers are equal in everything, down to the last bit."""
    return all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("states", "token_ids", "mask", "scores")
    ) and (one.ids, one.texts, one.steps) == (other.ids, other.texts, other.steps)


def test_a_kept_point_is_the_whole_point_and_is_not_fetched_again(points, client, make_retriever):
    retriever = make_retriever(with_text=True)
    queries = [ask(point) for point in points[:20]]
    once = retriever.neighbours(queries)
    fetches = counted(client, "Get")
    assert same(once, retriever.neighbours(queries))
    assert not fetches
    assert retriever.counts["cache_hits"] == len(set(once.ids))


def test_equal_queries_of_a_batch_are_asked_once(points, client, make_retriever):
    searches = counted(client, "QueryBatch")
    found = make_retriever().neighbours(
        [ask(points[0]), ask(points[1]), ask(points[0]), ask(points[0], document=False)]
    )
    assert len(searches[0].query_points) == 3
    assert found.ids[0] == found.ids[2]
    assert found.steps == ["live"] * 4


def counted(client, method):
    """Requests that the client sends by this method from now on."""
    sent, stub = [], getattr(client.points, method)

    class Counting:
        def future(self, request, **options):
            sent.append(request)
            return stub.future(request, **options)

    setattr(client.points, method, Counting())
    return sent


@pytest.mark.parametrize("criterion", CRITERIA)
def test_planned_neighbours_are_the_live_ones(points, make_retriever, criterion):
    queries = [ask(point) for point in points]
    live, live_own = make_retriever(criterion).neighbours_and_points(queries)
    choices = make_retriever(criterion).choices(queries)
    found, own = make_retriever(criterion).planned(choices, [query.id for query in queries])
    assert same(found, live)
    assert same(own, live_own)


def test_planned_neighbours_take_one_round_trip_and_then_none(points, client, make_retriever):
    retriever = make_retriever()
    choices = retriever.choices([ask(point) for point in points[:20]])
    searches, fetches = counted(client, "QueryBatch"), counted(client, "Get")
    retriever.planned(choices, [points[0].id])
    assert (len(searches), len(fetches)) == (0, 1)
    retriever.planned(choices)
    assert (len(searches), len(fetches)) == (0, 1)


def test_a_planned_point_that_was_deleted_is_a_null_reference_and_counted(points, make_retriever):
    retriever = make_retriever()
    gone = Choice(str(uuid.UUID(int=5)), 1.0)
    found, _ = retriever.planned([gone, Choice(points[0].id, 0.5), None])
    assert found.ids == [None, points[0].id, None]
    assert found.steps == ["live"] * 3
    assert found.scores.tolist() == [0.0, 0.5, 0.0]
    assert retriever.counts["missing"] == 1


def test_batches_in_flight_together_answer_as_one_after_the_other(points, make_retriever):
    batches = [[ask(point) for point in points[start : start + 8]] for start in range(0, 120, 8)]
    retriever = make_retriever("hybrid")
    together = list(pipelined(retriever.neighbours, batches, in_flight=4))
    alone = make_retriever("hybrid")
    assert all(same(found, alone.neighbours(batch)) for found, batch in zip(together, batches, strict=True))


def test_an_exact_look_up_asks_for_no_shortcut(points, client, make_retriever):
    searches = counted(client, "QueryBatch")
    found = make_retriever("dense", exact=True).neighbours([ask(points[0])])
    assert searches[0].query_points[0].params.exact
    assert found.ids == make_retriever("dense").neighbours([ask(points[0])]).ids
