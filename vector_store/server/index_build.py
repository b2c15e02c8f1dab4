"""Build a collection's HNSW index beside the live shard and swap it in, while the server goes on answering.

The engine's `optimize` holds the GIL from start to end (16 s for 28,000 vectors of 384 on 2 cores): inside the server it would
block every call. So a child process, this module run as a program, indexes a copy of the shard. Writes during the build are
kept and repeated on the copy before it replaces the shard. After too many of them the copy is dropped, and the build starts
again once writes have paused. Until there is an index searches scan, which is slower and never wrong. Collections without an
HNSW index need no build of one: for a sparse index `optimize` has nothing to do (measured).

After deletions, or damage to the log, the child reads the copy's points into a new shard and indexes that one. The new shard
has none of the deleted texts, neither in segments nor in a log, which the engine cuts by whole files of 32 MiB. To remove only
the log would not do: the engine numbers writes by the log, and skips those that seem to be older than what the shard has
(measured).
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from qdrant_edge import EdgeConfig, EdgeShard, Point, ScrollRequest, UpdateOperation

from vector_store.server.catalogue import Catalogue, Collection, read_settings
from vector_store.server.files import MARGIN_BYTES, folder_bytes, import_path, require_room
from vector_store.server.status import StatusError
from vector_store.server.translate import engine_config

log = logging.getLogger(__name__)

LOOK_S = 1.0
POLL_S = 0.05

PAGE = 64
"""Points that are read and written at once by a rebuild; one may take a megabyte."""

ROOM_COPIES = 3
"""Free space that a build needs, in sizes of the shard: the copy, its rewritten segments, and the index."""

_SIGNAL_AT_PARENTS_DEATH = 1


def keep_indexed(catalogue: Catalogue, stopping: threading.Event) -> None:
    """Build every index that is due, one collection at a time, until `stopping` is set."""
    while not stopping.wait(LOOK_S):
        for name in catalogue.names():
            try:
                collection = catalogue.find(name)
            except StatusError:  # deleted since
                continue
            try:
                wants_build = collection.wants_index() or collection.wants_rebuild()
                if collection.index_schedule.is_due(wants_build, collection.wrote_at):
                    build_index(collection, stopping, rebuild=collection.wants_rebuild())
            except (StatusError, OSError) as error:
                if not collection.dropped.is_set():
                    log.warning("index of %s not built: %s", name, error)
                    collection.index_schedule.failed(str(error))


def build_index(collection: Collection, stopping: threading.Event, rebuild: bool = False) -> bool:
    """Index a copy of the shard and swap it in; False where too many writes, a deletion or `stopping` came first.

    With `rebuild` its points are read into a new shard first, so that nothing is left of what was deleted.
    """
    schedule, started = collection.index_schedule, time.monotonic()
    number = 1 + max(int(path.name.removeprefix("shard-")) for path in collection.directory.glob("shard-*"))
    copy = collection.directory / f"shard-{number}"
    fresh = collection.directory / f"shard-{number + 1}" if rebuild else copy
    with collection.copying:
        if collection.dropped.is_set():
            return False
        wanted_bytes = MARGIN_BYTES + ROOM_COPIES * folder_bytes(collection.shard_directory)
        require_room(collection.directory, wanted_bytes, "building an index")
        schedule.is_building = True
        try:
            collection.copy_shard(copy, keep_writes=True)
            is_built = _index_in_child(collection, copy, fresh, stopping) and collection.swap_shard(fresh, rebuild)
        finally:
            schedule.is_building = False
            collection.forget_writes()
            collection.remove_other_shards()
    if is_built:
        schedule.succeeded()
        collection.rebuild_s = time.monotonic() - started
        log.info("%s %s in %.1f s", "rebuilt" if rebuild else "indexed", collection.name, collection.rebuild_s)
    else:
        schedule.failed()
    return is_built


def _index_in_child(collection: Collection, copy: Path, fresh: Path, stopping: threading.Event) -> bool:
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "vector_store.server.index_build", str(copy), str(fresh), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": import_path()},
    )
    while child.poll() is None:
        if stopping.wait(POLL_S) or collection.dropped.is_set() or not collection.keeps_writes:
            child.kill()
            child.wait()
            return False
    if child.returncode:
        raise OSError(f"the process that built it ended with {child.returncode}; see the server's log")
    return True


def index_shard(copy: Path, fresh: Path) -> None:
    """Index a shard that nobody has open, or write its points into the new shard `fresh` and index that."""
    config = engine_config(read_settings(copy.parent)[0])
    if fresh != copy:
        _copy_points(copy, fresh, config)
    shard = EdgeShard.load(str(fresh), config)
    shard.optimize()
    shard.flush()
    shard.close()


def _copy_points(copy: Path, fresh: Path, config: EdgeConfig) -> None:
    """Write a shard's points and payload indexes into a new shard."""
    fresh.mkdir()
    source, target = EdgeShard.load(str(copy)), EdgeShard.create(str(fresh), config)
    for key, index in source.info().payload_schema.items():
        target.update(UpdateOperation.create_field_index(key, index.params or index.data_type))
    offset: Any = None
    while True:
        page = ScrollRequest(limit=PAGE, offset=offset, with_payload=True, with_vector=True)
        records, offset = source.scroll(page)
        if records:
            target.update(UpdateOperation.upsert_points([Point(r.id, r.vector or {}, r.payload) for r in records]))
        if offset is None:
            break
    target.flush()
    target.close()
    source.close()


def _index_as_child(copy: Path, fresh: Path, parent: int) -> None:
    # A killed server must not leave a child behind that writes to files of the next server.
    ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL)
    if os.getppid() != parent:
        return
    os.nice(10)
    index_shard(copy, fresh)
    os.sync()  # the original is deleted once the copy has replaced it


if __name__ == "__main__":
    _index_as_child(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
