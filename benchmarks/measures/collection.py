"""Collections on an embedded server in a process of its own: fill one, wait for its index and for the server's end."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vector_store.client import Client, connect
from vector_store.config import StoreConfig
from vector_store.protocol import api
from vector_store.schema import Manifest, Point
from vector_store.server.process import embedded_server
from vector_store.store import Store

PATIENT_MS = 600_000.0
"""A look-up that is measured never degrades."""

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
    """Write all points into a new collection as ingest does, and wait until the server has nothing left to index."""
    store = Store(client, config)
    store.ensure(manifest)
    started_s = time.monotonic()
    with store.bulk_load():
        with store.writer() as writer:
            for point in points:
                writer.submit([point])
            written, rejected = writer.finish()
        loaded_s = time.monotonic()
    if rejected or store.count() != written:
        raise RuntimeError(
            f"{config.collection}: of {written} points written {store.count()} are held, {len(rejected)} rejected"
        )
    request = api.GetCollectionInfoRequest(collection_name=config.collection)
    info = client.call(client.collections.Get, request, config.write_deadline_s).result
    if info.status != api.CollectionStatus.Green:
        raise RuntimeError(f"{config.collection} is still being indexed after {config.index_deadline_s:g} s")
    return Filled(
        points=written,
        points_per_s=written / (loaded_s - started_s),
        index_s=time.monotonic() - loaded_s,
        indexed_vectors=info.indexed_vectors_count,
        segments=info.segments_count,
    )


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


def process_cpu_s(pid: int) -> float:
    """Processor time that a process has used; the kernel counts in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
