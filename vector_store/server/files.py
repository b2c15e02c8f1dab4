"""Files that are written completely or not at all, and the room on the disk that writing needs.

The engine maps its files into memory: a page that no longer fits on the disk ends the process with a bus error, in the
middle of a write and again at every start (tried on a full tmpfs). So the server stops writing while there is room
left. Its files are also mostly holes while a shard is small (33 MB for each log and page), so copies keep the holes.
Knows no collection.
"""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import grpc

from vector_store.server.refusal import Refusal

_ZEROS = bytes(2**16)

MARGIN_BYTES = 64 * 2**20
"""A write needs this much free space beside its own and the logs'."""

DELETING_BYTES = MARGIN_BYTES // 2
"""A deletion, which may be the way out of a full disk, needs only this much."""

OPENING_BYTES = MARGIN_BYTES // 4
"""Opening and flushing a shard need this much."""


def free_bytes(folder: Path) -> int:
    """What is left on the folder's disk."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def require_room(folder: Path, num_bytes: int, to_do: str) -> None:
    """Refuse what needs `num_bytes` of free space on the folder's disk where there is less."""
    free = free_bytes(folder)
    if free < num_bytes:
        # Not RESOURCE_EXHAUSTED, which clients take for a rate limit and try again. Qdrant answers INTERNAL, too.
        raise Refusal(
            grpc.StatusCode.INTERNAL,
            f"Service internal error: No space left on device: {folder} has {free >> 20} MiB free, {to_do} wants "
            f"{-(-num_bytes >> 20)} MiB; free some space and try again, nothing acknowledged is lost",
        )


def folder_bytes(folder: Path) -> int:
    """Bytes on the disk of all files under the folder; holes of sparse files do not count."""
    num_bytes = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # the engine removes what it no longer needs
            num_bytes += path.lstat().st_blocks * 512
    return num_bytes


def copy_file(source: str | Path, target: str | Path) -> None:
    """Copy a file with its holes, as `shutil.copytree` wants it."""
    with open(source, "rb") as file:
        copy_bytes(file, Path(target))


def copy_bytes(source: IO[bytes], target: Path, see: Callable[[bytes], object] = bool) -> None:
    """Copy what can be read into a new file, zeros as holes; `see` gets every chunk."""
    with open(target, "xb") as file:
        writer = HoleWriter(file)
        while chunk := source.read(len(_ZEROS)):
            see(chunk)
            writer.write(chunk)
        file.truncate()


class HoleWriter:
    """A file's `write` that leaves chunks of zeros out. Truncate the file at its end, in case it ends in a hole."""

    def __init__(self, file: IO[bytes]) -> None:
        self.tell = file.tell
        self._file = file

    def write(self, chunk: bytes) -> int:
        """Write the chunk, or step over it."""
        if chunk == _ZEROS[: len(chunk)]:
            self._file.seek(len(chunk), os.SEEK_CUR)
        else:
            self._file.write(chunk)
        return len(chunk)


def write_json(path: Path, content: Any) -> None:
    """Write a draft, see it on the disk, and put it in the file's place."""
    draft = path.with_name(path.name + ".new")
    with open(draft, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def import_path() -> str:
    """PYTHONPATH of a process that is to run this package."""
    package_parent = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([package_parent, *filter(None, [os.environ.get("PYTHONPATH")])])
