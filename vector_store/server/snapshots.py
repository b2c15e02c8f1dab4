"""Snapshots: archives of a collection, created while the server runs, restored while no server runs.

    <root>/snapshots/<collection>/<collection>-<time>.snapshot             a tar file
    <root>/snapshots/<collection>/<collection>-<time>.snapshot.checksum    its SHA-256

An archive holds the collection's settings, its shard's files and, as the last member, a table of their SHA-256 checksums:
an archive without that table is truncated. The format is not that of a Qdrant server, and neither can read the other's.
"""

import hashlib
import json
import os
import shutil
import tarfile
import time
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast
from urllib.parse import quote

import grpc
from google.protobuf import json_format
from qdrant_edge import EdgeShard

from vector_store.atomic import checksum, publish
from vector_store.errors import StoreError
from vector_store.protocol import api
from vector_store.server.aliases import Aliases
from vector_store.server.catalogue import Collection, folder_name, write_settings
from vector_store.server.files import MARGIN_BYTES, SparseFileWriter, copy_bytes, folder_bytes, require_room
from vector_store.server.status import StatusError
from vector_store.server.translate import engine_config

_SHARD = "shard-0"
_SETTINGS = "settings.json"
_TABLE = "snapshot.json"
_FORMAT = 1

_MOST_JSON_BYTES = 64 * 2**20
"""Largest settings or table of an archive: they are read whole."""


def snapshot_path(root: Path, collection: str, snapshot: str) -> Path:
    """Path of the snapshot of this name, existing or not."""
    return _folder(root, collection) / snapshot


def restore_snapshot(root: Path, collection: str, archive: Path) -> None:
    """Unpack an archive as a new collection, completely or not at all.

    StoreError where the name is taken, or the archive is truncated, damaged or no archive. The caller ensures that no server
    runs (`process.offline`).
    """
    collections = root / "collections"
    place = collections / folder_name(collection)
    if place.exists() or collection in Aliases(root):
        raise StoreError(f"{root} has a collection or alias {collection!r} already; restore under another name")
    draft = collections / f".new-{folder_name(collection)}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        _unpack(archive, draft)
        settings, indexed_points = _read_settings(archive, draft / _SETTINGS)
        settings.collection_name = collection
        _require_shard(archive, draft / _SHARD)
        write_settings(draft, settings, _SHARD, indexed_points)
        os.sync()
        os.rename(draft, place)
    except StatusError as error:
        raise StoreError(f"cannot restore {archive}: {error}") from error
    except OSError as error:
        raise StoreError(f"cannot restore {archive} into {root}: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


class Snapshots:
    """The snapshots of a running server's collections; removes the unfinished ones of an earlier server."""

    def __init__(self, root: Path) -> None:
        self._root = root
        for draft in (root / "snapshots").glob("*/*"):
            if draft.suffix == ".copy":
                shutil.rmtree(draft)
            elif draft.suffix == ".new":
                draft.unlink()

    def create(self, collection: Collection) -> api.SnapshotDescription:
        """Archive a collection as it is now. Reads go on, writes wait while the files are copied."""
        folder = _folder(self._root, collection.name)
        folder.mkdir(parents=True, exist_ok=True)
        wanted_bytes = MARGIN_BYTES + 2 * folder_bytes(collection.shard_directory)
        require_room(folder, wanted_bytes, "a snapshot")
        stamp = time.strftime("%Y-%m-%d-%H-%M-%S", time.gmtime())
        path = folder / f"{quote(collection.name, safe='')}-{stamp}-{time.time_ns() % 10**9:09d}.snapshot"
        draft, copy = path.with_suffix(".new"), path.with_suffix(".copy")
        try:
            copy.mkdir()
            collection.copy_shard(copy / _SHARD)
            write_settings(copy, collection.settings, _SHARD, collection.indexed_points)
            _pack(copy, draft)
            _checksum_path(path).write_text(checksum(draft), encoding="ascii")
            publish(draft, path)
        finally:
            shutil.rmtree(copy, ignore_errors=True)
            draft.unlink(missing_ok=True)
        return _describe(path)

    def of(self, collection: Collection) -> list[api.SnapshotDescription]:
        """The snapshots of a collection, the oldest first."""
        return [_describe(path) for path in sorted(_folder(self._root, collection.name).glob("*.snapshot"))]

    def delete(self, collection: Collection, name: str) -> None:
        """Delete a snapshot; StatusError where there is none of this name."""
        if name not in {description.name for description in self.of(collection)}:
            raise StatusError(grpc.StatusCode.NOT_FOUND, f"Not found: Snapshot {name} not found")
        path = snapshot_path(self._root, collection.name, name)
        path.unlink()
        _checksum_path(path).unlink(missing_ok=True)


def _folder(root: Path, collection: str) -> Path:
    # `.` and `..` are valid collection names; no other name is quoted to the result.
    name = quote(collection, safe="")
    return root / "snapshots" / (name if name.strip(".") else name.replace(".", "%2E"))


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".checksum")


def _describe(path: Path) -> api.SnapshotDescription:
    status = path.stat()
    description = api.SnapshotDescription(name=path.name, size=status.st_size)
    description.creation_time.FromSeconds(int(status.st_mtime))
    if _checksum_path(path).exists():
        description.checksum = _checksum_path(path).read_text(encoding="ascii")
    return description


def _pack(folder: Path, archive: Path) -> None:
    table: dict[str, Any] = {"format": _FORMAT, "files": {}}
    with (
        open(archive, "xb") as output,
        tarfile.open(fileobj=cast(IO[bytes], SparseFileWriter(output)), mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            table["files"][name] = checksum(path)
            tar.add(path, name)
        (folder / _TABLE).write_text(json.dumps(table), encoding="utf-8")
        tar.add(folder / _TABLE, _TABLE)
        tar.close()  # writes the end
        output.truncate()


def _unpack(archive: Path, folder: Path) -> None:
    """Extract the archive's files into the folder, and compare their checksums with the archive's table."""
    sums: dict[str, str] = {}
    table: Any = None
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts
                content = tar.extractfile(member) if member.isreg() else None
                is_ours = parts[:1] == (_SHARD,) if len(parts) > 1 else parts in ((_SETTINGS,), (_TABLE,))
                if content is None or not is_ours or ".." in parts:
                    raise _refusal(archive, f"has an unexpected member {member.name!r}")
                if len(parts) == 1 and member.size > _MOST_JSON_BYTES:
                    raise _refusal(
                        archive, f"has a {member.name} of {member.size} bytes, at most {_MOST_JSON_BYTES} are read"
                    )
                if member.name == _TABLE:
                    table = json.load(content)
                    continue
                require_room(folder, MARGIN_BYTES + member.size, "restoring a snapshot")
                path = folder.joinpath(*parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                digest = hashlib.sha256()
                copy_bytes(content, path, digest.update)
                sums[member.name] = digest.hexdigest()
    except (
        tarfile.TarError,
        ValueError,
        RecursionError,
        EOFError,
    ) as error:  # ValueError: JSON, UTF-8, a number of a header
        raise _refusal(archive, f"is truncated or not a snapshot ({_first_line(error)})") from error
    if not isinstance(table, dict) or table.get("format") != _FORMAT:
        raise _refusal(archive, "is truncated or not a snapshot (its table of files is missing)")
    if sums != table.get("files") or _SETTINGS not in sums:
        raise _refusal(archive, "is damaged (its files are not those of its table)")


def _read_settings(archive: Path, path: Path) -> tuple[api.CreateCollection, int]:
    """Read an unpacked collection's settings, and how many of its points are in its index; refuse what no server could open."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        settings = json_format.ParseDict(stored["collection"], api.CreateCollection())
        engine_config(settings)
        return settings, int(stored["indexed_points"])
    except (ValueError, TypeError, KeyError, RecursionError, json_format.ParseError, StatusError) as error:
        raise _refusal(
            archive, f"has no settings of a collection ({type(error).__name__}: {_first_line(error)})"
        ) from error


def _require_shard(archive: Path, shard: Path) -> None:
    """Open the unpacked shard once: a collection that cannot be opened would be found by the next server's start."""
    try:
        EdgeShard.load(str(shard)).close()
    except BaseException as error:  # the engine's panics are not Exceptions
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise _refusal(archive, f"has no shard that the engine can open ({_first_line(error)})") from error


def _refusal(archive: Path, found: str) -> StoreError:
    return StoreError(
        f"{archive} {found}; wanted a complete snapshot of this package's server: copy it again, or create a new one"
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
