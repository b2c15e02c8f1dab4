import time
import uuid

import numpy as np
import pytest

from vector_store.client import connect
from vector_store.codec import empty_neighbours
from vector_store.config import StoreConfig
from vector_store.errors import InvalidPoint, StoreError
from vector_store.retriever import Retriever, _Cache
from vector_store.schema import Query, SparseVector


@pytest.fixture
def dead():
    with connect(StoreConfig(), "http://127.0.0.1:1") as client:
        yield client


def queries(num):
    keywords = SparseVector(np.array([1], np.uint32), np.array([1.0], np.float32))
    return [Query(str(uuid.UUID(int=i)), keywords) for i in range(num)]


@pytest.mark.parametrize("criterion", ["keywords", "random"])
def test_a_dead_store_gives_null_references_and_no_error(dead, manifest, criterion):
    retriever = Retriever(dead, StoreConfig(), manifest, criterion)
    found, own = retriever.neighbours_and_points(queries(3))
    for side in (found, own):
        assert side.ids == [None] * 3
        assert side.steps == ["null"] * 3
        assert side.states.shape == (3, manifest.tokens, manifest.dim)
        assert not side.mask.any()
    assert retriever.counts == {"live": 0, "cached": 0, "null": 3}


def test_a_dead_store_costs_no_deadline_on_every_look_up(dead, manifest):
    retriever = Retriever(dead, StoreConfig(), manifest, "keywords")
    retriever.neighbours(queries(1))
    started = time.monotonic()
    for _ in range(100):
        retriever.neighbours(queries(1))
    assert time.monotonic() - started < 0.5
    assert retriever.lookup_ms < 50


def test_no_criterion_asks_nobody(manifest):
    class Untouchable:
        pass

    retriever = Retriever(Untouchable(), StoreConfig(), manifest, "none")
    assert retriever.neighbours(queries(2)).steps == ["null", "null"]
    assert retriever.neighbours([]).ids == []


def test_dense_criteria_need_a_dense_index(dead, manifest):
    without = manifest.model_copy(update={"dense_index": False})
    with pytest.raises(StoreError, match="needs a dense index"):
        Retriever(dead, StoreConfig(), without, "hybrid")


def test_dense_criteria_need_a_sentence_vector(dead, manifest):
    with pytest.raises(InvalidPoint, match="no sentence vector"):
        Retriever(dead, StoreConfig(), manifest, "dense").neighbours(queries(1))


def row(manifest, name, length=2):
    found = empty_neighbours(1, manifest)
    found.ids[0] = name
    found.mask[0, :length] = True
    found.states[0, :length] = 1
    return found


def test_the_cache_forgets_the_longest_unused_first_and_keeps_its_budget(manifest):
    one_bytes = 2 * manifest.dim * 2 + 2 * 4 + 400
    cache = _Cache(2 * one_bytes)
    for name in "ab":
        cache.keep(name, row(manifest, name), 0)
    cache.fill("a", empty_neighbours(1, manifest), 0)
    cache.keep("c", row(manifest, "c"), 0)

    filled = {}
    for name in "abc":
        found = empty_neighbours(1, manifest)
        cache.fill(name, found, 0)
        filled[name] = (found.ids[0], found.steps[0])
    assert filled == {"a": ("a", "cached"), "b": (None, "null"), "c": ("c", "cached")}


def test_a_cached_neighbour_is_the_whole_neighbour(manifest):
    cache = _Cache(10_000)
    kept = row(manifest, "a")
    cache.keep("q", kept, 0)
    found = empty_neighbours(1, manifest)
    cache.fill("q", found, 0)
    assert np.array_equal(found.states, kept.states)
    assert np.array_equal(found.mask, kept.mask)


def test_keeping_the_same_query_again_does_not_leak_budget(manifest):
    cache = _Cache(1000)
    for _ in range(50):
        cache.keep("q", row(manifest, "a"), 0)
    found = empty_neighbours(1, manifest)
    cache.fill("q", found, 0)
    assert found.ids == ["a"]
