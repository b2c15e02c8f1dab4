"""Replace a file completely or not at all, and compute the checksum of a file.

A draft is renamed to the file. Without `sync` that holds for a killed process, with `sync` also for a crash of the machine.
"""

import hashlib
import os
from pathlib import Path

DRAFT = ".new"
"""Suffix of a file that is still being written."""


def write_whole(path: Path, content: str, mode: int = 0o666, sync: bool = True) -> None:
    """Write a draft and rename it. `mode` gives the permissions before the umask; `sync` is that of `publish`."""
    draft = path.with_name(path.name + DRAFT)
    with open(draft, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(content)
    publish(draft, path, sync)


def publish(draft: Path, path: Path, sync: bool = True) -> None:
    """Rename a finished draft, with `sync` only once its bytes are on the disk: a crash then leaves the old file or the new.

    With `sync` the disk has the new name, too, so that the caller may delete what the old file named.
    """
    if sync:
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
    os.replace(draft, path)
    if sync:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError:  # a filesystem without it; the file has its new name, so this is no failure to write
            pass
        finally:
            os.close(folder)


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
