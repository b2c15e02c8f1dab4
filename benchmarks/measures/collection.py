"""Collections on an embedded server in a process of its own: fill one, wait for its index, close the server."""

import itertools
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from qdrant_client import grpc as api

from vector_store.client import Client, connect
from vector_store.config import StoreConfig
from vector_store.schema import Manifest, Point
from vector_store.server.process import embedded_server
from vector_store.store import Store

UPSERT_POINTS = 1000
UPSERTS_IN_FLIGHT = 2
PATIENT_MS = 600_000.0
"""A look-up that is measured never degrades."""

INDEX_S = 3600.0
STEADY_S = 3.0
CLOSING_S = 60.0


class Filled(NamedTuple):
    """How a collection came to be. `indexed_vectors` counts sparse ones too, which always are: twice the points is all."""

    points: int
    points_per_s: float
    index_s: float
    indexed_vectors: int
    segments: int

    @property
    def has_hnsw(self) -> bool:
        """Whether nearly all dense vectors are in an HNSW graph."""
        return self.indexed_vectors >= 1.9 * self.points


def store_config(url: str, collection: str) -> StoreConfig:
    """A patient reader's options, without a cache: every look-up is a live one."""
    return StoreConfig(url=url, collection=collection, lookup_deadline_ms=PATIENT_MS, cache_bytes=1)


@contextmanager
def opened(folder: Path, collection: str) -> Iterator[tuple[Client, StoreConfig]]:
    """A client of the folder's server, which is started where none runs."""
    with embedded_server(folder) as url:
        config = store_config(url, collection)
        with connect(config, url) as client:
            yield client, config


def fill(client: Client, config: StoreConfig, manifest: Manifest, points: Iterable[Point]) -> Filled:
    """Write all points into a new collection and wait until the server has nothing left to index."""
    store = Store(client, config)
    store.ensure(manifest)
    started_s = time.monotonic()
    written = 0
    remaining = iter(points)
    with ThreadPoolExecutor(UPSERTS_IN_FLIGHT) as executor:
        ahead: deque[Future[int]] = deque()
        while chunk := list(itertools.islice(remaining, UPSERT_POINTS)):
            ahead.append(executor.submit(store.upsert, chunk))
            if len(ahead) > UPSERTS_IN_FLIGHT:
                written += ahead.popleft().result()
        written += sum(future.result() for future in ahead)
    loaded_s = time.monotonic()
    if (found := store.count()) != written:
        raise RuntimeError(
            f"{config.collection} holds {found} points of {written} written: the figures would be of another size"
        )
    info = settled(client, config)
    return Filled(
        points=written,
        points_per_s=written / (loaded_s - started_s),
        index_s=time.monotonic() - loaded_s,
        indexed_vectors=info.indexed_vectors_count,
        segments=info.segments_count,
    )


def settled(client: Client, config: StoreConfig) -> api.CollectionInfo:
    """The collection's state once the server has called it green for a while."""
    request = api.GetCollectionInfoRequest(collection_name=config.collection)
    green_since: float | None = None
    deadline = time.monotonic() + INDEX_S
    while time.monotonic() < deadline:
        info = client.call(client.collections.Get, request, 60.0).result
        if info.status != api.CollectionStatus.Green:
            green_since = None
        elif green_since is None:
            green_since = time.monotonic()
        elif time.monotonic() - green_since > STEADY_S:
            return info
        time.sleep(0.5)
    raise RuntimeError(f"{config.collection} is not green after {INDEX_S:g} s; see the server's log beside it")


def server_pid(folder: Path) -> int:
    """The process that serves the folder, or served it last."""
    return json.loads((folder / "address.json").read_text())["pid"]


def wait_closed(folder: Path) -> None:
    """Wait until the folder's server, which nobody uses any more, has flushed and ended: its files may then be copied."""
    pid = server_pid(folder)
    deadline = time.monotonic() + CLOSING_S
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server of {folder} (process {pid}) does not end; see its server.log")
        time.sleep(0.1)
