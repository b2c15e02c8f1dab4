"""Collections on disk: each a directory with its settings (JSON) and one engine shard.

    <root>/collections/<name>/settings.json    the CreateCollection message with its metadata, and which shard is live
    <root>/collections/<name>/shard-N/         the engine's segments and write-ahead log
    <root>/aliases.json                        aliases of collections

A collection is built under a draft's name and renamed, so it exists completely or not at all. The engine itself keeps no
catalogue, metadata or settings. Knows nothing of the network; the caller ensures that one process opens the root.
"""

import contextlib
import functools
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from qdrant_client import grpc as api
from qdrant_edge import EdgeShard, UpdateOperation

from vector_store.atomic import write_whole
from vector_store.server.aliases import Aliases
from vector_store.server.files import (
    DELETING_BYTES,
    MARGIN_BYTES,
    OPENING_BYTES,
    copy_file,
    folder_bytes,
    free_bytes,
    require_room,
)
from vector_store.server.index_schedule import IndexSchedule
from vector_store.server.status import CollectionNotFoundError, StatusError, already_exists, invalid
from vector_store.server.translate import (
    VectorKinds,
    check_shards,
    engine_config,
    indexed_point_bytes,
    indexing_kb,
    vector_kinds,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

KEPT_BYTES = 256 * 2**20
"""Most bytes of writes that are kept for the copy of the shard that is being indexed."""

LAST_WRITES = 16
"""Most writes that are left to repeat during the swap, while other writes wait."""

INDEX_GROWTH = 0.2
"""An index is rebuilt once the points without it are this share of those in it: each build copies the whole shard."""

ROOMY_BYTES = 2**32
"""With this much free space the size of a write is not counted: counting takes a tenth of the time of writing."""

WRITTEN_COPIES = 3
"""Copies of a write on the disk: in the log, in a segment and, during an index build, in the copy of the shard."""


class Collection:
    """One open shard and its settings. Every call into the engine goes through `read` or `write`.

    The engine never releases the GIL (measured), so calls do not overlap anyway. The lock prevents a close between them, and
    stays correct if the engine releases the GIL one day.
    """

    def __init__(self, directory: Path) -> None:
        stored = json.loads((directory / "settings.json").read_text(encoding="utf-8"))
        self.directory = directory
        self.settings = json_format.ParseDict(stored["collection"], api.CreateCollection())
        self.kinds: VectorKinds = vector_kinds(self.settings)
        self.indexed_points: int = stored["indexed_points"]
        self.index_schedule = IndexSchedule()
        self.shard_directory = directory / stored["shard"]
        self.num_writes = 0
        self.wrote_at = time.monotonic()
        self.dropped = threading.Event()
        self.copying = threading.Lock()  # held while the directory has anything but the shard
        self._flushed_writes = -1  # what the start replays needs a flush, too
        self._unflushed_bytes = OPENING_BYTES  # not counted with ROOMY_BYTES free; assume the worst once there is less
        self._kept: list[UpdateOperation] | None = None  # written since the copy was made
        self._kept_bytes = 0
        self._is_open = True
        self._writing = threading.Lock()  # held to change the shard's files, or to copy them; taken before _lock
        self._lock = threading.Lock()
        for leftover in set(directory.glob("shard-*")) - {self.shard_directory}:
            shutil.rmtree(leftover)
        replayed_bytes = OPENING_BYTES + log_bytes([self.shard_directory / "wal"])
        require_room(directory, replayed_bytes, f"opening collection {self.name!r}")
        self._shard = EdgeShard.load(str(self.shard_directory))

    @property
    def name(self) -> str:
        """The name that the collection was created with."""
        return self.settings.collection_name

    def read(self, ask: Callable[[EdgeShard], T]) -> T:
        """Call `ask` with the shard; the engine's errors become StatusError."""
        with self._lock:
            self._require_open()
            return _in_engine(lambda: ask(self._shard))

    def write(self, operation: UpdateOperation, request: Message) -> int:
        """Apply and log one operation, and return its number. From then on it survives a kill of this process.

        `request` is the call's message, of the operation's size; StatusError where the disk has no room for it.
        """
        with self._writing:
            self._make_room(request)
            with self._lock:
                self._require_open()
                _in_engine(lambda: self._shard.update(operation))
                self.num_writes += 1
                self.wrote_at = time.monotonic()
                if self._kept is not None:
                    self._keep(operation, request.ByteSize())
                return self.num_writes

    def update(self, request: api.UpdateCollection) -> None:
        """Merge metadata and options of the index; an index that is wanted now is built at once."""
        with self._lock:
            self._require_open()
            changed = api.CreateCollection()
            changed.CopyFrom(self.settings)
            for key, value in request.metadata.items():
                changed.metadata[key].CopyFrom(value)
            changed.optimizers_config.MergeFrom(request.optimizers_config)
            changed.hnsw_config.MergeFrom(request.hnsw_config)
            engine_config(changed)  # raises for what the engine does not support
            # With other HNSW options the whole index is rebuilt.
            indexed_points = self.indexed_points if changed.hnsw_config == self.settings.hnsw_config else 0
            is_wanted = indexing_kb(changed) != indexing_kb(self.settings) or indexed_points != self.indexed_points
            write_settings(self.directory, changed, self.shard_directory.name, indexed_points)
            self.settings, self.indexed_points = changed, indexed_points
        if is_wanted:
            self.index_schedule.hurry()

    def wants_index(self) -> bool:
        """Whether the vectors without an index take more than indexing_threshold and than INDEX_GROWTH of the indexed ones."""
        point_bytes, threshold_kb = indexed_point_bytes(self.settings), indexing_kb(self.settings)
        if not point_bytes or not threshold_kb:
            return False
        unindexed = self.read(EdgeShard.info).points_count - self.indexed_points
        return unindexed * point_bytes > threshold_kb * 1024 and unindexed > INDEX_GROWTH * self.indexed_points

    def copy_shard(self, copy: Path, keep_writes: bool = False) -> int:
        """Copy the shard's files, and return the number of the last write in them. Reads go on, writes wait.

        With `keep_writes`, the writes from then on are kept for `swap_shard`.
        """
        with self._writing:
            self._require_open()
            self._flush()
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(self.shard_directory, copy, copy_function=copy_file)
            if keep_writes:
                self._kept, self._kept_bytes = [], 0
            return self.num_writes

    @property
    def keeps_writes(self) -> bool:
        """Whether a copy can still catch up: False after more than KEPT_BYTES of writes."""
        return self._kept is not None

    def forget_writes(self) -> None:
        """Drop the kept writes: no copy needs them any more."""
        with self._lock:
            self._kept = None

    def swap_shard(self, copy: Path) -> bool:
        """Repeat the kept writes on the copy and serve it; False, with no change, where it cannot catch up."""
        fresh = EdgeShard.load(str(copy))
        try:
            while self._catch_up(fresh) > LAST_WRITES:
                pass
            _in_engine(fresh.flush)
            with self._writing:
                self._catch_up(fresh)
                with self._lock:
                    if not self._is_open or self._kept is None:
                        return False
                    num_points = fresh.info().points_count
                    write_settings(self.directory, self.settings, copy.name, num_points)
                    stale, stale_directory = self._shard, self.shard_directory
                    self._shard, self.shard_directory, self.indexed_points = fresh, copy, num_points
                    self._kept = None
                    fresh = stale
        finally:
            fresh.close()
        shutil.rmtree(stale_directory)
        return True

    def flush(self) -> None:
        """Move the writes since the last flush from the log into the segments; skipped while a write or copy is running."""
        if self.num_writes == self._flushed_writes or not self._writing.acquire(blocking=False):
            return
        try:
            require_room(self.directory, OPENING_BYTES, "a flush")
            self._flush()
        finally:
            self._writing.release()

    def close(self) -> None:
        """Flush and close the files; later calls fail."""
        with self._writing, self._lock:
            self._is_open = False
            try:
                require_room(self.directory, OPENING_BYTES, "a flush")
                _in_engine(self._shard.flush)
            except StatusError as error:  # nothing is lost: the log has every write
                log.warning("%s closed without a flush: %s", self.name, error)
            self._shard.close()

    def drop(self) -> None:
        """Close the files without a flush; they are about to be deleted."""
        self.dropped.set()
        with self.copying, self._writing, self._lock:
            self._is_open = False
            self._shard.close()

    def _make_room(self, request: Message) -> None:
        if free_bytes(self.directory) >= ROOMY_BYTES:
            return
        num_bytes = request.ByteSize()
        # Space for the next start, which writes again what is in the logs, except deletions.
        margin = MARGIN_BYTES + log_bytes(self.directory.parent.glob("*/*/wal"))
        if isinstance(request, api.DeletePoints | api.DeleteFieldIndexCollection):
            margin = DELETING_BYTES
        require_room(self.directory, margin + WRITTEN_COPIES * num_bytes, "this write")
        # After a flush the engine drops the log's files that it has moved into segments.
        if self._unflushed_bytes + num_bytes > OPENING_BYTES:
            self._flush()
        self._unflushed_bytes += num_bytes

    def _flush(self) -> None:
        with self._lock:
            if self._is_open:
                writes = self.num_writes
                _in_engine(self._shard.flush)
                self._flushed_writes, self._unflushed_bytes = writes, 0

    def _require_open(self) -> None:
        if not self._is_open:
            raise CollectionNotFoundError(self.name)

    def _keep(self, operation: UpdateOperation, num_bytes: int) -> None:
        assert self._kept is not None
        self._kept.append(operation)
        self._kept_bytes += num_bytes
        if self._kept_bytes > KEPT_BYTES:
            self._kept = None

    def _catch_up(self, copy: EdgeShard) -> int:
        """Repeat the kept writes on the copy, and return their number."""
        with self._lock:
            kept = self._kept or []
            if kept:
                self._kept, self._kept_bytes = [], 0
        for operation in kept:
            _in_engine(functools.partial(copy.update, operation))
        return len(kept)


class Catalogue:
    """All collections under one root directory. One process per root: the caller holds a lock on it."""

    def __init__(self, root: Path) -> None:
        self.aliases = Aliases(root)
        self._folder = root / "collections"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._collections: dict[str, Collection] = {}
        for unfinished in self._folder.glob(".*"):  # the last process ended while it created or deleted these
            shutil.rmtree(unfinished)
        for directory in sorted(self._folder.iterdir()):
            self._collections[unquote(directory.name[1:])] = Collection(directory)

    def names(self) -> list[str]:
        """Sorted names of the collections."""
        with self._lock:
            return sorted(self._collections)

    def __contains__(self, name: str) -> bool:
        return self.aliases.resolve(name) in self._collections

    def find(self, name: str) -> Collection:
        """Collection with this name or alias; CollectionNotFoundError where there is none."""
        try:
            return self._collections[self.aliases.resolve(name)]
        except KeyError:
            raise CollectionNotFoundError(name) from None

    def create(self, settings: api.CreateCollection) -> None:
        """Create an empty collection; StatusError where the name is taken or the settings are not supported."""
        name = settings.collection_name
        check_shards(settings)
        config = engine_config(settings)
        if not name or len(name) > 128 or any(c in '<>:"/\\|?*' or c < " " for c in name):
            raise invalid(f'collection name {name!r} is empty, too long or has one of <>:"/\\|?*')
        with self._lock:
            if name in self._collections:
                raise already_exists(name)
            if name in self.aliases:
                raise invalid(f"Can't create collection with name {name}. Alias with the same name already exists")
            require_room(self._folder, MARGIN_BYTES, "a collection")
            draft = self._folder / f".new-{folder_name(name)}"
            shutil.rmtree(draft, ignore_errors=True)
            (draft / "shard-0").mkdir(parents=True)
            try:
                _in_engine(lambda: EdgeShard.create(str(draft / "shard-0"), config).close())
                write_settings(draft, settings, "shard-0", indexed_points=0)
            except StatusError:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            place = self._folder / folder_name(name)
            os.rename(draft, place)
            self._collections[name] = Collection(place)

    def delete(self, name: str) -> bool:
        """Delete a collection and its aliases; False where there is none."""
        with self._lock:
            if name not in self._collections:
                return False
            self.aliases.forget(name)
            collection = self._collections.pop(name)
            collection.drop()
            deleted = self._folder / f".gone-{folder_name(name)}"
            os.rename(collection.directory, deleted)
            shutil.rmtree(deleted, ignore_errors=True)  # the next start tries again
            return True

    def change_aliases(self, actions: Iterable[api.AliasOperations]) -> None:
        """Apply a list of alias changes, all or none. Calls in progress finish on the collection that they have found."""
        with self._lock:
            self.aliases.change(actions, self._collections.__contains__)

    def flush(self) -> None:
        """Flush every collection."""
        for name in self.names():
            with contextlib.suppress(KeyError):  # deleted since
                self._collections[name].flush()

    def close(self) -> None:
        """Flush and close every collection."""
        with self._lock:
            for collection in self._collections.values():
                collection.close()
            self._collections.clear()


def log_bytes(logs: Iterable[Path]) -> int:
    """Bytes of these write-ahead logs. The engine drops whole files of 32 MiB, so up to two per log remain after a flush."""
    return sum(folder_bytes(log) for log in logs)


def folder_name(name: str) -> str:
    """Name of a collection's folder under `collections`."""
    # The leading letter keeps names such as `.` and `..` apart from the file system's own, and from drafts.
    return "c" + quote(name, safe="")


def write_settings(directory: Path, settings: api.CreateCollection, shard: str, indexed_points: int) -> None:
    """Write the settings.json that `Collection` reads."""
    stored = {"collection": json_format.MessageToDict(settings), "shard": shard, "indexed_points": indexed_points}
    write_whole(directory / "settings.json", json.dumps(stored, indent=2))


def _in_engine(call: Callable[[], T]) -> T:
    # The engine raises bare Exception for bad input and failures alike, and its panics are BaseException.
    try:
        return call()
    except ValueError as error:
        raise invalid(str(error)) from error
    except Exception as error:
        if str(error).startswith("Service "):
            raise StatusError(grpc.StatusCode.INTERNAL, str(error)) from error
        raise invalid(str(error)) from error
