import time
import uuid

import numpy as np
import pytest

from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import InvalidPoint, StoreError, StoreUnavailable
from vector_store.retriever import Retriever
from vector_store.schema import Choice, Query, SparseVector


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
        assert side.ids == [[]] * 3
        assert side.rungs == ["null"] * 3
        assert side.states.shape == (3, manifest.tokens, manifest.dim)
        assert not side.mask.any()
    assert retriever.counts == {"live": 0, "cached": 0, "null": 3, "cache_hits": 0, "missing": 0}


def test_not_every_look_up_waits_for_a_dead_store(dead, manifest):
    retriever = Retriever(dead, StoreConfig(), manifest, "keywords")
    retriever.neighbours(queries(1))
    started = time.monotonic()
    for _ in range(100):
        retriever.neighbours(queries(1))
    assert time.monotonic() - started < 0.5
    assert retriever.lookup_ms < 50


def test_criterion_none_calls_no_store(manifest):
    class Untouchable:
        pass

    retriever = Retriever(Untouchable(), StoreConfig(), manifest, "none")
    assert retriever.neighbours(queries(2)).rungs == ["null", "null"]
    assert retriever.neighbours([]).ids == []


def test_dense_criteria_need_a_dense_index(dead, manifest):
    without = manifest.model_copy(update={"words_dim": 0})
    with pytest.raises(StoreError, match="needs a dense index"):
        Retriever(dead, StoreConfig(), without, "hybrid")


def test_dense_criteria_need_a_sentence_vector(dead, manifest):
    with pytest.raises(InvalidPoint, match="no sentence vector"):
        Retriever(dead, StoreConfig(), manifest, "dense").neighbours(queries(1))


def test_precomputed_choices_of_a_dead_store_give_null_references_and_no_error(dead, manifest):
    retriever = Retriever(dead, StoreConfig(), manifest, "keywords")
    found, own = retriever.planned([[Choice(queries(1)[0].id, 1.0)], []], [queries(1)[0].id])
    assert found.rungs == ["null", "null"]
    assert own.rungs == ["null"]
    assert found.ids == [[], []]


def test_precomputing_choices_from_a_dead_store_is_an_error(dead, manifest):
    with pytest.raises(StoreUnavailable):
        Retriever(dead, StoreConfig(write_deadline_s=0.2), manifest, "keywords").choices(queries(2))
