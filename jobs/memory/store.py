"""The store of a run: where it answers, who starts it, and which memory the run was begun with."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from jobs.config import RunConfig
from refbert.atomic import write_whole
from refbert.errors import InputError
from vector_store.client import connect
from vector_store.config import EMBEDDED, StoreConfig
from vector_store.schema import Manifest
from vector_store.server.process import embedded_server
from vector_store.store import Store, pinned

log = logging.getLogger(__name__)

CLUSTER_STORE = "REFBERT_STORE_URL"
"""Where a cluster serves the store that its jobs call embedded."""

MEMORY = "memory.json"
"""In a run's directory: the collection that its student reads in training, and what tells it from any other."""

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
    store = config.store
    with embedded_server(config.store_directory, message_bytes=store.message_bytes, rest_port=store.rest_port) as url:
        yield url


def at_one_version(config: RunConfig, url: str, patience_s: float | None = None) -> RunConfig:
    """Return the run with the collection that its alias names now, for all of a job's processes.

    StoreUnavailable after `patience_s`, by default store.write_deadline_s.
    """
    patient = config.store.model_copy(update={"write_deadline_s": patience_s or config.store.write_deadline_s})
    with connect(config.store, url) as client:
        collection = pinned(client, patient).collection
    return config.model_copy(update={"store": config.store.model_copy(update={"collection": collection})})


def begun_memory(config: RunConfig, url: str) -> RunConfig:
    """Return the run with the collection that its training was begun with, whatever an alias names now.

    Raises InputError where that one is gone, or another has its name: a student is not trained half on one and half on another.
    """
    path = config.run_directory / MEMORY
    if not path.exists():
        return config
    held = json.loads(path.read_text(encoding="utf-8"))
    begun = config.store.model_copy(update={"collection": held["collection"]})
    with connect(config.store, url) as client:
        named = pinned(client, config.store).collection
        memory = Store(client, begun)
        is_there = memory.exists()
        identities = {held["identity"], memory.identity() if is_there else None} - {None}  # None: an earlier release's
        if not is_there or len(identities) > 1:
            what = "another collection has that name" if is_there else "it is gone"
            raise InputError(
                f"{config.run_directory} was begun with collection {held['collection']!r}, and at {url} {what}; bring that "
                f"memory back, give another name=..., or delete {path} to go on with the one that is there"
            )
    if named != held["collection"]:
        log.info("going on with collection %r: %r names %r by now", held["collection"], config.store.collection, named)
    return config.model_copy(update={"store": begun})


def remember_memory(config: RunConfig, address: MemoryAddress) -> None:
    """Note in the run's directory which memory its training reads."""
    store = address.of(config.store)
    with connect(config.store, address.url) as client:
        held = {"collection": store.collection, "identity": Store(client, store).identity()}
    config.run_directory.mkdir(parents=True, exist_ok=True)
    write_whole(config.run_directory / MEMORY, json.dumps(held, indent=2) + "\n")


def patient_store(store: StoreConfig) -> StoreConfig:
    """Return the store's options with the patience of a job that nobody waits for."""
    return store.model_copy(update={"lookup_deadline_ms": PATIENCE_MS})
