"""Build a collection's HNSW index beside the live shard and swap it in, while the server goes on answering.

The engine's `optimize` keeps the GIL from start to end (16 s for 28,000 vectors of 384 on 2 cores): inside the server
it would silence every call. So a process of its own indexes a copy of the shard. A write that comes meanwhile wins: the
copy is dropped, and building starts over once writes have paused. Until then searches scan, slower and never wrong.
Collections without an HNSW index are left alone: for a sparse index `optimize` has nothing to do (measured).
"""

import logging
import shutil
import subprocess
import sys
import threading
import time

from qdrant_edge import EdgeShard

from vector_store.server.catalogue import Catalogue, Collection
from vector_store.server.refusal import Refusal

log = logging.getLogger(__name__)

LOOK_S = 5.0
QUIET_S = 10.0
"""Writes pause this long before a build starts."""

SMALLEST_POINTS = 10_000
"""Below, a scan is as fast as an index."""

GROWTH = 1.2
"""A collection is indexed again when it has grown by this factor."""

_BUILD = """
import os, sys, qdrant_edge
os.nice(10)
shard = qdrant_edge.EdgeShard.load(sys.argv[1])
shard.optimize()
shard.flush()
shard.close()
"""


def keep_indexed(catalogue: Catalogue, stopping: threading.Event) -> None:
    """Build what is due, one collection at a time, until told to stop."""
    while not stopping.wait(LOOK_S):
        for name in catalogue.names():
            try:
                collection = catalogue.find(name)
                if _is_due(collection):
                    build_index(collection, stopping)
            except (Refusal, OSError) as error:  # deleted meanwhile, or the disk is full
                log.warning("index of %s not built: %s", name, error)


def build_index(collection: Collection, stopping: threading.Event) -> bool:
    """Index a copy and put it in the live shard's place; False where a write or the server's end came first."""
    started = time.monotonic()
    copy, num_writes = collection.copy_shard()
    try:
        child = subprocess.Popen([sys.executable, "-c", _BUILD, str(copy)], stdin=subprocess.DEVNULL)
        while child.poll() is None:
            if stopping.wait(0.2) or collection.num_writes != num_writes:
                child.kill()
        if child.wait() != 0 or not collection.swap_shard(copy, num_writes):
            return False
    finally:
        if collection.shard_directory != copy:
            shutil.rmtree(copy, ignore_errors=True)
    log.info("indexed %s in %.1f s", collection.settings.collection_name, time.monotonic() - started)
    return True


def _is_due(collection: Collection) -> bool:
    if not collection.has_index or time.monotonic() - collection.wrote_at < QUIET_S:
        return False
    num_points = collection.read(EdgeShard.info).points_count
    return num_points >= max(SMALLEST_POINTS, GROWTH * collection.indexed_points)
