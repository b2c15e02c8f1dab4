"""Write files and folders completely or not at all, and tell content apart by SHA-256 digests.

A writer works on a scratch beside the place. The complete scratch is renamed to the place, so a reader never sees half of a
file or folder. That holds when a process is killed; in a power cut it holds only for `whole_folder(..., durable=True)`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


@contextmanager
def whole_file(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Yield a scratch path; the file that the block writes there becomes `path`, in the place of an older one.

    After a failure the scratch stays: the next writer overwrites it, or appends to what is there.
    """
    scratch = scratch or path.with_name(f"{path.name}.partial")
    yield scratch
    readable_by_umask(scratch)
    scratch.rename(path)


def write_whole(path: Path, content: str) -> None:
    """Write a text file completely or not at all."""
    with whole_file(path) as scratch:
        scratch.write_text(content)


@contextmanager
def whole_folder(path: Path, *, resume: bool = False, durable: bool = False) -> Iterator[Path]:
    """Yield an empty scratch folder that becomes `path`, in the place of an older one. For one writer at a time.

    After a failure the scratch is gone. With `resume` it stays, and the next writer gets it as it is. With `durable` the disk
    holds all of it before the rename, and the new name in the end: a power cut leaves the old folder or the new one. The old
    one is deleted last: a kill between the two renames leaves it as `<name>.before`, and the next writer puts it back first.
    """
    scratch, before = (path.with_name(f"{path.name}.{part}") for part in ("partial", "before"))
    if before.exists():
        # A writer was killed between the renames, or before it had deleted the old folder.
        shutil.rmtree(before) if path.exists() else before.rename(path)
    if not resume:
        shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        yield scratch
        for written in scratch.rglob("*"):
            readable_by_umask(written)
        if durable:  # a full disk may say so only here
            for written in (*scratch.rglob("*"), scratch):
                sync(written)
    except BaseException:
        if not resume:
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    if path.exists():
        path.rename(before)  # deleted only once the new one is there
    scratch.rename(path)
    if durable:
        sync(path.parent)
    shutil.rmtree(before, ignore_errors=True)


@contextmanager
def first_whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty scratch folder of this writer's own that becomes `path`, unless another writer was faster.

    For several writers of the same content at once. The scratch, `<name>.*.partial`, is gone after a failure.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{path.name}.", suffix=".partial", dir=path.parent) as scratch:
        os.chmod(scratch, 0o755)  # a temporary folder is for its owner alone, and this one may be shared
        yield Path(scratch)
        try:
            if not path.exists():
                os.rename(scratch, path)
        except OSError:
            if not path.exists():  # else another writer was faster since
                raise


def checksum(content: Path | bytes) -> str:
    """SHA-256 of a file's bytes, or of these."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: Any, digits: int = 16) -> str:
    """Hex digits of a SHA-256 over the parts' JSON: they change when, and only when, one of the parts does."""
    return checksum(json.dumps(parts).encode())[:digits]


def readable_by_umask(path: Path) -> None:
    """Give a file or folder the mode that the umask gives a new one: safetensors writes files for their owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or which names a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
