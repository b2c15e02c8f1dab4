"""Helpers for tests of the embedded server: a store at an address, a plain collection, a filled memory."""

from contextlib import contextmanager

from qdrant_client import grpc as api

from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.schema import Query
from vector_store.server.process import embedded_server
from vector_store.store import Store


def store_at(url):
    config = StoreConfig(url=url)
    return Store(connect(config, url), config)


def create_plain(client, name):
    create = api.CreateCollection(collection_name=name)
    create.vectors_config.params.size, create.vectors_config.params.distance = 2, api.Distance.Dot
    client.call(client.collections.Create, create, 10)


@contextmanager
def filled_store(path, manifest, points):
    """A running server that holds the points: its address, a client, its config, and a query for each point."""
    queries = [Query(point.id, point.keywords, document=point.document) for point in points]
    with embedded_server(path) as url:
        config = StoreConfig(url=url)
        with connect(config, url) as client:
            store = Store(client, config)
            store.ensure(manifest)
            store.upsert(points)
            yield url, client, config, queries
