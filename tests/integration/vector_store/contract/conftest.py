"""Contract of every Qdrant server, by raw stubs and by the official client over gRPC and REST; only the tests of shards depend
on the server."""

import pytest
from qdrant_client import models

from tests.integration.vector_store.contract.collection import NAME, SPARSE, VECTORS
from tests.store_clients import official_client, rest_address


@pytest.fixture(scope="session", params=["grpc", "rest"])
def official(server_url, request):
    over_rest = request.param == "rest"
    if over_rest and not rest_address(server_url):
        pytest.skip("the server's REST address is not known: set QDRANT_REST_URL")
    with official_client(server_url, over_rest) as client:
        yield client


@pytest.fixture
def filled(official):
    """Ten points: number i has dense axis i % 4, word i % 5, group a or b, and a payload of every type."""
    official.delete_collection(NAME)
    official.create_collection(
        NAME, vectors_config=VECTORS, sparse_vectors_config=SPARSE, metadata={"made_by": "tests", "version": 3}
    )
    official.upsert(
        NAME,
        [
            models.PointStruct(
                id=i,
                vector={
                    "dense": [float(axis == i % 4) + i / 100 for axis in range(4)],
                    "many": [[float(i), 1.0], [0.0, 1.0]],
                    "words": models.SparseVector(indices=[i % 5, 100], values=[1.0, 0.5]),
                },
                payload={"group": "ab"[i % 2], "n": i, "nested": {"list": [i, None, True, 0.5, "x"]}},
            )
            for i in range(10)
        ],
    )
    yield official
    official.delete_collection(NAME)
