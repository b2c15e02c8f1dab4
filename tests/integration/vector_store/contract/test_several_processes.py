"""Several processes write, search and read one collection at once."""

import multiprocessing

from qdrant_client import grpc as api
from qdrant_client import models

from tests.integration.vector_store.contract.collection import NAME, OVER_GRPC
from vector_store.client import connect
from vector_store.config import StoreConfig


def _write_search_and_read(url: str, name: str, worker: int) -> list[bool]:
    config = StoreConfig(url=url)
    with connect(config, url) as client:
        mine = api.Filter(must=[api.Condition(field=api.FieldCondition(key="worker", match=api.Match(integer=worker)))])
        search = api.QueryPoints(
            collection_name=name,
            using="dense",
            limit=200,
            filter=mine,
            params=api.SearchParams(exact=True),
            query=api.Query(nearest=api.VectorInput(dense=api.DenseVector(data=[1.0, 1.0, 0.0, 0.0]))),
        )
        found = []
        for i in range(20):
            first = worker * 1000 + i * 5
            points = []
            for n in range(first, first + 5):
                point = api.PointStruct(id=api.PointId(num=n))
                point.payload["worker"].integer_value = worker
                point.vectors.vectors.vectors["dense"].dense.data.extend([1.0, float(n), 0.0, 0.0])
                points.append(point)
            client.call(client.points.Upsert, api.UpsertPoints(collection_name=name, wait=True, points=points), 30)
            found.append(len(client.call(client.points.Query, search, 30).result) == (i + 1) * 5)
        wanted = [api.PointId(num=worker * 1000 + n) for n in range(100)]
        get = api.GetPoints(collection_name=name, ids=wanted, with_payload=api.WithPayloadSelector(enable=True))
        result = client.call(client.points.Get, get, 30).result
        return found + [point.payload["worker"].integer_value == worker for point in result]


@OVER_GRPC
def test_several_processes_write_search_and_read_at_once(filled, server_url):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        answers = pool.starmap(_write_search_and_read, [(server_url, NAME, worker) for worker in (1, 2, 3)])
    assert answers == [[True] * 120] * 3
    assert filled.count(NAME).count == 310
    for worker in (1, 2, 3):
        mine = models.Filter(must=[models.FieldCondition(key="worker", match=models.MatchValue(value=worker))])
        assert filled.count(NAME, count_filter=mine).count == 100
