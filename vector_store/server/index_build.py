"""Build a collection's HNSW index beside the live shard and swap it in, while the server goes on answering.

The engine's `optimize` keeps the GIL from start to end (16 s for 28,000 vectors of 384 on 2 cores): inside the server
it would silence every call. So a process of its own, this module run as a program, indexes a copy of the shard. What is
written meanwhile is kept and repeated on the copy before it takes the shard's place; where that is too much, the copy
is dropped, and building starts over once writes have paused. Until then searches scan, slower and never wrong.
Collections without an HNSW index are left alone: for a sparse index `optimize` has nothing to do (measured).
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
from vector_store.server.refusal import Refusal
from vector_store.server.translate import engine_config

log = logging.getLogger(__name__)

LOOK_S = 1.0
POLL_S = 0.05

ROOM_COPIES = 3
"""Free space a build wants, in sizes of the shard: the copy, its segments rewritten, and the index."""

_SIGNAL_AT_PARENTS_DEATH = 1


def keep_indexed(catalogue: Catalogue, stopping: threading.Event) -> None:
    """Build what is due, one collection at a time, until told to stop."""
    while not stopping.wait(LOOK_S):
        for name in catalogue.names():
            try:
                collection = catalogue.find(name)
            except Refusal:  # deleted meanwhile
                continue
            try:
                if collection.index_wish.is_time(collection.wants_index(), collection.wrote_at):
                    build_index(collection, stopping)
            except (Refusal, OSError) as error:
                if not collection.dropped.is_set():
                    log.warning("index of %s not built: %s", name, error)
                    collection.index_wish.failed(str(error))


def build_index(collection: Collection, stopping: threading.Event) -> bool:
    """Index a copy and put it in the live shard's place; False where too many writes or an end came first."""
    wish, started = collection.index_wish, time.monotonic()
    number = int(collection.shard_directory.name.removeprefix("shard-")) + 1
    copy = collection.directory / f"shard-{number}"
    with collection.copying:
        if collection.dropped.is_set():
            return False
        wanted_bytes = MARGIN_BYTES + ROOM_COPIES * folder_bytes(collection.shard_directory)
        require_room(collection.directory, wanted_bytes, "building an index")
        wish.is_building = True
        try:
            collection.copy_shard(copy, keep_writes=True)
            is_built = _index_apart(collection, copy, stopping) and collection.swap_shard(copy)
        finally:
            wish.is_building = False
            collection.forget_writes()
            if collection.shard_directory != copy:
                shutil.rmtree(copy, ignore_errors=True)
    if is_built:
        wish.succeeded()
        log.info("indexed %s in %.1f s", collection.name, time.monotonic() - started)
    else:
        wish.failed()
    return is_built


def _index_apart(collection: Collection, copy: Path, stopping: threading.Event) -> bool:
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
    # A killed server must not leave a builder behind that writes where the next one works.
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
    os.sync()  # the original is removed once the copy is in its place


if __name__ == "__main__":
    _index(Path(sys.argv[1]), int(sys.argv[2]))
