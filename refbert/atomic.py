"""Files that are written completely or not at all, and their checksums."""

import hashlib
from pathlib import Path


def write_whole(path: Path, content: str) -> None:
    """Write a file completely or not at all."""
    scratch = path.with_name(f"{path.name}.partial")
    scratch.write_text(content)
    scratch.rename(path)


def checksum(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
