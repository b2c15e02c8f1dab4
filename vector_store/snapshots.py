"""Snapshots of a collection: one file that holds it as it was at a moment, made by the server, restored whole.

A Qdrant server takes one back over its REST port only; the store of a directory, with no server running.
"""

from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from qdrant_client import grpc as api
from qdrant_client.http.api_client import SyncApis
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from qdrant_client.http.models import SnapshotPriority

from vector_store.client import Client, is_loopback
from vector_store.errors import StoreError, StoreUnavailable

DEADLINE_S = 3600.0
"""A snapshot copies a whole collection."""


class Snapshot(NamedTuple):
    """One snapshot as its server describes it; the checksum is SHA-256, in hexadecimal, empty where the server has none."""

    name: str
    size_bytes: int
    checksum: str


def create_snapshot(client: Client, collection: str) -> Snapshot:
    """Let the server write a snapshot of the collection; returns once it is complete."""
    request = api.CreateSnapshotRequest(collection_name=collection)
    # Asked once: every repetition would write one more.
    (answer,) = client.ask(client.snapshots.Create, [request], DEADLINE_S)
    return _snapshot(answer.snapshot_description)


def list_snapshots(client: Client, collection: str) -> list[Snapshot]:
    """The collection's snapshots on the server, by name."""
    request = api.ListSnapshotsRequest(collection_name=collection)
    (answer,) = client.ask(client.snapshots.List, [request], DEADLINE_S)
    return sorted(_snapshot(description) for description in answer.snapshot_descriptions)


def delete_snapshot(client: Client, collection: str, name: str) -> None:
    """Remove one snapshot from the server; CollectionMissing where there is none of this name."""
    request = api.DeleteSnapshotRequest(collection_name=collection, snapshot_name=name)
    client.ask(client.snapshots.Delete, [request], DEADLINE_S)


def restore_directory(root: Path, collection: str, archive: Path) -> None:
    """Put a snapshot's content in the place of the collection of a store that no server serves.

    AlreadyServed where one does.
    """
    # Imported here: the engine belongs to who opens a store's files, users of a server never load it.
    from vector_store.server.process import offline
    from vector_store.server.snapshots import restore_snapshot

    _require_file(archive)
    with offline(root):
        restore_snapshot(root, collection, archive)


def restore_server(url: str, collection: str, archive: Path, api_key: str | None, rest_port: int) -> None:
    """Upload a snapshot to a Qdrant server, which puts it in the place of the collection.

    `url` is the server's gRPC address, as everywhere; the snapshot goes to `rest_port` of the same host. Raises
    StoreUnavailable where nothing answers there.
    """
    _require_file(archive)
    parts = urlsplit(url)
    rest_url = f"{parts.scheme}://{parts.hostname}:{rest_port}"
    apis: SyncApis = SyncApis(
        rest_url,
        headers={"api-key": api_key} if api_key else {},
        timeout=DEADLINE_S,
        trust_env=not is_loopback(parts.hostname or ""),  # a machine's proxy cannot reach the machine's own loopback
    )
    try:
        with open(archive, "rb") as file:
            apis.snapshots_api.recover_from_uploaded_snapshot(
                collection, wait=True, priority=SnapshotPriority.SNAPSHOT, snapshot=file
            )
    except UnexpectedResponse as error:
        raise StoreError(
            f"{rest_url} did not restore {archive} into {collection!r}: HTTP {error.status_code}: "
            f"{error.content.decode(errors='replace')[:500]}"
        ) from error
    except ResponseHandlingException as error:
        raise StoreUnavailable(
            f"{rest_url} did not answer ({error.source}); restoring goes over the server's REST port: "
            "check that it runs and name the port with --rest-port"
        ) from error
    finally:
        apis.close()


def _require_file(archive: Path) -> None:
    if not archive.is_file():
        raise StoreError(f"there is no snapshot {str(archive)!r}; give the file that `snapshot` wrote")


def _snapshot(description: api.SnapshotDescription) -> Snapshot:
    return Snapshot(description.name, description.size, description.checksum)
