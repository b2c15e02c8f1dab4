"""Create, list, delete and restore snapshots: files, written by the server, that each hold a collection at one moment.

A Qdrant server restores a snapshot over its REST port only; a directory's store is restored while no server runs.
"""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from qdrant_client import grpc as api
from qdrant_client.http.api_client import SyncApis
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from qdrant_client.http.models import SnapshotPriority

from vector_store.client import Client, is_loopback
from vector_store.errors import StoreError, StoreUnavailable

LEAVING_S = 10.0
"""Longest wait for the server of a directory to end: about three seconds after its last user, such as the previous command."""

DEADLINE_S = 3600.0
"""Longest time for a call: a snapshot copies a whole collection."""


class Snapshot(NamedTuple):
    """One snapshot as its server describes it; `checksum` is SHA-256 in hexadecimal, empty where the server has none."""

    name: str
    size_bytes: int
    checksum: str


def create_snapshot(client: Client, collection: str) -> Snapshot:
    """Create a snapshot of the collection on the server; returns once it is complete."""
    request = api.CreateSnapshotRequest(collection_name=collection)
    # Without retries: each would create one more.
    (answer,) = client.ask(client.snapshots.Create, [request], DEADLINE_S)
    return _snapshot(answer.snapshot_description)


def list_snapshots(client: Client, collection: str) -> list[Snapshot]:
    """The collection's snapshots on the server, by name."""
    request = api.ListSnapshotsRequest(collection_name=collection)
    (answer,) = client.ask(client.snapshots.List, [request], DEADLINE_S)
    return sorted(_snapshot(description) for description in answer.snapshot_descriptions)


def delete_snapshot(client: Client, collection: str, name: str) -> None:
    """Delete a snapshot from the server; CollectionMissing where there is none of this name."""
    request = api.DeleteSnapshotRequest(collection_name=collection, snapshot_name=name)
    client.ask(client.snapshots.Delete, [request], DEADLINE_S)


def restore_directory(root: Path, collection: str, archive: Path) -> None:
    """Restore a snapshot as a new collection of a store that is not being served.

    StoreError where it is, or where the collection exists. Waits up to LEAVING_S for a server without users to end.
    """
    # Imported here, so that users of a server do not load the engine.
    from vector_store.server.access import private_files
    from vector_store.server.process import offline
    from vector_store.server.snapshots import restore_snapshot

    _require_file(archive)
    deadline = time.monotonic() + LEAVING_S
    with ExitStack() as stopped:
        while True:
            try:
                stopped.enter_context(offline(root))
                break
            except StoreError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        with private_files():
            restore_snapshot(root, collection, archive)


def restore_server(url: str, collection: str, archive: Path, api_key: str | None, rest_port: int) -> None:
    """Restore a snapshot as a new collection of a Qdrant server, by uploading it.

    `url` is the server's gRPC address; the snapshot is sent to `rest_port` of the same host. StoreError where the collection
    exists (the server would replace it) or the server refuses, StoreUnavailable where nothing answers.
    """
    _require_file(archive)
    parts = urlsplit(url)
    rest_url = f"{parts.scheme}://{parts.hostname}:{rest_port}"
    apis: SyncApis = SyncApis(
        rest_url,
        headers={"api-key": api_key} if api_key else {},
        timeout=DEADLINE_S,
        trust_env=not is_loopback(parts.hostname or ""),  # a proxy cannot reach this machine's loopback
    )
    try:
        existence = apis.collections_api.collection_exists(collection).result
        if existence and existence.exists:
            raise StoreError(f"{rest_url} has a collection {collection!r} already; restore under another name")
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
            f"{rest_url} did not answer ({error.source}); a snapshot is restored over the server's REST port: "
            "check that it runs and name the port with --rest-port"
        ) from error
    finally:
        apis.close()


def _require_file(archive: Path) -> None:
    if not archive.is_file():
        raise StoreError(f"there is no snapshot {str(archive)!r}; give the file that `snapshot` wrote")


def _snapshot(description: api.SnapshotDescription) -> Snapshot:
    return Snapshot(description.name, description.size, description.checksum)
