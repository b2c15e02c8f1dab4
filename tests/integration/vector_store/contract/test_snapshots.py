"""Snapshots of a collection: created, listed, deleted, and not found where there are none."""

import grpc
import pytest
from qdrant_client import grpc as api

from tests.integration.vector_store.contract.collection import NAME


def test_snapshots_are_created_listed_and_deleted(filled, client):
    stub = api.SnapshotsStub(client._channel)
    more = {"timeout": 60, "metadata": client._metadata}
    made = stub.Create(api.CreateSnapshotRequest(collection_name=NAME), **more).snapshot_description
    assert made.name.startswith(NAME)
    assert made.name.endswith(".snapshot")
    assert made.size > 0
    assert len(made.checksum) == 64
    wanted = api.ListSnapshotsRequest(collection_name=NAME)
    assert [found.name for found in stub.List(wanted, **more).snapshot_descriptions] == [made.name]
    stub.Delete(api.DeleteSnapshotRequest(collection_name=NAME, snapshot_name=made.name), **more)
    assert not stub.List(wanted, **more).snapshot_descriptions


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Create", api.CreateSnapshotRequest(collection_name="nowhere")),
        ("List", api.ListSnapshotsRequest(collection_name="nowhere")),
        ("Delete", api.DeleteSnapshotRequest(collection_name="nowhere", snapshot_name="x")),
        ("Delete", api.DeleteSnapshotRequest(collection_name=NAME, snapshot_name="x.snapshot")),
    ],
)
def test_snapshots_of_a_missing_collection_are_not_found(filled, client, method, request_):
    with pytest.raises(grpc.RpcError) as caught:
        getattr(api.SnapshotsStub(client._channel), method)(request_, timeout=10, metadata=client._metadata)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
