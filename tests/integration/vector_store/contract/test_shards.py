"""Shards, copies and read consistency, of a cluster and of the embedded server."""

import os

import pytest
from qdrant_client import grpc as api

from vector_store.client import connect
from vector_store.errors import InvalidPoint
from vector_store.retriever import Retriever
from vector_store.schema import Query
from vector_store.store import Store

IS_EMBEDDED = "QDRANT_URL" not in os.environ


def test_a_collection_reports_its_one_shard_and_copy(server_url, store, manifest, client, config):
    store.ensure(manifest)
    info = client.call(client.collections.Get, api.GetCollectionInfoRequest(collection_name=config.collection), 10)
    params = info.result.config.params
    assert (params.replication_factor, params.write_consistency_factor) == (1, 1)
    assert params.shard_number == 1 or not IS_EMBEDDED  # a cluster's default is one per node


@pytest.mark.parametrize("consistency", [1, "majority", "quorum", "all"])
def test_reads_with_a_consistency_return_the_same_points(config, manifest, make_points, consistency):
    config = config.model_copy(update={"read_consistency": consistency})
    with connect(config, config.url) as client:
        store = Store(client, config)
        store.ensure(manifest)
        points = make_points(10)
        assert store.upsert(points) == 10
        assert store.existing([point.id for point in points]) == {point.id for point in points}
        assert store.count() == 10
        assert sum(len(page) for page in store.pages()) == 10
        retriever = Retriever(client, config, manifest, "keywords")
        queries = [Query(point.id, point.keywords, point.sentence, point.document) for point in points]
        assert retriever.neighbours(queries).rungs == ["live"] * 10
        store.delete_collection()


@pytest.mark.skipif(not IS_EMBEDDED, reason="a cluster has shards and copies")
@pytest.mark.parametrize("field", ["shard_number", "replication_factor", "write_consistency_factor"])
def test_the_embedded_server_refuses_more_than_one_shard_or_copy_in_one_line(client, field):
    request = api.CreateCollection(collection_name="sharded", **{field: 2})
    with pytest.raises(InvalidPoint, match=f"{field}=2: the embedded server has one shard and one copy") as caught:
        client.call(client.collections.Create, request, 10)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(IS_EMBEDDED, reason="the embedded server has one shard")
def test_a_server_creates_the_shards_that_the_config_asks_for(config, manifest, make_points):
    config = config.model_copy(update={"shard_number": 3})
    with connect(config, config.url) as client:
        store = Store(client, config)
        store.ensure(manifest)
        request = api.GetCollectionInfoRequest(collection_name=config.collection)
        assert client.call(client.collections.Get, request, 10).result.config.params.shard_number == 3
        assert store.upsert(make_points(50)) == store.count() == 50
        store.delete_collection()
