import dataclasses
import uuid
from collections import Counter

import numpy as np
import pytest

from vector_store.codec import unit
from vector_store.errors import CollectionMissing
from vector_store.pipeline import pipelined
from vector_store.retriever import Retriever
from vector_store.schema import Choice, Parts, Query, SparseVector

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
def test_neighbours_exclude_the_query_its_document_and_excluded_splits(points, make_retriever, criterion):
    by_id = {point.id: point for point in points}
    found = make_retriever(criterion, exclude_splits=["test"]).neighbours([ask(point) for point in points])
    assert found.rungs == ["live"] * len(points)
    for query, (neighbour,) in zip(points, found.ids, strict=True):
        assert neighbour != query.id
        assert by_id[neighbour].document != query.document
        assert by_id[neighbour].split != "test"


@pytest.mark.parametrize("criterion", CRITERIA)
def test_without_a_document_only_the_query_itself_is_excluded(points, make_retriever, criterion):
    found = make_retriever(criterion).neighbours([ask(point, document=False) for point in points])
    assert all(neighbour != point.id for point, (neighbour,) in zip(points, found.ids, strict=True))


@pytest.mark.parametrize("count", [1, 3])
def test_dense_neighbours_are_the_exact_nearest(points, make_retriever, count):
    vectors = np.stack([unit(point.sentence) for point in points])
    scores = vectors @ vectors.T
    for i, one in enumerate(points):
        for j, other in enumerate(points):
            if one.document == other.document:
                scores[i, j] = -np.inf
    found = make_retriever("dense", count=count).neighbours([ask(point) for point in points])
    assert found.ids == [[points[j].id for j in row] for row in np.argsort(-scores)[:, :count]]
    assert np.allclose(found.scores, -np.sort(-scores)[:, :count], atol=1e-5)


def test_keyword_neighbours_share_the_weightiest_words(points, make_retriever):
    found = make_retriever().neighbours([ask(point) for point in points])
    by_id = {point.id: point for point in points}
    for point, (neighbour,) in zip(points, found.ids, strict=True):
        assert set(point.keywords.indices) & set(by_id[neighbour].keywords.indices)


def test_the_neighbour_is_read_as_it_was_written(points, make_retriever):
    found = make_retriever(read=Parts(text=True)).neighbours([ask(point) for point in points[:10]])
    by_id = {point.id: point for point in points}
    for row, (neighbour,) in enumerate(found.ids):
        assert np.array_equal(found.states[row][found.mask[row]], by_id[neighbour].states)
        assert np.array_equal(found.token_ids[row][found.mask[row]], by_id[neighbour].token_ids)
        assert found.texts[row] == [by_id[neighbour].text]
    assert make_retriever().neighbours([ask(points[0])]).texts == [[None]]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_several_neighbours_begin_with_the_best_and_are_all_allowed(points, make_retriever, criterion):
    by_id = {point.id: point for point in points}
    queries = [ask(point) for point in points]
    best, found = (make_retriever(criterion, count=count).neighbours(queries) for count in (1, 3))
    for query, (first,), ids, scores in zip(points, best.ids, found.ids, found.scores, strict=True):
        assert first == ids[0] or criterion == "hybrid"  # whose longer lists tell more of its equals apart
        assert len(set(ids)) == 3
        assert all(by_id[i].document != query.document for i in ids)
        assert (np.diff(scores) <= 0).all()


def test_several_neighbours_fill_a_row_without_gaps(points, make_retriever):
    found = make_retriever(count=3, read=Parts(text=True)).neighbours([ask(point) for point in points[:10]])
    by_id = {point.id: point for point in points}
    for row, ids in enumerate(found.ids):
        chosen = [by_id[i] for i in ids]
        length = sum(len(point.states) for point in chosen)
        assert np.array_equal(found.states[row, :length], np.concatenate([point.states for point in chosen]))
        assert np.array_equal(found.token_ids[row, :length], np.concatenate([point.token_ids for point in chosen]))
        wanted = np.repeat(range(3), [len(point.states) for point in chosen])
        assert np.array_equal(found.ranks[row, :length], wanted)
        assert not found.mask[row, length:].any()
        assert not found.states[row, length:].any()
        assert found.texts[row] == [point.text for point in chosen]


def test_several_neighbours_take_two_round_trips_as_one_does(points, client, make_retriever):
    retriever = make_retriever(count=3)
    retriever.choices([ask(points[0])])  # reads the term statistics
    searches, fetches = counted(client, "QueryBatch"), counted(client, "Get")
    found = retriever.neighbours([ask(point) for point in points[:20]])
    (search,), (fetch,) = searches, fetches
    assert len(search.query_points) == 20
    assert {point.uuid for point in fetch.ids} == {i for ids in found.ids for i in ids}
    assert len(fetch.ids) < 60  # each once


def test_a_fetch_that_may_exceed_a_message_is_split(points, client, config, manifest):
    fetches = counted(client, "Get")
    queries = [ask(point) for point in points[:20]]
    small = config.model_copy(update={"message_bytes": 4 * 10 * manifest.bytes_per_point()})
    found = Retriever(client, small, manifest, "keywords", count=3).neighbours(queries)
    assert len(fetches) > 1
    assert max(len(request.ids) for request in fetches) == 10
    assert same(found, Retriever(client, config, manifest, "keywords", count=3).neighbours(queries))


def test_fusion_differs_from_the_full_lists_only_for_points_that_are_first_in_one(points, make_retriever):
    queries = [ask(point) for point in points]
    rankings = [make_retriever(criterion, count=118).choices(queries) for criterion in ("keywords", "dense")]
    fused = make_retriever("hybrid", count=3).choices(queries)
    for by_words, by_meaning, chosen in zip(*rankings, fused, strict=True):
        ranks = [
            {choice.id: sum(other.score > choice.score for other in ranking) for choice in ranking}
            for ranking in (by_words, by_meaning)
        ]
        sums = {i: sum(1 / (2 + of[i]) for of in ranks if i in of) for i in ranks[0] | ranks[1]}
        least = min(sums[choice.id] for choice in chosen)
        missed = {i for i, whole in sums.items() if whole > least} - {choice.id for choice in chosen}
        assert all(min(of[i] for of in ranks if i in of) < 3 for i in missed)
        assert all(choice.score <= sums[choice.id] + 1e-9 for choice in chosen)


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
    assert found.ids == [[min(point.id for point in twins)]]
    several = make_retriever(criterion, count=3).neighbours([ask(first, document=False)])
    assert several.ids == [sorted(point.id for point in twins)[:3]]


def test_a_fused_neighbour_ranks_high_by_both_criteria(store, manifest, make_points, make_retriever):
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
    assert make_retriever("hybrid").neighbours([ask(asking)]).ids == [[both.id]]


def test_a_query_alone_has_the_neighbours_that_it_has_in_a_batch(points, make_retriever):
    retriever = make_retriever("hybrid")
    batch = retriever.neighbours([ask(point) for point in points[:8]])
    alone = [retriever.neighbours([ask(point)]).ids[0] for point in points[:8]]
    assert batch.ids == alone


def test_an_empty_query_has_no_neighbour_and_is_live(points, make_retriever):
    empty = SparseVector(np.zeros(0, np.uint32), np.zeros(0, np.float32))
    found = make_retriever().neighbours([Query(points[0].id, empty), ask(points[1])])
    assert found.rungs == ["live", "live"]
    assert not found.ids[0]
    assert not found.mask[0].any()
    assert found.ids[1]


def test_own_points_are_read_with_the_neighbours(points, make_retriever, make_points):
    stranger = make_points(1, seed=5)[0]
    queries = [ask(points[0]), ask(stranger), ask(points[2])]
    found, own = make_retriever().neighbours_and_points(queries)
    assert own.ids == [[points[0].id], [], [points[2].id]]
    assert own.rungs == ["live"] * 3
    assert np.array_equal(own.states[0][own.mask[0]], points[0].states)
    assert found.ids == make_retriever().neighbours(queries).ids


class Keys:
    """Keys of two numbers: the vector's first, and how many tokens there are. Counts the points that it was asked for."""

    dim = 2

    def __init__(self):
        self.made = Counter()

    def __call__(self, points):
        self.made.update(point.id for point in points)
        return np.array([(point.vector[0], len(point.token_ids)) for point in points], np.float32)


def test_a_points_key_is_made_once_and_comes_in_the_place_of_its_vector_and_tokens(points, make_retriever):
    keys, read = Keys(), Parts(states=False, text=True, vector=True)
    by_id = {point.id: point for point in points}
    asks, queries = make_retriever(count=3, read=read), [ask(point) for point in points[:20]]
    retriever = make_retriever(count=3, read=read, keys=keys)
    wanted = asks.neighbours(queries)
    for _ in range(2):  # the second time from the cache
        found = retriever.neighbours(queries)
        assert (found.ids, found.texts, found.rungs) == (wanted.ids, wanted.texts, wanted.rungs)
        assert np.array_equal(found.scores, wanted.scores)
        assert found.vectors is None
        assert not found.token_ids.size
        assert np.array_equal(found.keys[:, :, 0], wanted.vectors[:, :, 0])
        lengths = [[len(by_id[one].token_ids) for one in ids] for ids in found.ids]
        assert found.keys[:, :, 1].tolist() == lengths
    assert set(keys.made.values()) == {1}


def test_own_points_bring_their_vectors_where_neighbours_have_keys(points, make_retriever):
    read = Parts(states=False, vector=True)
    queries = [ask(point) for point in points[:20]]
    wanted = make_retriever(count=3, read=read).neighbours_and_points(queries)[1]
    retriever = make_retriever(count=3, read=read, keys=Keys())
    for _ in range(2):
        found, own = retriever.neighbours_and_points(queries)
        assert {i for ids in found.ids for i in ids} & {ids[0] for ids in own.ids}  # one is both
        assert own.ids == wanted.ids
        assert np.array_equal(own.vectors, wanted.vectors)


def test_own_points_are_read_with_criterion_none(points, make_retriever):
    found, own = make_retriever("none").neighbours_and_points([ask(points[0])])
    assert found.rungs == ["null"]
    assert found.ids == [[]]
    assert own.ids == [[points[0].id]]


def test_random_neighbours_depend_on_id_and_seed_only(points, make_retriever):
    queries = [ask(point) for point in points]
    once = make_retriever("random", seed=1).neighbours(queries).ids
    assert once == make_retriever("random", seed=1).neighbours(queries[::-1]).ids[::-1]
    assert once != make_retriever("random", seed=2).neighbours(queries).ids


def test_random_neighbours_are_spread_over_the_points(points, make_retriever):
    keywords = points[0].keywords
    queries = [Query(str(uuid.uuid5(uuid.NAMESPACE_URL, str(i))), keywords) for i in range(1200)]
    retriever = make_retriever("random")
    drawn = Counter(
        i for start in range(0, 1200, 100) for (i,) in retriever.neighbours(queries[start : start + 100]).ids
    )
    # Each point's share is its gap between ids: exponential around 10 draws.
    assert len(drawn) > 0.75 * len(points)
    assert max(drawn.values()) < 100


def test_a_collection_of_the_query_alone_has_no_neighbour(store, manifest, make_points, make_retriever):
    store.ensure(manifest)
    point = make_points(1)[0]
    store.upsert([point])
    for criterion in CRITERIA:
        found = make_retriever(criterion).neighbours([ask(point)])
        assert found.ids == [[]]
        assert found.rungs == ["live"]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_query_has_fewer_neighbours_where_the_store_has_fewer_points(
    store, manifest, make_points, make_retriever, criterion
):
    store.ensure(manifest)
    asking, *others = make_points(3, per_document=1)
    others = [dataclasses.replace(other, keywords=asking.keywords) for other in others]
    store.upsert([asking, *others])
    found = make_retriever(criterion, count=4).neighbours([ask(asking)])
    assert sorted(found.ids[0]) == sorted(other.id for other in others)
    assert found.mask.sum() == sum(len(other.states) for other in others)
    assert found.scores[0, 2:].tolist() == [0, 0]


def test_look_ups_are_counted_and_timed(points, make_retriever):
    retriever = make_retriever()
    retriever.neighbours([ask(point) for point in points[:3]])
    retriever.neighbours([ask(points[0])])
    assert retriever.counts == {"live": 4, "cached": 0, "null": 0, "cache_hits": 1, "missing": 0}
    assert 0 < retriever.lookup_ms < 5000


def test_a_missing_collection_is_an_error_instead_of_a_null_reference(make_retriever, make_points):
    with pytest.raises(CollectionMissing):
        make_retriever().neighbours([ask(make_points(1)[0])])


def same(one, other):
    """Whether two answers are equal in everything, down to the last bit."""
    return all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("states", "token_ids", "ranks", "scores")
    ) and (one.ids, one.texts, one.rungs) == (other.ids, other.texts, other.rungs)


def test_a_cached_point_is_complete_and_not_fetched_again(points, client, make_retriever):
    retriever = make_retriever(read=Parts(text=True))
    queries = [ask(point) for point in points[:20]]
    once = retriever.neighbours(queries)
    fetches = counted(client, "Get")
    assert same(once, retriever.neighbours(queries))
    assert not fetches
    assert retriever.counts["cache_hits"] == len({i for ids in once.ids for i in ids})


def test_equal_queries_of_a_batch_are_sent_once(points, client, make_retriever):
    searches = counted(client, "QueryBatch")
    found = make_retriever().neighbours(
        [ask(points[0]), ask(points[1]), ask(points[0]), ask(points[0], document=False)]
    )
    assert len(searches[0].query_points) == 3
    assert found.ids[0] == found.ids[2]
    assert found.rungs == ["live"] * 4


def counted(client, method):
    """Requests that the client sends by this method from now on."""
    sent, stub = [], getattr(client.points, method)

    def counting(request, **options):
        sent.append(request)
        return stub(request, **options)

    def counting_future(request, **options):
        sent.append(request)
        return stub.future(request, **options)

    counting.future = counting_future
    setattr(client.points, method, counting)
    return sent


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_precomputed_neighbours_equal_the_live_ones(points, make_retriever, criterion, count):
    queries = [ask(point) for point in points]
    live, live_own = make_retriever(criterion, count=count).neighbours_and_points(queries)
    choices = make_retriever(criterion, count=count).choices(queries)
    found, own = make_retriever(criterion, count=count).planned(choices, [query.id for query in queries])
    assert same(found, live)
    assert same(own, live_own)


def test_precomputed_neighbours_take_one_round_trip_and_then_none(points, client, make_retriever):
    retriever = make_retriever()
    choices = retriever.choices([ask(point) for point in points[:20]])
    searches, fetches = counted(client, "QueryBatch"), counted(client, "Get")
    retriever.planned(choices, [points[0].id])
    assert (len(searches), len(fetches)) == (0, 1)
    retriever.planned(choices)
    assert (len(searches), len(fetches)) == (0, 1)


def test_a_precomputed_point_that_was_deleted_is_a_null_reference_and_counted(points, make_retriever):
    retriever = make_retriever()
    gone = Choice(str(uuid.UUID(int=5)), 1.0)
    found, _ = retriever.planned([[gone], [Choice(points[0].id, 0.5)], []])
    assert found.ids == [[], [points[0].id], []]
    assert found.rungs == ["live"] * 3
    assert found.scores.tolist() == [[0.0], [0.5], [0.0]]
    assert retriever.counts["missing"] == 1


def test_the_neighbours_after_a_deleted_one_move_up(points, make_retriever):
    retriever = make_retriever(count=3)
    gone, first, last = Choice(str(uuid.UUID(int=5)), 3.0), Choice(points[0].id, 2.0), Choice(points[1].id, 1.0)
    found, _ = retriever.planned([[first, gone, last]])
    assert found.ids == [[first.id, last.id]]
    assert found.scores.tolist() == [[2.0, 1.0, 0.0]]
    assert found.ranks.max() == 1


def test_several_neighbours_are_cached_for_a_slow_store(points, make_retriever):
    retriever = make_retriever(count=3)
    live = retriever.neighbours([ask(point) for point in points[:5]])
    retriever._deadline_s = 1e-6
    away = retriever.neighbours([ask(point) for point in points[:6]])
    assert away.rungs == ["cached"] * 5 + ["null"]
    assert away.ids[:5] == live.ids
    assert np.array_equal(away.states[:5], live.states)


def test_concurrent_batches_have_the_neighbours_of_sequential_ones(points, make_retriever):
    batches = [[ask(point) for point in points[start : start + 8]] for start in range(0, 120, 8)]
    retriever = make_retriever("hybrid")
    together = list(pipelined(retriever.neighbours, batches, in_flight=4))
    alone = make_retriever("hybrid")
    assert all(same(found, alone.neighbours(batch)) for found, batch in zip(together, batches, strict=True))


def test_an_exact_look_up_uses_no_approximation(points, client, make_retriever):
    searches = counted(client, "QueryBatch")
    found = make_retriever("dense", exact=True).neighbours([ask(points[0])])
    assert searches[0].query_points[0].params.exact
    assert found.ids == make_retriever("dense").neighbours([ask(points[0])]).ids
