"""Collections on disk: each a directory with its settings (JSON) and one engine shard.

    <root>/collections/<name>/settings.json    the CreateCollection message with its metadata, and which shard is live
    <root>/collections/<name>/shard-N/         segments and write-ahead log, the engine's own
    <root>/aliases.json                        other names of collections

A collection is built beside its place and renamed into it, so it exists completely or not at all. The engine has no
catalogue, metadata or settings of its own. Knows nothing of the network; who may open the root is the caller's concern.
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

from vector_store.server.aliases import Aliases
from vector_store.server.files import (
    DELETING_BYTES,
    MARGIN_BYTES,
    OPENING_BYTES,
    copy_file,
    folder_bytes,
    free_bytes,
    require_room,
    write_json,
)
from vector_store.server.index_wish import IndexWish
from vector_store.server.refusal import MissingCollection, Refusal, already_exists, invalid
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
"""Writes that are kept for a copy of the shard while it is being indexed."""

LAST_WRITES = 16
"""So few writes are left for the moment of the swap, when other writes wait."""

INDEX_GROWTH = 0.2
"""An index is built again once this share of what it holds has come on top: each build copies the whole shard."""

ROOMY_BYTES = 2**32
"""With this much space left nobody counts what a write takes: counting costs a tenth of writing."""

WRITTEN_COPIES = 3
"""A write goes to the log, to a segment and, while an index is built, to its copy."""


class Collection:
    """One open shard and its settings. Every call into the engine goes through `read` or `write`.

    The engine never releases the GIL (measured), so calls do not overlap anyway; the lock keeps a close from coming
    between them and stays right should the engine release the GIL one day.
    """

    def __init__(self, directory: Path) -> None:
        stored = json.loads((directory / "settings.json").read_text(encoding="utf-8"))
        self.directory = directory
        self.settings = json_format.ParseDict(stored["collection"], api.CreateCollection())
        self.kinds: VectorKinds = vector_kinds(self.settings)
        self.indexed_points: int = stored["indexed_points"]
        self.index_wish = IndexWish()
        self.shard_directory = directory / stored["shard"]
        self.num_writes = 0
        self.wrote_at = time.monotonic()
        self.dropped = threading.Event()
        self.copying = threading.Lock()  # held while anything but the shard lives in the directory
        self._flushed_writes = -1  # what the start replays wants a flush, too
        self._unflushed_bytes = OPENING_BYTES  # not counted while the disk is roomy; assume the worst once it is not
        self._kept: list[UpdateOperation] | None = None  # written since the copy was taken
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
        """What the collection was created as."""
        return self.settings.collection_name

    def read(self, ask: Callable[[EdgeShard], T]) -> T:
        """`ask` the shard; the engine's complaints become refusals."""
        with self._lock:
            self._require_open()
            return _in_engine(lambda: ask(self._shard))

    def write(self, operation: UpdateOperation, request: Message) -> int:
        """Apply and log one operation; returns its number. It survives a kill of this process from here on.

        `request` is what asked for it: refused where the disk has no room for it.
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
        """Merge metadata, and the options of the index: what they now ask for is built at once."""
        with self._lock:
            self._require_open()
            changed = api.CreateCollection()
            changed.CopyFrom(self.settings)
            for key, value in request.metadata.items():
                changed.metadata[key].CopyFrom(value)
            changed.optimizers_config.MergeFrom(request.optimizers_config)
            changed.hnsw_config.MergeFrom(request.hnsw_config)
            engine_config(changed)  # refuses what it cannot hold
            # The index was built by other options: all of it is due again.
            indexed_points = self.indexed_points if changed.hnsw_config == self.settings.hnsw_config else 0
            is_wanted = indexing_kb(changed) != indexing_kb(self.settings) or indexed_points != self.indexed_points
            write_settings(self.directory, changed, self.shard_directory.name, indexed_points)
            self.settings, self.indexed_points = changed, indexed_points
        if is_wanted:
            self.index_wish.hurry()

    def wants_index(self) -> bool:
        """Whether the vectors without an index take more than indexing_threshold, and a fifth of the indexed ones."""
        point_bytes, threshold_kb = indexed_point_bytes(self.settings), indexing_kb(self.settings)
        if not point_bytes or not threshold_kb:
            return False
        unindexed = self.read(EdgeShard.info).points_count - self.indexed_points
        return unindexed * point_bytes > threshold_kb * 1024 and unindexed > INDEX_GROWTH * self.indexed_points

    def copy_shard(self, copy: Path, keep_writes: bool = False) -> int:
        """Copy the shard's files; returns the number of the last write they have. Reads go on, writes wait.

        `keep_writes` remembers what is written from here on for `swap_shard`.
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
        """Whether a copy can still catch up: not after too many writes for it."""
        return self._kept is not None

    def forget_writes(self) -> None:
        """There is no copy any more that would catch up."""
        with self._lock:
            self._kept = None

    def swap_shard(self, copy: Path) -> bool:
        """Repeat on the copy what was written since, and serve it instead; False, and no change, where it cannot."""
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
        """Move what was written since the last flush from the log into the segments, unless a write or copy is busy."""
        if self.num_writes == self._flushed_writes or not self._writing.acquire(blocking=False):
            return
        try:
            require_room(self.directory, OPENING_BYTES, "a flush")
            self._flush()
        finally:
            self._writing.release()

    def close(self) -> None:
        """Flush and let go of the files; later calls are refused."""
        with self._writing, self._lock:
            self._is_open = False
            try:
                require_room(self.directory, OPENING_BYTES, "a flush")
                _in_engine(self._shard.flush)
            except Refusal as error:  # the log has it all
                log.warning("%s closed without a flush: %s", self.name, error)
            self._shard.close()

    def drop(self) -> None:
        """Let go of the files, which are about to be removed."""
        self.dropped.set()
        with self.copying, self._writing, self._lock:
            self._is_open = False
            self._shard.close()

    def _make_room(self, request: Message) -> None:
        if free_bytes(self.directory) >= ROOMY_BYTES:
            return
        num_bytes = request.ByteSize()
        # Room for the next start, which writes what is in the logs once more, deletions apart.
        margin = MARGIN_BYTES + log_bytes(self.directory.parent.glob("*/*/wal"))
        if isinstance(request, api.DeletePoints | api.DeleteFieldIndexCollection):
            margin = DELETING_BYTES
        require_room(self.directory, margin + WRITTEN_COPIES * num_bytes, "this write")
        # A flush lets the engine drop what it has moved out of the log.
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
            raise MissingCollection(self.name)

    def _keep(self, operation: UpdateOperation, num_bytes: int) -> None:
        assert self._kept is not None
        self._kept.append(operation)
        self._kept_bytes += num_bytes
        if self._kept_bytes > KEPT_BYTES:
            self._kept = None

    def _catch_up(self, copy: EdgeShard) -> int:
        """Repeat the kept writes on the copy; returns how many there were."""
        with self._lock:
            kept = self._kept or []
            if kept:
                self._kept, self._kept_bytes = [], 0
        for operation in kept:
            _in_engine(functools.partial(copy.update, operation))
        return len(kept)


class Catalogue:
    """All collections under one root directory. One process per root: the caller holds the lock on it."""

    def __init__(self, root: Path) -> None:
        self.aliases = Aliases(root)
        self._folder = root / "collections"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._collections: dict[str, Collection] = {}
        for draft in self._folder.glob(".*"):  # half made or half deleted when the process ended
            shutil.rmtree(draft)
        for directory in sorted(self._folder.iterdir()):
            self._collections[unquote(directory.name[1:])] = Collection(directory)

    def names(self) -> list[str]:
        """Sorted names of the collections."""
        with self._lock:
            return sorted(self._collections)

    def __contains__(self, name: str) -> bool:
        return self.aliases.resolve(name) in self._collections

    def find(self, name: str) -> Collection:
        """The collection of this name or alias."""
        try:
            return self._collections[self.aliases.resolve(name)]
        except KeyError:
            raise MissingCollection(name) from None

    def create(self, settings: api.CreateCollection) -> None:
        """Make an empty collection; the name must be free."""
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
            except Refusal:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            place = self._folder / folder_name(name)
            os.rename(draft, place)
            self._collections[name] = Collection(place)

    def delete(self, name: str) -> bool:
        """Close and remove a collection and its aliases; False where there is none."""
        with self._lock:
            if name not in self._collections:
                return False
            self.aliases.forget(name)
            collection = self._collections.pop(name)
            collection.drop()
            grave = self._folder / f".gone-{folder_name(name)}"
            os.rename(collection.directory, grave)
            shutil.rmtree(grave, ignore_errors=True)  # the next start tries again
            return True

    def change_aliases(self, actions: Iterable[api.AliasOperations]) -> None:
        """Apply a list of alias changes, all or none. Calls under way finish on the collection they have found."""
        with self._lock:
            self.aliases.change(actions, self._collections.__contains__)

    def flush(self) -> None:
        """Flush every collection."""
        for name in self.names():
            with contextlib.suppress(KeyError):  # deleted meanwhile
                self._collections[name].flush()

    def close(self) -> None:
        """Flush and close every collection."""
        with self._lock:
            for collection in self._collections.values():
                collection.close()
            self._collections.clear()


def log_bytes(logs: Iterable[Path]) -> int:
    """What these write-ahead logs take; the engine drops a log's files of 32 MiB whole, so a flush leaves up to two."""
    return sum(folder_bytes(log) for log in logs)


def folder_name(name: str) -> str:
    """A collection's folder under `collections`."""
    # The leading letter keeps names like `.` and `..` apart from the file system's own and from drafts.
    return "c" + quote(name, safe="")


def write_settings(directory: Path, settings: api.CreateCollection, shard: str, indexed_points: int) -> None:
    """Write what `Collection` reads."""
    stored = {"collection": json_format.MessageToDict(settings), "shard": shard, "indexed_points": indexed_points}
    write_json(directory / "settings.json", stored)


def _in_engine(call: Callable[[], T]) -> T:
    # The engine raises bare Exception for bad input and failures alike, and its panics are BaseException.
    try:
        return call()
    except ValueError as error:
        raise invalid(str(error)) from error
    except Exception as error:
        if str(error).startswith("Service "):
            raise Refusal(grpc.StatusCode.INTERNAL, str(error)) from error
        raise invalid(str(error)) from error
