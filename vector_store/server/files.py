"""Free space on the disk, copies of sparse files, and the PYTHONPATH of a child process.

The engine maps its files into memory. A page that no longer fits on the disk ends the process with a bus error, in the middle
of a write and again at every start (seen on a full tmpfs). So the server refuses writes while there is still space. The files
of a small shard are mostly holes (33 MB for each log and page), and copies keep the holes. Knows no collection.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import grpc

from vector_store.server.status import StatusError

_ZEROS = bytes(2**16)

MARGIN_BYTES = 64 * 2**20
"""Free space that a write needs, in addition to its own size and the logs'."""

DELETING_BYTES = MARGIN_BYTES // 2
"""Free space that a deletion needs: less than a write, because it may be the way out of a full disk."""

OPENING_BYTES = MARGIN_BYTES // 4
"""Free space that opening or flushing a shard needs."""


def free_bytes(folder: Path) -> int:
    """Free bytes on the folder's disk."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def require_room(folder: Path, num_bytes: int, to_do: str) -> None:
    """StatusError where the folder's disk has less than `num_bytes` free; `to_do` names what needs them."""
    free = free_bytes(folder)
    if free < num_bytes:
        # Not RESOURCE_EXHAUSTED: clients take that for a rate limit and retry. Qdrant answers INTERNAL, too.
        raise StatusError(
            grpc.StatusCode.INTERNAL,
            f"Service internal error: No space left on device: {folder} has {free >> 20} MiB free, {to_do} needs "
            f"{-(-num_bytes >> 20)} MiB; free some space and try again, nothing acknowledged is lost",
        )


def folder_bytes(folder: Path) -> int:
    """Bytes that all files under the folder take on the disk, without the holes of sparse files."""
    num_bytes = 0
    for directory, subdirectories, names in os.walk(folder):  # which, unlike rglob, goes on where a folder is gone
        for name in (*subdirectories, *names):
            with contextlib.suppress(FileNotFoundError):  # the engine removes what it no longer needs
                num_bytes += os.lstat(os.path.join(directory, name)).st_blocks * 512
    return num_bytes


def copy_file(source: str | Path, target: str | Path) -> None:
    """Copy a file with its holes; a `copy_function` for `shutil.copytree`."""
    with open(source, "rb") as file:
        copy_bytes(file, Path(target))


def copy_bytes(source: IO[bytes], target: Path, see: Callable[[bytes], object] = bool) -> None:
    """Copy everything that can be read into a new file, zeros as holes; `see` is called with every chunk."""
    with open(target, "xb") as file:
        writer = SparseFileWriter(file)
        while chunk := source.read(len(_ZEROS)):
            see(chunk)
            writer.write(chunk)
        file.truncate()


class SparseFileWriter:
    """Writes to a file, with holes for chunks of zeros. Truncate the file afterwards, in case it ends in a hole."""

    def __init__(self, file: IO[bytes]) -> None:
        self.tell = file.tell
        self._file = file

    def write(self, chunk: bytes) -> int:
        """Write the chunk, or skip over it where it is all zeros."""
        if chunk == _ZEROS[: len(chunk)]:
            self._file.seek(len(chunk), os.SEEK_CUR)
        else:
            self._file.write(chunk)
        return len(chunk)


def import_path() -> str:
    """PYTHONPATH for a child process that runs this package."""
    package_parent = str(Path(__file__).resolve().parents[2])
    # An empty entry would be the child's working directory.
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return os.pathsep.join([package_parent, *given])
