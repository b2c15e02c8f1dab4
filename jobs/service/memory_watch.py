"""The connection of a served student to its memory, and the state of that memory.

A thread checks the memory every serve.memory_check_s seconds. A memory that is away, or another teacher's, costs quality at
most, never an answer: until it is back, texts read cached references, this process's copy (serve.replica_rows) or the null
reference. An adapted student follows its memory to a new version. An embedded server that has ended is started again.
"""

import contextlib
import copy
import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jobs.config import RunConfig
from jobs.memory.student_memory import reads_memory
from jobs.service.metrics import MemoryState, StudentMetrics
from refbert.config import ReferenceConfig
from refbert.errors import InputError
from refbert.memory.manifest import trained_manifest
from refbert.memory.opening import beside_version, mixing_of, open_look_up, reading_of
from refbert.memory.reader import Reader
from refbert.memory.replica import Replica
from refbert.memory.version import MemoryVersion, current_name, current_version
from refbert.passages import Text
from refbert.teacher import Tokens
from vector_store.client import Client, connect
from vector_store.config import EMBEDDED, StoreConfig
from vector_store.errors import StoreError, StoreUnavailable
from vector_store.retriever import Retriever
from vector_store.schema import Neighbours
from vector_store.server.process import embedded_server
from vector_store.store import Store

log = logging.getLogger(__name__)

NEAREST = 5
"""Stored texts that an explanation compares a text with."""

NEAREST_CACHE_BYTES = 2**20

RECOPY_S = 60.0
"""A copy of the memory is taken anew at most so often while texts are stored or deleted; for a new version at once."""

RETIREMENT_S = 30.0
"""Seconds from a student's replacement to its end: longer than a batch and its look-up take."""


class MemoryStatus(NamedTuple):
    """State of the memory, and why it is not read."""

    state: MemoryState
    reason: str | None = None


@dataclass(frozen=True)
class Connection:
    """A student at one address of its memory. `wide_reader` finds more texts than the student reads."""

    url: str
    client: Client
    reader: Reader
    wide_reader: Reader
    version: tuple[str, str] | None = None
    """Of a student that is corrected: the collection that the memory's name stood for, and the correction's version."""
    copied: int | None = None
    """References that the memory held when they were copied into this process; None where the store is asked."""
    copied_s: float = 0.0
    """When that was, by the monotonic clock."""

    def is_copy_old(self, num_references: int | None) -> bool:
        """Whether the copy in this process lacks something of a memory that holds so many references to copy now."""
        if self.copied is None or num_references is None:
            return self.copied is not num_references
        source = self.reader.source
        lacks = self.copied != num_references or (isinstance(source, Replica) and source.num_unread > 0)
        return lacks and time.monotonic() - self.copied_s > RECOPY_S


class MemoryWatch:
    """Looks up references for one student, and keeps watching whether its memory can be read.

    Any thread may read; its own thread checks. `close` it when no batch uses it any more.
    """

    def __init__(self, config: RunConfig, folder: Path, student: Reader, metrics: StudentMetrics) -> None:
        self._config, self._folder, self._student, self._metrics = config, folder, student, metrics
        reads = reads_memory(config, folder)
        self._correction = student.correction if reads else None
        self._manifest = (
            trained_manifest(student.model.config.memory, folder) if reads and not self._correction else None
        )
        self._connection: Connection | None = None
        self._server = contextlib.ExitStack()  # the lease on an embedded one
        self._is_lost = False
        self._closed = threading.Event()
        self.status = MemoryStatus("none")
        self.check()
        if self.is_read:
            threading.Thread(target=self._run, name="memory", daemon=True).start()

    @property
    def is_read(self) -> bool:
        """Whether the student reads a memory at all."""
        return self._manifest is not None or self._correction is not None

    @property
    def reader(self) -> Reader:
        """The student beside its memory, or alone while no memory can be read."""
        connection = self._readable()
        return connection.reader if connection else self._student

    @property
    def wide_reader(self) -> Reader | None:
        """A reader that finds more texts than the student reads; None while no memory can be read."""
        connection = self._readable()
        return connection.wide_reader if connection else None

    def look_up(self, texts: Sequence[Text], tokens: Tokens) -> tuple[Reader, Neighbours | None]:
        """Find the texts' references and count their rungs; None where the null reference is read.

        The reader is the one to answer with: what it corrects belongs to the version that was looked up.
        """
        reader = self.reader
        if reader.source is None:
            self._metrics.count_rungs({"null": len(texts)})
            return reader, None
        hits = reader.source.counts.get("cache_hits", 0)
        found = reader.look_up(texts, tokens)
        rungs = Counter(found.rungs if found else ["null"] * len(texts))
        self._metrics.count_rungs(rungs)
        self._metrics.cache_hits.inc(max(0, reader.source.counts.get("cache_hits", 0) - hits))
        if rungs.keys() <= {"live", "own"}:
            if self.status.state == "away":
                self._set("ok")
        elif self.status.state == "ok":
            self._set("away", "look-ups are not answered in time; answers use cached references or none")
        return reader, found

    def check(self) -> None:
        """Check that the memory answers and is the student's own; start an embedded server that has ended.

        A student that is corrected follows its memory to another version, as soon as that is whole.
        """
        if not self.is_read:
            self._set("none")
            return
        deadline_s = min(5.0, self._config.serve.memory_check_s)
        try:
            url = self._served_at()
            store = self._config.store.model_copy(update={"write_deadline_s": deadline_s})
            connection = self._connected(url, store)
            if self._manifest:
                Store(connection.client, store).require(self._manifest)
        except StoreUnavailable as error:
            self._is_lost = True
            self._set("away", str(error))
        except (StoreError, InputError) as error:
            self._set("refused", str(error))
        else:
            self._is_lost = False
            if self.status.state == "away" and isinstance(connection.reader.source, Retriever):
                connection.reader.source.reset_breaker()
            self._set("ok")

    def close(self) -> None:
        """Stop checking, and let an embedded server go."""
        self._closed.set()
        self._server.close()

    def retire(self) -> None:
        """Stop checking now; close when the batches that still use the student must have ended."""
        self._closed.set()
        timer = threading.Timer(RETIREMENT_S, self.close)
        timer.daemon = True
        timer.start()

    def _run(self) -> None:
        while not self._closed.wait(self._config.serve.memory_check_s):
            try:
                self.check()
            except Exception:  # an edge: a thread that ends would leave the replica degraded for good
                log.exception("checking the memory failed")

    def _readable(self) -> Connection | None:
        return None if self.status.state == "refused" else self._connection

    def _set(self, state: MemoryState, reason: str | None = None) -> None:
        if state != self.status.state:
            log.warning(
                "memory of %s: %s -> %s%s", self._config.name, self.status.state, state, f": {reason}" if reason else ""
            )
        self.status = MemoryStatus(state, reason)
        self._metrics.set_memory_state(state)

    def _served_at(self) -> str:
        """Return the memory's address; an embedded server that has ended is started again."""
        url = self._config.store.url
        if url != EMBEDDED:
            return url
        if self._connection and not self._is_lost:
            return self._connection.url
        directory, store = self._config.store_directory, self._config.store
        with contextlib.ExitStack() as lease:  # attaches, or starts the server again
            server = embedded_server(directory, message_bytes=store.message_bytes, rest_port=store.rest_port)
            url = lease.enter_context(server)
            before, self._server = self._server, lease.pop_all()
        before.close()  # not sooner: a server that nobody uses for a moment ends
        return url

    def _connected(self, url: str, store: StoreConfig) -> Connection:
        """Return the connection; a new one where the memory's address is new, or its version."""
        connection = self._connection
        client = connection.client if connection and connection.url == url else connect(self._config.store, url)
        if self._correction is None:
            if connection is None or connection.url != url:
                connection = self._connection = self._beside_memory(url, client)
            return connection
        student = self._correction.student
        name = current_name(client, store, student)
        copied = self._to_copy(client, store.model_copy(update={"collection": name[0]}))
        if connection is None or (connection.url, connection.version) != (url, name) or connection.is_copy_old(copied):
            version = current_version(client, store, student)
            connection = self._connection = self._beside_version(url, client, version, copied)
            log.info(
                "answers of %s are corrected by version %s of %r%s",
                self._config.name,
                version.correction.version,
                version.store.collection,
                "" if copied is None else f", a copy of its {copied:,} references in this process",
            )
        return connection

    def _to_copy(self, client: Client, store: StoreConfig) -> int | None:
        """Return how many references this process is to hold a copy of; None where it is to ask the store."""
        most = self._config.serve.replica_rows
        num_references = Store(client, store).count() if most else 0
        return num_references if 0 < num_references <= most else None

    def _beside_version(self, url: str, client: Client, version: MemoryVersion, copied: int | None) -> Connection:
        found = version._replace(store=self._config.store.model_copy(update={"collection": version.store.collection}))
        small = found.store.model_copy(update={"cache_bytes": NEAREST_CACHE_BYTES})
        wide = found._replace(store=small, references=found.references.model_copy(update={"count": NEAREST}))
        own = self._config.serve.own_answers
        reader, wide_reader = (
            beside_version(self._student, self._folder, client, each, text=True, own_answers=own, replica=replica)
            for each, replica in ((found, copied is not None), (wide, False))
        )
        name = found.store.collection, found.correction.version
        return Connection(url, client, reader, wide_reader, name, copied, time.monotonic())

    def _beside_memory(self, url: str, client: Client) -> Connection:
        manifest = self._manifest
        assert manifest is not None

        def beside(store: StoreConfig, references: ReferenceConfig) -> Reader:
            reader = copy.copy(self._student)  # shares the model and its tokenizer
            reader.texts, reader.source = open_look_up(
                self._folder,
                manifest,
                reader.tokenizer,
                client,
                store,
                references,
                reading_of(reader.model.config, True),
            )
            reader.mixing = mixing_of(reader.model.config)
            return reader

        store, references = self._config.store, self._config.references
        small, wide = {"cache_bytes": NEAREST_CACHE_BYTES}, {"count": NEAREST}
        wide_reader = beside(store.model_copy(update=small), references.model_copy(update=wide))
        return Connection(url, client, beside(store, references), wide_reader)
