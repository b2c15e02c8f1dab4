"""The collection of the contract tests: its name, its vectors, and helpers for its points."""

import pytest
from qdrant_client import models

OVER_GRPC = pytest.mark.parametrize("official", ["grpc"], indirect=True)
"""For tests of what lies behind both ports, and takes seconds: once, by the official client over gRPC."""

NAME = "contract"
VECTORS = {
    "dense": models.VectorParams(size=4, distance=models.Distance.COSINE),
    "many": models.VectorParams(
        size=2,
        distance=models.Distance.DOT,
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
        hnsw_config=models.HnswConfigDiff(m=0),
    ),
}
SPARSE = {"words": models.SparseVectorParams(modifier=models.Modifier.IDF)}


def ids(points):
    return [point.id for point in points]


def group(value):
    return models.Filter(must=[models.FieldCondition(key="group", match=models.MatchValue(value=value))])
