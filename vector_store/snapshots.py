"""Create, list, delete and restore snapshots: files, written by the server, that each hold a collection at one moment.

A Qdrant server restores a snapshot over its REST port only; a directory's store is restored while no server runs. A node's
snapshot holds that node's shards alone, and restored, the others are empty (Qdrant 1.18.3): where the node that is asked lacks
a shard no snapshot is made, and a collection that was restored without some of its shards is deleted again.
"""

import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from qdrant_client.http.api_client import SyncApis
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from qdrant_client.http.models import SnapshotPriority

from vector_store.client import Client
from vector_store.config import nodes_in
from vector_store.errors import StoreError, StoreUnavailable
from vector_store.nodes import is_loopback
from vector_store.protocol import api

LEAVING_S = 10.0
"""Longest wait for the server of a directory to end: about three seconds after its last user, such as the previous command."""

DEADLINE_S = 3600.0
"""Longest time for a call: a snapshot copies a whole collection."""


SHARDS_WITHIN_S = 10.0
"""Time to say where shards are."""

EXPORT_INSTEAD = "move it as parquet: `python -m vector_store export`, then `import`"


class Snapshot(NamedTuple):
    """One snapshot as its server describes it; `checksum` is SHA-256 in hexadecimal, empty where the server has none."""

    name: str
    size_bytes: int
    checksum: str


def create_snapshot(client: Client, collection: str) -> Snapshot:
    """Create a snapshot of the collection on the server; returns once it is complete.

    StoreError where the server has only some of the collection's shards.
    """
    _require_every_shard(client, collection)
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


def restore_server(url: str, collection: str, archive: Path, api_key: str | None, rest_port: int) -> int:
    """Restore a snapshot as a new collection of a Qdrant server, by uploading it; return its number of points.

    `url` is the server's gRPC address; the snapshot is sent to `rest_port` of the same host. StoreError where the collection
    exists (the server would replace it), the server refuses, or the snapshot is of some shards only; StoreUnavailable where
    nothing answers.
    """
    _require_file(archive)
    if len(nodes_in(url)) > 1:
        raise StoreError("a snapshot is restored by one node; name the one, or `import` an export into the cluster")
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
        shards = apis.distributed_api.collection_cluster_info(collection).result
        local = shards.local_shards if shards else []
        missing = _elsewhere(local, shards.remote_shards if shards else [])
        if missing or not local:
            apis.collections_api.delete_collection(collection)
            raise StoreError(
                f"{archive} holds a part of a memory: restored at {rest_url}, shards {_listed(missing)} of {collection!r} were "
                f"empty, so it was deleted again; {EXPORT_INSTEAD}"
            )
        return sum(shard.points_count for shard in local)
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


def _require_every_shard(client: Client, collection: str) -> None:
    """Refuse a server that has only some shards of a collection. One with a single shard and copy is not asked for more."""
    (found,) = client.ask(
        client.collections.Get, [api.GetCollectionInfoRequest(collection_name=collection)], SHARDS_WITHIN_S
    )
    params = found.result.config.params
    if max(params.shard_number, params.replication_factor) <= 1:
        return
    request = api.CollectionClusterInfoRequest(collection_name=collection)
    (shards,) = client.ask(client.collections.CollectionClusterInfo, [request], SHARDS_WITHIN_S)
    if missing := _elsewhere(shards.local_shards, shards.remote_shards):
        raise StoreError(
            f"a snapshot would hold a part of {collection!r}: its shards {_listed(missing)} are on other nodes than the one of "
            f"{client.url} that was asked; {EXPORT_INSTEAD}"
        )


def _elsewhere(local: Iterable[Any], remote: Iterable[Any]) -> list[int]:
    """The shards that are on other nodes alone."""
    return sorted({shard.shard_id for shard in remote} - {shard.shard_id for shard in local})


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _require_file(archive: Path) -> None:
    if not archive.is_file():
        raise StoreError(f"there is no snapshot {str(archive)!r}; give the file that `snapshot` wrote")


def _snapshot(description: api.SnapshotDescription) -> Snapshot:
    return Snapshot(description.name, description.size, description.checksum)
