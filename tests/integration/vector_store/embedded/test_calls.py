"""Calls that the embedded server refuses: unsupported ones by name, invalid values in clear words."""

import grpc
import pytest
from qdrant_client import grpc as api

from tests.integration.vector_store.embedded.served import create_plain
from tests.store_clients import keyed_channel
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import StoreError
from vector_store.server.process import embedded_server


@pytest.mark.parametrize(
    ("stub", "method", "request_"),
    [
        (api.PointsStub, "Facet", api.FacetCounts()),
        (api.PointsStub, "UpdateVectors", api.UpdatePointVectors()),
        (api.CollectionsStub, "CreateShardKey", api.CreateShardKeyRequest()),
        (api.SnapshotsStub, "CreateFull", api.CreateFullSnapshotRequest()),
    ],
)
def test_an_unsupported_call_is_unimplemented_by_name(tmp_path_factory, stub, method, request_):
    with (
        embedded_server(tmp_path_factory.getbasetemp() / "unimplemented") as url,
        keyed_channel(url) as channel,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub(channel), method)(request_, timeout=10)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert f"/{method} is not implemented by the embedded server" in caught.value.details()


def test_a_batch_with_a_write_that_is_not_implemented_writes_nothing(tmp_path_factory):
    with (
        embedded_server(tmp_path_factory.getbasetemp() / "unimplemented") as url,
        connect(config := StoreConfig(url=url), url) as client,
    ):
        create_plain(client, config.collection)
        batch = api.UpdateBatchPoints(collection_name=config.collection)
        batch.operations.add().upsert.points.add(id=api.PointId(num=1)).vectors.vectors.SetInParent()
        batch.operations.add().clear_payload.points.points.ids.add().num = 1
        with pytest.raises(
            StoreError, match=r"PointsUpdateOperation\.clear_payload is not implemented by the embedded server"
        ):
            client.call(client.points.UpdateBatch, batch, 10)
        count = api.CountPoints(collection_name=config.collection)
        assert client.call(client.points.Count, count, 10).result.count == 0


def test_reflection_is_off(tmp_path_factory):
    with (
        embedded_server(tmp_path_factory.getbasetemp() / "unimplemented") as url,
        keyed_channel(url) as channel,
    ):
        for version in ("v1", "v1alpha"):
            ask = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
            with pytest.raises(grpc.RpcError) as caught:
                list(ask(iter([b""]), timeout=10))
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (api.UpdateCollection(params=api.CollectionParamsDiff(on_disk_payload=True)), "UpdateCollection.params"),
        (
            api.UpdateCollection(optimizers_config=api.OptimizersConfigDiff(memmap_threshold=1)),
            "OptimizersConfigDiff.memmap_threshold",
        ),
        (
            api.UpdateCollection(hnsw_config=api.HnswConfigDiff(max_indexing_threads=1)),
            "HnswConfigDiff.max_indexing_threads",
        ),
    ],
)
def test_an_option_that_cannot_be_changed_is_refused_by_name(tmp_path_factory, request_, name):
    with (
        embedded_server(tmp_path_factory.getbasetemp() / "unimplemented") as url,
        connect(StoreConfig(), url) as client,
    ):
        create_plain(client, "c")
        request_.collection_name = "c"
        with pytest.raises(StoreError, match=rf"UNIMPLEMENTED\): {name} is not implemented"):
            client.call(client.collections.Update, request_, 10)
        client.call(client.collections.Delete, api.DeleteCollection(collection_name="c"), 10)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinite_vectors_are_refused(tmp_path_factory, value):
    with embedded_server(tmp_path_factory.getbasetemp() / "finite") as url, connect(StoreConfig(), url) as client:
        create_plain(client, "c")
        point = api.PointStruct(id=api.PointId(num=1))
        point.vectors.vector.dense.data.extend([1.0, value])
        upsert = api.UpsertPoints(collection_name="c", points=[point])
        with pytest.raises(grpc.RpcError) as caught:
            client.points.Upsert(upsert, timeout=10, metadata=client._metadata)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        client.call(client.collections.Delete, api.DeleteCollection(collection_name="c"), 10)


def test_messages_up_to_the_limit_are_accepted(tmp_path):
    config = StoreConfig(message_bytes=8 * 2**20)
    with embedded_server(tmp_path, message_bytes=config.message_bytes) as url, connect(config, url) as client:
        create_plain(client, "c")
        point = api.PointStruct(id=api.PointId(num=1))
        point.payload["text"].string_value = "x" * 6 * 2**20
        client.call(client.points.Upsert, api.UpsertPoints(collection_name="c", wait=True, points=[point]), 10)
        get = api.GetPoints(collection_name="c", ids=[point.id], with_payload=api.WithPayloadSelector(enable=True))
        assert len(client.call(client.points.Get, get, 10).result[0].payload["text"].string_value) == 6 * 2**20
