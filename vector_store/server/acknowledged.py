"""How many points a collection must hold by what was acknowledged: each write replaces a line in a file beside the shard.

    <collection>/acknowledged.json    {"fewest": 400, "most": 400, "removed": 50, "log": {"open-1": 33554432, ...}}

The engine opens a shard whose files are cut or gone as if what they held had never been written; the catalogue finds that out
by the line. While a write is under way the line allows for its outcome, done or not; with the write's answer the two numbers
are equal, and `log` names the files of the engine's log with their sizes. A line of one page reaches the page cache whole or
not at all, so it survives a kill of the process; each flush of the shard puts it on the disk. Reads no points and imports no
engine.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from google.protobuf.message import Message

from vector_store.protocol import api

log = logging.getLogger(__name__)

FILE = "acknowledged.json"
LINE_BYTES = 4096

_Log = dict[str, int]


@dataclass(frozen=True)
class Expected:
    """What a shard must hold when it is opened: from `fewest` to `most` points.

    `removed` points were deleted or replaced since the shard was made, and its files may still hold them. `log` has the sizes
    of the log's files; None while a write is under way.
    """

    fewest: int
    most: int
    removed: int = 0
    log: _Log | None = None


class Acknowledged:
    """The line of one collection; the caller serializes its writes."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._file: int | None = None

    def read(self) -> Expected | None:
        """What was expected last; None where there is no line, or a damaged one, which is logged."""
        try:
            content = self._path.read_bytes().split(b"\n", 1)[0]
            return Expected(**json.loads(content))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s is damaged (%s): what was acknowledged before is not known", self._path, error)
            return None

    def write(self, expected: Expected) -> None:
        """Replace the line."""
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
        line = json.dumps(asdict(expected)).encode()
        os.pwrite(self._file, line.ljust(LINE_BYTES - 1) + b"\n", 0)

    def sync(self) -> None:
        """Have the disk hold the line."""
        if self._file is not None:
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def log_files(shard_directory: Path) -> _Log:
    """Names and sizes of the files of a shard's log, without the drafts that the engine prepares."""
    found = {}
    for entry in os.scandir(shard_directory / "wal"):
        if entry.name.startswith(("open-", "closed-", "first-index")):
            try:
                found[entry.name] = entry.stat().st_size
            except FileNotFoundError:  # renamed or dropped meanwhile
                continue
    return found


def log_damage(shard_directory: Path, expected: Expected | None) -> str | None:
    """What is missing of the log that was there with the last acknowledged write; None where all is well or not known."""
    if expected is None or expected.log is None:
        return None
    folder = shard_directory / "wal"
    found = log_files(shard_directory) if folder.is_dir() else {}
    for name, num_bytes in sorted(expected.log.items()):
        # The engine renames a full `open-N` to `closed-N`, and later drops it: only after a write, which is then noted.
        if name not in found:
            return f"{folder / name} is missing"
        if found[name] < num_bytes:
            return f"{folder / name} has {found[name]} bytes of {num_bytes}"
    return None


def most_changed(request: Message) -> tuple[int | None, int]:
    """Most points that a write removes (None: any number) and adds."""
    match request:
        case api.UpsertPoints():
            return 0, len(request.points)
        case api.DeletePoints():
            return _selected(request.points), 0
        case api.PointsUpdateOperation():
            match request.WhichOneof("operation"):
                case "upsert":
                    return 0, len(request.upsert.points)
                case "delete_points":
                    return _selected(request.delete_points.points), 0
    return 0, 0


def most_rewritten(request: Message) -> int | None:
    """Most points whose payload a write changes (None: any number). The engine writes such a point anew: out of the segment
    that has the index, which keeps the old one."""
    match request:
        case api.SetPayloadPoints() | api.DeletePayloadPoints():
            return _selected(request.points_selector)
        case api.PointsUpdateOperation():
            kind = request.WhichOneof("operation")
            if kind in ("set_payload", "delete_payload"):
                return _selected(getattr(request, kind).points_selector)
    return 0


def _selected(selector: api.PointsSelector) -> int | None:
    return len(selector.points.ids) if selector.HasField("points") else None
