"""Collections on disk: each a directory with its settings (JSON) and one engine shard.

    <root>/collections/<name>/settings.json    the CreateCollection message with its metadata, and which shard is live
    <root>/collections/<name>/shard-N/         segments and write-ahead log, the engine's own

A collection is built beside its place and renamed into it, so it exists completely or not at all. The engine has no
catalogue, metadata or settings of its own. Knows nothing of the network; who may open the root is the caller's concern.
"""

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

import grpc
from google.protobuf import json_format
from qdrant_client import grpc as api
from qdrant_edge import EdgeShard, UpdateOperation

from vector_store.server.refusal import Refusal, invalid
from vector_store.server.translate import VectorKinds, engine_config, has_index, vector_kinds

T = TypeVar("T")


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
        self.has_index = has_index(self.settings)
        self.indexed_points: int = stored["indexed_points"]
        self.shard_directory = directory / stored["shard"]
        self.num_writes = 0
        self.wrote_at = time.monotonic()
        self._flushed_writes = 0
        self._is_open = True
        self._writing = threading.Lock()  # held to change the shard's files, or to copy them; taken before _lock
        self._lock = threading.Lock()
        for leftover in set(directory.glob("shard-*")) - {self.shard_directory}:
            shutil.rmtree(leftover)
        self._shard = EdgeShard.load(str(self.shard_directory))

    def read(self, ask: Callable[[EdgeShard], T]) -> T:
        """`ask` the shard; the engine's complaints become refusals."""
        with self._lock:
            return _in_engine(lambda: ask(self._shard))

    def write(self, operation: UpdateOperation) -> int:
        """Apply and log one operation; returns its number. It survives a kill of this process from here on."""
        with self._writing, self._lock:
            _in_engine(lambda: self._shard.update(operation))
            self.num_writes += 1
            self.wrote_at = time.monotonic()
            return self.num_writes

    def merge_metadata(self, update: api.UpdateCollection) -> None:
        """Set the given metadata keys and keep the others."""
        with self._lock:
            for key, value in update.metadata.items():
                self.settings.metadata[key].CopyFrom(value)
            self._write_settings()

    def copy_shard(self) -> tuple[Path, int]:
        """A copy of the shard's files, and the number of the last write it has. Reads go on meanwhile, writes wait."""
        number = int(self.shard_directory.name.removeprefix("shard-")) + 1
        copy = self.directory / f"shard-{number}"
        with self._writing:
            with self._lock:
                _in_engine(self._shard.flush)
                self._flushed_writes = self.num_writes
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(self.shard_directory, copy)
            return copy, self.num_writes

    def swap_shard(self, copy: Path, num_writes: int) -> bool:
        """Serve the copy instead; False, and no change, where something was written after `num_writes`."""
        with self._writing, self._lock:
            if not self._is_open or self.num_writes != num_writes:
                return False
            fresh = EdgeShard.load(str(copy))
            stale, stale_directory = self._shard, self.shard_directory
            self._shard, self.shard_directory = fresh, copy
            self.indexed_points = fresh.info().points_count
            self._write_settings()
            stale.close()
        shutil.rmtree(stale_directory)
        return True

    def flush(self) -> None:
        """Move what was written since the last flush from the log into the segments, unless a write or copy is busy."""
        if self.num_writes == self._flushed_writes or not self._writing.acquire(blocking=False):
            return
        try:
            with self._lock:
                if self._is_open:
                    writes = self.num_writes
                    _in_engine(self._shard.flush)
                    self._flushed_writes = writes
        finally:
            self._writing.release()

    def close(self) -> None:
        """Flush and let go of the files; later calls are refused."""
        with self._writing, self._lock:
            self._is_open = False
            self._shard.flush()
            self._shard.close()

    def _write_settings(self) -> None:
        _write_settings(self.directory, self.settings, self.shard_directory.name, self.indexed_points)


class Catalogue:
    """All collections under one root directory. One process per root: the caller holds the lock on it."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "collections"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._collections: dict[str, Collection] = {}
        for directory in sorted(self._folder.iterdir()):
            if directory.name.startswith("."):  # half made or half deleted when the process ended
                shutil.rmtree(directory)
            else:
                self._collections[unquote(directory.name[1:])] = Collection(directory)

    def names(self) -> list[str]:
        """Sorted names of the collections."""
        with self._lock:
            return sorted(self._collections)

    def __contains__(self, name: str) -> bool:
        return name in self._collections

    def find(self, name: str) -> Collection:
        """The collection, or the NOT_FOUND that Qdrant answers."""
        try:
            return self._collections[name]
        except KeyError:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"Not found: Collection `{name}` doesn't exist!") from None

    def create(self, settings: api.CreateCollection) -> None:
        """Make an empty collection; the name must be free."""
        name = settings.collection_name
        config = engine_config(settings)
        if not name or len(name) > 128 or any(c in '<>:"/\\|?*' or c < " " for c in name):
            raise invalid(f'collection name {name!r} is empty, too long or has one of <>:"/\\|?*')
        with self._lock:
            if name in self._collections:
                raise Refusal(grpc.StatusCode.ALREADY_EXISTS, f"Wrong input: Collection `{name}` already exists!")
            draft = self._folder / f".new-{_folder_name(name)}"
            shutil.rmtree(draft, ignore_errors=True)
            (draft / "shard-0").mkdir(parents=True)
            try:
                _in_engine(lambda: EdgeShard.create(str(draft / "shard-0"), config).close())
                _write_settings(draft, settings, "shard-0", indexed_points=0)
            except Refusal:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            place = self._folder / _folder_name(name)
            os.rename(draft, place)
            self._collections[name] = Collection(place)

    def delete(self, name: str) -> bool:
        """Close and remove a collection; False where there is none."""
        with self._lock:
            collection = self._collections.pop(name, None)
            if collection is None:
                return False
            collection.close()
            grave = self._folder / f".gone-{_folder_name(name)}"
            os.rename(collection.directory, grave)
            shutil.rmtree(grave, ignore_errors=True)  # an index may be building in it; the next start tries again
            return True

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


def _folder_name(name: str) -> str:
    # The leading letter keeps names like `.` and `..` apart from the file system's own and from drafts.
    return "c" + quote(name, safe="")


def _write_settings(directory: Path, settings: api.CreateCollection, shard: str, indexed_points: int) -> None:
    stored = {"collection": json_format.MessageToDict(settings), "shard": shard, "indexed_points": indexed_points}
    draft = directory / "settings.json.new"
    with open(draft, "w", encoding="utf-8") as file:
        json.dump(stored, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, directory / "settings.json")


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
