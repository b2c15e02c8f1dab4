"""The index of a memory in several shards: an embedded server whose description is that of a cluster's collection."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from qdrant_client import grpc as api

import vector_store.store
from vector_store.__main__ import main
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.server.process import embedded_server
from vector_store.store import INDEXING_THRESHOLD_KB, Store


@pytest.fixture
def described(client, monkeypatch):
    """Describe every collection as its server would with these shards and counts; keeps the thresholds that are set."""
    monkeypatch.setattr(vector_store.store, "STATUS_POLL_S", 0.0)
    get, update, thresholds = client.collections.Get, client.collections.Update, []

    def described_as(shards, points, answers):
        """`answers` are (status, indexed vectors), one for each description; the last one goes on."""
        left = list(answers)

        def describe(request, **options):
            answer = get(request, **options)
            status, indexed = left.pop(0) if len(left) > 1 else left[0]
            answer.result.config.params.shard_number = shards
            answer.result.status, answer.result.points_count = status, points
            answer.result.indexed_vectors_count = indexed
            return answer

        def note(request, **options):
            if request.optimizers_config.HasField("indexing_threshold"):
                thresholds.append(request.optimizers_config.indexing_threshold)
            return update(request, **options)

        monkeypatch.setattr(client.collections, "Get", describe)
        monkeypatch.setattr(client.collections, "Update", note)
        return thresholds

    return described_as


GREEN, YELLOW = api.CollectionStatus.Green, api.CollectionStatus.Yellow
POINTS = 800_000
"""Of 4 numbers of 2 bytes: 6.4 MB, more than is scanned."""


@pytest.mark.parametrize("shards", [1, 3])
def test_the_threshold_of_a_new_memory_and_after_a_load_is_that_of_each_shard(
    client, config, manifest, described, shards
):
    store = Store(client, config)
    thresholds = described(shards, POINTS, [(GREEN, 2 * POINTS)])
    store.ensure(manifest)
    assert thresholds == [INDEXING_THRESHOLD_KB // shards]
    with store.bulk_load():
        assert thresholds[1:] == [0]
    assert thresholds[2:] == [INDEXING_THRESHOLD_KB // shards]
    with store.bulk_load():  # and also where a killed load left the pause
        store._set_indexing_threshold(0)
    store._set_indexing_threshold(0)
    thresholds.clear()
    with store.bulk_load():
        pass
    assert thresholds == [0, INDEXING_THRESHOLD_KB // shards]
    store.delete_collection()


def test_the_threshold_of_one_shard_is_left_as_it_was(client, config, manifest, described):
    store = Store(client, config)
    store.ensure(manifest)
    store._set_indexing_threshold(77)
    thresholds = described(1, POINTS, [(GREEN, 2 * POINTS)])
    with store.bulk_load():
        pass
    assert thresholds == [0, 77]
    store.delete_collection()


def test_green_is_believed_only_when_the_indexed_count_agrees(client, config, manifest, described, caplog):
    store = Store(client, config)
    store.ensure(manifest)
    before_a_build = [(GREEN, POINTS)] * 3  # each sparse vector is in an index, and no dense one
    described(3, POINTS, [*before_a_build, (YELLOW, POINTS), (YELLOW, int(1.5 * POINTS)), (GREEN, 2 * POINTS)])
    assert store.wait_until_indexed()
    assert not caplog.records
    described(3, POINTS, [(GREEN, POINTS)])
    with caplog.at_level(logging.WARNING):
        assert not store.wait_until_indexed()
    (record,) = caplog.records
    assert "the status is green" in record.message
    assert f"look-ups by `dense` scan {POINTS} of {POINTS} vectors (6 MB)" in record.message
    store.delete_collection()


@pytest.mark.parametrize(
    ("points", "indexed"),
    [(120_000, 120_000), (POINTS, 2 * POINTS), (10 * POINTS, 19 * POINTS)],
    ids=["too few to be indexed", "all are indexed", "a tenth is new"],
)
def test_what_is_meant_to_be_scanned_is_no_reason_to_wait(client, config, manifest, described, points, indexed):
    store = Store(client, config)
    store.ensure(manifest)
    described(3, points, [(GREEN, indexed)])
    assert store.wait_until_indexed()
    store.delete_collection()


def test_the_embedded_servers_own_counts_agree_with_its_status(client, config, manifest, make_points):
    store = Store(client, config)
    store.ensure(manifest)
    store.upsert(make_points(40))
    state = store.index_state()
    assert (state.points, state.unindexed, state.scans) == (40, 40, False)
    without = Store(client, config.model_copy(update={"collection": f"{config.collection}-b"}))
    without.ensure(manifest.model_copy(update={"words_dim": 0}))
    assert without.index_state() is None
    for one in (store, without):
        one.delete_collection()


def test_a_memory_below_its_threshold_in_stored_bytes_is_not_waited_for(
    client, config, manifest, make_points, monkeypatch, caplog
):
    monkeypatch.setattr(vector_store.store, "STATUS_POLL_S", 0.01)
    store = Store(client, config)
    store.ensure(manifest.model_copy(update={"words_dim": 4096}))  # 0.7 MB in half precision: the engine scans them
    wide = np.full(4096, 1 / 64, np.float32)
    with store.bulk_load():
        store.upsert([replace(point, sentence=wide) for point in make_points(90)])
    assert store.wait_until_indexed()
    assert not caplog.records
    assert store.index_state().unindexed_bytes == 90 * 4096 * 2
    store.delete_collection()


def test_info_has_a_line_for_look_ups_that_scan(tmp_path, manifest, make_points, monkeypatch, capsys):
    with embedded_server(tmp_path) as url:
        with connect(StoreConfig(), url) as client:
            store = Store(client, StoreConfig())
            store.ensure(manifest)
            store.upsert(make_points(12))
        assert main(["info", str(tmp_path)]) == 0
        assert "scan" not in capsys.readouterr().out
        monkeypatch.setattr(vector_store.store, "INDEXING_THRESHOLD_KB", 0)
        assert main(["info", str(tmp_path)]) == 0
        assert "look-ups by `dense` scan 12 of 12 vectors" in capsys.readouterr().out
