"""The store of a run: where it answers, and who starts it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from jobs.config import RunConfig
from refbert.errors import InputError
from vector_store.config import EMBEDDED, StoreConfig
from vector_store.schema import Manifest
from vector_store.server.process import embedded_server

CLUSTER_STORE = "REFBERT_STORE_URL"
"""Where a cluster serves the store that its jobs call embedded."""

PATIENCE_MS = 30_000.0
"""Training looks up ahead of the step, so it can wait for a slow store; a server has to degrade."""


@dataclass(frozen=True)
class MemoryAddress:
    """Where a running memory answers, and the manifest that its writer and its readers must share."""

    url: str
    manifest: Manifest


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


def patient_store(store: StoreConfig) -> StoreConfig:
    """Return the store's options with the patience of a job that nobody waits for."""
    return store.model_copy(update={"lookup_deadline_ms": PATIENCE_MS})
