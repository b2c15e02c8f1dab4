"""The store of a run: where it answers, and who starts it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from jobs.config import RunConfig
from refbert.errors import InputError
from vector_store.client import connect
from vector_store.config import EMBEDDED, StoreConfig
from vector_store.schema import Manifest
from vector_store.server.process import embedded_server
from vector_store.store import pinned

CLUSTER_STORE = "REFBERT_STORE_URL"
"""Where a cluster serves the store that its jobs call embedded."""

PATIENCE_MS = 30_000.0
"""Training looks up ahead of the step, so it can wait for a slow store; a server has to degrade."""


@dataclass(frozen=True)
class MemoryAddress:
    """Where a running memory answers, and the manifest that its writer and its readers must share.

    `collection` is what the options' name stood for when the job began: all its processes read this one, whatever an alias
    names later. None: as the options name it.
    """

    url: str
    manifest: Manifest
    collection: str | None = None

    def of(self, store: StoreConfig) -> StoreConfig:
        """Return the store's options with this memory's own collection."""
        return store.model_copy(update={"collection": self.collection}) if self.collection else store


@contextmanager
def running_store(config: RunConfig) -> Iterator[str]:
    """Yield the URL of the run's store; an embedded one is started, or found running, and lives until its last user ends.

    On a cluster that serves one (`python -m cluster`), that is the embedded store of its jobs.
    """
    if (url := os.environ.get(CLUSTER_STORE)) and config.store.url == EMBEDDED:
        yield url
        return
    if config.store.url != EMBEDDED:
        yield config.store.url
        return
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(machines) > 1:
        raise InputError(
            f"store.url=embedded serves one machine, and this Ray cluster has {len(machines)}; serve its directory to "
            "all with `python -m vector_store serve PATH --host ADDRESS --port 6334` and set store.url=http://ADDRESS:6334, or "
            "name a Qdrant server"
        )
    with embedded_server(config.store_directory, message_bytes=config.store.message_bytes) as url:
        yield url


def at_one_version(config: RunConfig, url: str, patience_s: float | None = None) -> RunConfig:
    """Return the run with the collection that its alias names now, for all of a job's processes.

    StoreUnavailable after `patience_s`, by default store.write_deadline_s.
    """
    patient = config.store.model_copy(update={"write_deadline_s": patience_s or config.store.write_deadline_s})
    with connect(config.store, url) as client:
        collection = pinned(client, patient).collection
    return config.model_copy(update={"store": config.store.model_copy(update={"collection": collection})})


def patient_store(store: StoreConfig) -> StoreConfig:
    """Return the store's options with the patience of a job that nobody waits for."""
    return store.model_copy(update={"lookup_deadline_ms": PATIENCE_MS})
