"""Contract of every Qdrant server, by official client and raw stubs; only the tests of shards depend on the server."""

import os
import warnings
from urllib.parse import urlsplit

import pytest
from qdrant_client import QdrantClient, models

from tests.integration.vector_store.contract.collection import NAME, SPARSE, VECTORS
from vector_store.server.access import split, stored_key


@pytest.fixture
def official(server_url):
    url, directory = split(server_url)  # of an embedded one
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # a key without TLS
        client = QdrantClient(
            url=url,
            grpc_port=urlsplit(url).port or 6334,
            prefer_grpc=True,
            check_compatibility=False,
            api_key=stored_key(directory) if directory else os.environ.get("QDRANT_API_KEY"),
        )
    yield client
    client.close()


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
