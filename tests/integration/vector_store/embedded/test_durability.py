"""The embedded server keeps what it has acknowledged: clean restarts, kills under load, atomic changes."""

import multiprocessing
import os
import signal

import grpc
import pytest
from qdrant_client import grpc as api

from tests.chaos.faults import is_alive, kill_server, server_pid, wait_until
from tests.integration.vector_store.embedded.served import create_plain, store_at
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import CollectionMissing
from vector_store.server.process import embedded_server


def test_everything_survives_a_clean_restart(tmp_path, manifest, make_points):
    points = make_points(30)
    with embedded_server(tmp_path) as url:
        store = store_at(url)
        store.ensure(manifest)
        store.upsert(points)
        pid = server_pid(tmp_path)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not is_alive(pid), "the server ended", 10)
    with embedded_server(tmp_path) as again:
        assert again == url, "the port is kept, so that clients find the server again"
        store = store_at(again)
        assert store.manifest() == manifest
        assert store.count() == 30
        assert store.fetch([points[3].id]).ids == [[points[3].id]]
    assert "stopped serving" in (tmp_path / "server.log").read_text()


def _upsert_until_killed(url: str, acknowledged) -> None:
    with connect(StoreConfig(url=url), url) as client:
        for batch in range(10_000):
            points = []
            for n in range(batch * 5, batch * 5 + 5):
                point = api.PointStruct(id=api.PointId(num=n))
                point.payload["n"].integer_value = n
                point.vectors.vectors.vectors["keywords"].sparse.CopyFrom(api.SparseVector(indices=[n], values=[1.0]))
                points.append(point)
            request = api.UpsertPoints(collection_name="references", wait=True, points=points)
            try:
                client.points.Upsert(request, timeout=10, metadata=client._metadata)
            except grpc.RpcError:
                return
            acknowledged.value = batch + 1


def test_every_acknowledged_point_survives_a_kill_under_load(tmp_path, manifest):
    spawn = multiprocessing.get_context("spawn")
    acknowledged = spawn.Value("i", 0)
    with embedded_server(tmp_path) as url:
        store_at(url).ensure(manifest.model_copy(update={"words_dim": 0}))
        writer = spawn.Process(target=_upsert_until_killed, args=(url, acknowledged))
        writer.start()
        wait_until(lambda: acknowledged.value > 50, "50 batches are acknowledged", 30)
        kill_server(tmp_path)
        writer.join(15)
    with embedded_server(tmp_path) as url, connect(StoreConfig(url=url), url) as client:
        wanted = [api.PointId(num=n) for n in range(acknowledged.value * 5)]
        request = api.GetPoints(
            collection_name="references", ids=wanted, with_payload=api.WithPayloadSelector(enable=True)
        )
        found = client.call(client.points.Get, request, 10).result
        assert {point.payload["n"].integer_value for point in found} == set(range(acknowledged.value * 5))


def test_aliases_and_settings_survive_a_kill(tmp_path):
    with embedded_server(tmp_path) as url, connect(StoreConfig(), url) as client:
        create_plain(client, "c")
        action = api.AliasOperations(create_alias=api.CreateAlias(collection_name="c", alias_name="current"))
        client.call(client.collections.UpdateAliases, api.ChangeAliases(actions=[action]), 10)
        update = api.UpdateCollection(collection_name="current")
        update.optimizers_config.indexing_threshold = 0
        client.call(client.collections.Update, update, 10)
        kill_server(tmp_path)
    with embedded_server(tmp_path) as url, connect(StoreConfig(), url) as client:
        found = client.call(client.collections.Get, api.GetCollectionInfoRequest(collection_name="current"), 10)
        assert found.result.config.optimizer_config.indexing_threshold == 0
        assert found.result.config.optimizer_config.HasField("indexing_threshold")


def test_a_list_of_alias_changes_is_applied_whole_or_not_at_all(tmp_path):
    with embedded_server(tmp_path) as url, connect(StoreConfig(), url) as client:
        create_plain(client, "c")

        def create(collection, alias):
            return api.AliasOperations(create_alias=api.CreateAlias(collection_name=collection, alias_name=alias))

        changes = api.ChangeAliases(actions=[create("c", "first"), create("nowhere", "second")])
        with pytest.raises(CollectionMissing, match="nowhere"):
            client.call(client.collections.UpdateAliases, changes, 10)
        assert not client.call(client.collections.ListAliases, api.ListAliasesRequest(), 10).aliases
