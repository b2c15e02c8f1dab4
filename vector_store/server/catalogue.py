"""Collections on disk: each a directory with its settings (JSON) and one engine shard.

    <root>/collections/c<name>/settings.json       the CreateCollection message with its metadata, and which shard is live
    <root>/collections/c<name>/shard-N/            the engine's segments and write-ahead log
    <root>/collections/c<name>/acknowledged.json   how many points it must hold
    <root>/aliases.json                            aliases of collections

A collection is built under a draft's name and renamed, so it exists completely or not at all. One whose shard cannot be opened,
or whose settings cannot be read, is not served: each call to it names the file and the remedy, nothing of it is removed, and
the others are served. One that lacks points is served with a warning. One whose log has lost files or their ends, and that the
engine still opens, can be read, and written to once its points are in a new shard, after which the old one is removed. A
damaged acknowledged.json is logged and written anew: whether points are missing is not known then.

`Collection` also says when its shard wants an index, or to be written anew, after points were deleted or replaced or the log
was damaged (`wants_index`, `wants_rebuild`), and swaps in the new shard that `index_build` makes. The engine keeps its own
configuration of a shard, no catalogue or metadata. Takes gRPC's messages and raises its status codes, but serves no call; the
caller ensures that one process opens the root.
"""

import contextlib
import functools
import json
import logging
import math
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
from qdrant_edge import EdgeShard, UpdateOperation

from vector_store.atomic import write_whole
from vector_store.errors import MISSING_POINTS
from vector_store.protocol import api
from vector_store.server.acknowledged import Acknowledged, Expected, log_damage, log_files, most_changed, most_rewritten
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
from vector_store.server.index_schedule import QUIET_S, IndexSchedule
from vector_store.server.status import CollectionNotFoundError, DamagedError, StatusError, already_exists, invalid
from vector_store.server.translate import (
    VectorKinds,
    check_shards,
    engine_config,
    indexed_point_bytes,
    indexing_kb,
    vacuum_options,
    vector_kinds,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

DRAFT_FOLDER, _DELETED = ".new-", ".gone-"
"""How the names of folders begin that are being made, and that are being deleted."""

KEPT_BYTES = 256 * 2**20
"""Most bytes of writes that are kept for the copy of the shard that is being indexed."""

REMEDY = "put back a copy of that file, or delete the collection and restore a snapshot or ingest again"
"""What a user can do about a damaged file."""

LAST_WRITES = 16
"""Most writes that are left to repeat during the swap, while other writes wait."""

INDEX_GROWTH = 0.2
"""An index is rebuilt once the points without it are this share of those in it: each build copies the whole shard."""

FORGET_S = 600.0
"""A deleted or replaced text leaves the disk after so long and the pause of writes that a build waits for, at the latest;
later only where copying the shard takes long (REBUILD_PAUSE)."""

REBUILD_PAUSE, QUIET_PAUSE = 20, 2
"""Between two rebuilds is so many times the time that one takes: while writes go on, so that rebuilds take a twentieth of the
machine at most, and once there have been none for QUIET_S."""

LOG_ROOM_BYTES = 2**22
"""A log of this size is left as it is, however small the shard."""

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
        """Open the shard. DamagedError where a file of it is damaged, another StatusError where the disk has no room."""
        self.directory = directory
        self.settings, self.shard_directory, self.indexed_points = read_settings(directory)
        self.kinds: VectorKinds = vector_kinds(self.settings)
        self.index_schedule = IndexSchedule()
        self.num_writes = 0
        self.wrote_at = time.monotonic()
        self.dropped = threading.Event()
        self.copying = threading.Lock()  # held while the directory has anything but the shard
        self.num_missing = 0
        self.removed = 0
        self._removed_before_copy = self._rewritten_since_copy = self._added_since_copy = 0
        self._removed_since: float | None = None
        self._rebuilt_at, self.rebuild_s = -math.inf, 0.0  # when the last copy was made, and how long that took
        self._kept_shards: set[Path] = set()
        self._flushed_writes = -1  # what the start replays needs a flush, too
        self._unflushed_bytes = OPENING_BYTES  # not counted with ROOMY_BYTES free; assume the worst once there is less
        self._kept: list[UpdateOperation] | None = None  # written since the copy was made
        self._kept_bytes = 0
        self._is_open = True
        self._writing = threading.Lock()  # held to change the shard's files, or to copy them; taken before _lock
        self._lock = threading.Lock()
        replayed_bytes = OPENING_BYTES + log_bytes([self.shard_directory / "wal"])
        require_room(directory, replayed_bytes, f"opening collection {self.name!r}")
        self._acknowledged = Acknowledged(directory)
        expected = self._acknowledged.read()
        self.log_damage = log_damage(self.shard_directory, expected)
        require_segments(self.shard_directory)
        self._shard = _loaded(self.shard_directory)
        self._compare(expected)
        if not self._kept_shards:
            self.remove_other_shards()

    @property
    def name(self) -> str:
        """The name that the collection was created with."""
        return self.settings.collection_name

    def read(self, ask: Callable[[EdgeShard], T]) -> T:
        """Call `ask` with the shard; the engine's errors become StatusError."""
        with self._lock:
            self._require_open()
            try:
                return _in_engine(lambda: ask(self._shard))
            except StatusError as error:
                if error.code != grpc.StatusCode.INTERNAL:
                    raise
                raise DamagedError(f"{error}: a file of {self.shard_directory} may be damaged; {REMEDY}") from error

    def write(self, operation: UpdateOperation, request: Message) -> int:
        """Apply and log one operation, and return its number. From then on it survives a kill of this process.

        `request` is the call's message, of the operation's size; StatusError where the disk has no room for it.
        """
        with self._writing:
            self._make_room(request)
            with self._lock:
                self._require_open()
                self._require_log()
                self._update(operation, request)
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

    def wants_rebuild(self) -> bool:
        """Whether to copy the points into a new shard: the old one keeps the texts and space of what was deleted or replaced.

        That is once they are `deleted_threshold` of all and `vacuum_min_vector_number`; once writes have paused and the log is
        larger than the rest; and FORGET_S after the first, at the latest. A shard that takes long to copy waits for longer,
        above all while writes go on. Without a sound log it is at once.
        """
        if self.log_damage:
            return True
        if not self.removed:
            return False
        now = time.monotonic()
        if self._removed_since is None:
            self._removed_since = now
        is_quiet = now - self.wrote_at > QUIET_S
        pause = QUIET_PAUSE if is_quiet else REBUILD_PAUSE
        if now - self._rebuilt_at < pause * self.rebuild_s:
            return False
        share, at_least = vacuum_options(self.settings)
        num_points = self.read(EdgeShard.info).points_count
        is_much = self.removed >= max(at_least, share * (num_points + self.removed))
        return is_much or now - self._removed_since > FORGET_S or (is_quiet and self._log_outweighs())

    def _log_outweighs(self) -> bool:
        """Whether the log takes more of the disk than the shard's points do, and more than LOG_ROOM_BYTES."""
        log = log_bytes([self.shard_directory / "wal"])
        return log > LOG_ROOM_BYTES and 2 * log > folder_bytes(self.shard_directory)

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
                self._removed_before_copy = self.removed
                self._rewritten_since_copy = self._added_since_copy = 0
            return self.num_writes

    @property
    def keeps_writes(self) -> bool:
        """Whether a copy can still catch up: False after more than KEPT_BYTES of writes."""
        return self._kept is not None

    def forget_writes(self) -> None:
        """Drop the kept writes: no copy needs them any more."""
        with self._lock:
            self._kept = None

    def swap_shard(self, copy: Path, is_rebuilt: bool = False) -> bool:
        """Repeat the kept writes on the copy and serve it; False, with no change, where it cannot catch up.

        `is_rebuilt`: the copy has nothing of what was deleted before `copy_shard`, and a log of its own. StatusError where it
        has not as many points as the shard.
        """
        fresh = _loaded(copy)
        try:
            while self._catch_up(fresh) > LAST_WRITES:
                pass
            _in_engine(fresh.flush)
            with self._writing:
                self._catch_up(fresh)
                with self._lock:
                    if not self._is_open or self._kept is None:
                        return False
                    info = fresh.info()
                    num_points, wanted = info.points_count, self._shard.info().points_count
                    if num_points != wanted:
                        raise StatusError(
                            grpc.StatusCode.INTERNAL,
                            f"Service internal error: the copy {copy} has {num_points} points, the shard {wanted}",
                        )
                    # What was written meanwhile is not in the copy's index: what was added, and what was written anew.
                    rewritten = min(num_points, self._rewritten_since_copy)
                    unindexed = min(num_points, rewritten + self._added_since_copy)
                    indexed_points = num_points - unindexed if info.indexed_vectors_count else 0
                    write_settings(self.directory, self.settings, copy.name, indexed_points)
                    fresh, self._shard = self._shard, fresh
                    self.shard_directory, self.indexed_points = copy, indexed_points
                    self._kept = None
                    if is_rebuilt:
                        self.log_damage = None
                        self.removed -= self._removed_before_copy
                        self.removed = max(self.removed, rewritten)
                        self._removed_since, self._rebuilt_at = None, time.monotonic()
                    self._settle()
        finally:
            fresh.close()
        self.remove_other_shards()
        return True

    def remove_other_shards(self) -> None:
        """Remove copies of the shard. Those stay that a start found beside one that did not have everything."""
        others = set(self.directory.glob("shard-*")) - {self.shard_directory} - self._kept_shards
        if others and read_settings(self.directory)[1] == self.shard_directory:
            for other in others:
                shutil.rmtree(other)

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
                self._flush_shard()
            except StatusError as error:  # nothing is lost: the log has every write
                log.warning("%s closed without a flush: %s", self.name, error)
            self._shard.close()
            self._acknowledged.close()

    def drop(self) -> None:
        """Close the files without a flush; they are about to be deleted."""
        self.dropped.set()
        with self.copying, self._writing, self._lock:
            self._is_open = False
            self._shard.close()
            self._acknowledged.close()

    @property
    def warnings(self) -> list[str]:
        """What is wrong with the collection's points, a line each."""
        if not self.num_missing:
            return []
        return [
            f"{self.num_missing} {MISSING_POINTS}: files of {self.shard_directory} were damaged"
            f"{f' ({self.log_damage})' if self.log_damage else ''}; ingest or import again, which adds what is missing, or "
            "restore a snapshot"
        ]

    def _compare(self, expected: Expected | None) -> None:
        """See that the shard has the points that were acknowledged, and log what it lacks."""
        num_points = self._shard.info().points_count
        if expected:
            self.removed = expected.removed
            self.num_missing = max(0, expected.fewest - num_points)
            if num_points > expected.most:
                log.error(
                    "%s has %d points and should have %d: deletions were lost, delete again",
                    self.name, num_points, expected.most,
                )  # fmt: skip
        for warning in self.warnings:
            log.error("%s: %s", self.name, warning)
        if self.num_missing or (expected is None and not num_points):
            self._kept_shards = set(self.directory.glob("shard-*")) - {self.shard_directory}
        if self._kept_shards:
            names = ", ".join(sorted(path.name for path in self._kept_shards))
            log.error("%s may lack what was stored: %s beside it is kept", self.shard_directory, names)
        if self.log_damage:
            log.error("%s: %s: writes are answered once its points are in a new shard", self.name, self.log_damage)
            self.index_schedule.hurry()
        else:
            self._settle()

    def _update(self, operation: UpdateOperation, request: Message) -> None:
        """Apply one operation, and note before and after how many points there must be."""
        before = self._shard.info().points_count
        removes, adds = most_changed(request)
        rewrites = most_rewritten(request)
        rewrites = before if rewrites is None else min(before, rewrites)
        rewritten = min(self.indexed_points, rewrites)
        fewest = 0 if removes is None else max(0, before - removes)
        # Until the next settling the log's files are unknown: a full one is renamed.
        self._acknowledged.write(
            Expected(
                self.num_missing + fewest,
                self.num_missing + before + adds,
                self.removed + (removes or 0) + adds + rewritten,
            )
        )
        try:
            _in_engine(lambda: self._shard.update(operation))
        finally:
            added = self._shard.info().points_count - before
            self.num_missing = max(0, self.num_missing - max(0, added))
            replaced = max(0, adds - added) if adds else rewritten
            self.indexed_points -= min(self.indexed_points, replaced)
            self._rewritten_since_copy += max(replaced, rewrites)
            self._added_since_copy += max(0, added)
            self.removed += replaced + (0 if adds else max(0, -added))
            self._settle()

    def _flush_shard(self) -> None:
        num_points = self.num_missing + self._shard.info().points_count
        if not self.log_damage:
            self._acknowledged.write(Expected(num_points, num_points, self.removed))  # files of the log are dropped
        _in_engine(self._shard.flush)
        if not self.log_damage:  # else a start before the new shard is there must find it damaged again
            self._settle()
        self._acknowledged.sync()

    def _require_log(self) -> None:
        # The engine numbers its writes by the log: without it, it would take new ones for old ones that it has, and skip them.
        if self.log_damage and (error := self.index_schedule.error):
            raise DamagedError(
                f"{self.log_damage}, and its points cannot be copied into a new shard: {error}; {REMEDY}"
            )
        if self.log_damage:
            raise StatusError(
                grpc.StatusCode.UNAVAILABLE,
                f"{self.log_damage}; the points of {self.name} are being copied into a new shard, try again later",
            )

    def _settle(self) -> None:
        num_points = self.num_missing + self._shard.info().points_count
        self._acknowledged.write(Expected(num_points, num_points, self.removed, log_files(self.shard_directory)))

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
                self._flush_shard()
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
        self._damaged: dict[str, StatusError] = {}
        for unfinished in _drafts(self._folder):  # the last process ended while it created or deleted these
            shutil.rmtree(unfinished)
        for directory in sorted(self._folder.iterdir()):
            if not directory.name.startswith("c") or not directory.is_dir():
                log.warning("%s is no collection's folder and is left alone", directory)
                continue
            name = unquote(directory.name[1:])
            try:
                self._collections[name] = Collection(directory)
            except DamagedError as error:
                log.error("collection %s is not served: %s", name, error)
                self._damaged[name] = error

    def names(self) -> list[str]:
        """Sorted names of the collections."""
        with self._lock:
            return sorted([*self._collections, *self._damaged])

    def __contains__(self, name: str) -> bool:
        return self._has(self.aliases.resolve(name))

    def _has(self, name: str) -> bool:
        return name in self._collections or name in self._damaged

    def find(self, name: str) -> Collection:
        """Collection with this name or alias; CollectionNotFoundError where there is none, DamagedError for a damaged one."""
        resolved = self.aliases.resolve(name)
        if found := self._collections.get(resolved):
            return found
        if damaged := self._damaged.get(resolved):
            raise DamagedError(str(damaged))
        self.aliases.require_readable()
        raise CollectionNotFoundError(name)

    def create(self, settings: api.CreateCollection) -> None:
        """Create an empty collection; StatusError where the name is taken or the settings are not supported."""
        name = settings.collection_name
        check_shards(settings)
        config = engine_config(settings)
        if not name or len(name) > 128 or any(c in '<>:"/\\|?*' or c < " " for c in name):
            raise invalid(f'collection name {name!r} is empty, too long or has one of <>:"/\\|?*')
        with self._lock:
            if self._has(name):
                raise already_exists(name)
            self.aliases.require_readable()
            if name in self.aliases:
                raise invalid(f"Can't create collection with name {name}. Alias with the same name already exists")
            require_room(self._folder, MARGIN_BYTES, "a collection")
            draft = self._folder / f"{DRAFT_FOLDER}{folder_name(name)}"
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
            if not self._has(name):
                return False
            self.aliases.forget(name)
            place = self._folder / folder_name(name)
            if collection := self._collections.pop(name, None):
                collection.drop()
            self._damaged.pop(name, None)
            deleted = self._folder / f"{_DELETED}{folder_name(name)}"
            os.rename(place, deleted)
            shutil.rmtree(deleted, ignore_errors=True)  # the next start tries again
            return True

    def change_aliases(self, actions: Iterable[api.AliasOperations]) -> None:
        """Apply a list of alias changes, all or none. Calls in progress finish on the collection that they have found."""
        with self._lock:
            self.aliases.change(actions, self._has)

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


def read_settings(directory: Path) -> tuple[api.CreateCollection, Path, int]:
    """Read a collection's settings.json: its settings, its shard's directory, the number of indexed points.

    DamagedError where it cannot be read, or names a shard that is not there.
    """
    path = directory / "settings.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        settings = json_format.ParseDict(stored["collection"], api.CreateCollection())
        shard, indexed_points = str(stored["shard"]), int(stored["indexed_points"])
    except (OSError, ValueError, KeyError, TypeError, json_format.ParseError) as error:
        raise DamagedError(f"{path} cannot be read ({_line(error)}); {REMEDY}") from error
    if not (directory / shard / "segments").is_dir() or Path(shard).name != shard:
        others = sorted(found.name for found in directory.glob("shard-*") if (found / "segments").is_dir())
        others_there = (
            f"; {', '.join(others)} is there: if the points are in it, name it in that file" if others else ""
        )
        raise DamagedError(f"{path} names {shard!r}, which is missing or has no segments{others_there}; else {REMEDY}")
    return settings, directory / shard, indexed_points


def require_segments(shard_directory: Path) -> None:
    """DamagedError where a segment lacks a file without which the engine deletes it at its start."""
    for segment in sorted((shard_directory / "segments").iterdir()):
        if segment.is_dir() and not segment.name.startswith(".") and not (segment / "version.info").is_file():
            raise DamagedError(f"{segment / 'version.info'} is missing; {REMEDY}")


def _loaded(shard_directory: Path) -> EdgeShard:
    try:
        return EdgeShard.load(str(shard_directory))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the engine's panics over a cut file are no Exceptions
        raise DamagedError(f"{shard_directory} cannot be opened ({_line(error)}); {REMEDY}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


def _drafts(folder: Path) -> list[Path]:
    return [path for start in (DRAFT_FOLDER, _DELETED) for path in folder.glob(f"{start}*") if path.is_dir()]


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
