"""Build a collection's HNSW index beside the live shard and swap it in, while the server goes on answering.

The engine's `optimize` holds the GIL from start to end (16 s for 28,000 vectors of 384 on 2 cores): inside the server it would
block every call. So a child process, this module run as a program, indexes a copy of the shard. Writes during the build are
kept and repeated on the copy before it replaces the shard. After too many of them the copy is dropped, and the build starts
again once writes have paused. Until there is an index searches scan, which is slower and never wrong.
Collections without an HNSW index are skipped: for a sparse index `optimize` has nothing to do (measured).
"""

import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from google.protobuf import json_format
from qdrant_client import grpc as api
from qdrant_edge import EdgeShard

from vector_store.server.catalogue import Catalogue, Collection
from vector_store.server.files import MARGIN_BYTES, folder_bytes, import_path, require_room
from vector_store.server.status import StatusError
from vector_store.server.translate import engine_config

log = logging.getLogger(__name__)

LOOK_S = 1.0
POLL_S = 0.05

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
                if collection.index_schedule.is_due(collection.wants_index(), collection.wrote_at):
                    build_index(collection, stopping)
            except (StatusError, OSError) as error:
                if not collection.dropped.is_set():
                    log.warning("index of %s not built: %s", name, error)
                    collection.index_schedule.failed(str(error))


def build_index(collection: Collection, stopping: threading.Event) -> bool:
    """Index a copy of the shard and swap it in; False where too many writes, a deletion or `stopping` came first."""
    schedule, started = collection.index_schedule, time.monotonic()
    number = int(collection.shard_directory.name.removeprefix("shard-")) + 1
    copy = collection.directory / f"shard-{number}"
    with collection.copying:
        if collection.dropped.is_set():
            return False
        wanted_bytes = MARGIN_BYTES + ROOM_COPIES * folder_bytes(collection.shard_directory)
        require_room(collection.directory, wanted_bytes, "building an index")
        schedule.is_building = True
        try:
            collection.copy_shard(copy, keep_writes=True)
            is_built = _index_in_child(collection, copy, stopping) and collection.swap_shard(copy)
        finally:
            schedule.is_building = False
            collection.forget_writes()
            if collection.shard_directory != copy:
                shutil.rmtree(copy, ignore_errors=True)
    if is_built:
        schedule.succeeded()
        log.info("indexed %s in %.1f s", collection.name, time.monotonic() - started)
    else:
        schedule.failed()
    return is_built


def _index_in_child(collection: Collection, copy: Path, stopping: threading.Event) -> bool:
    child = subprocess.Popen(
        [sys.executable, "-m", "vector_store.server.index_build", str(copy), str(os.getpid())],
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


def _index(shard_directory: Path, parent: int) -> None:
    # A killed server must not leave a child behind that writes to files of the next server.
    ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL)
    if os.getppid() != parent:
        return
    os.nice(10)
    stored = json.loads((shard_directory.parent / "settings.json").read_text(encoding="utf-8"))
    settings = json_format.ParseDict(stored["collection"], api.CreateCollection())
    shard = EdgeShard.load(str(shard_directory), engine_config(settings))
    shard.optimize()
    shard.flush()
    shard.close()
    os.sync()  # the original is deleted once the copy has replaced it


if __name__ == "__main__":
    _index(Path(sys.argv[1]), int(sys.argv[2]))
