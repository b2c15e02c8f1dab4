"""What the fault tests do to processes, and how they tell what a memory has kept."""

import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from qdrant_client import grpc as api

from tests.chaos.load import make_point, point_id
from vector_store.client import Client
from vector_store.codec import FIRST_POINT
from vector_store.config import StoreConfig
from vector_store.schema import Parts
from vector_store.store import Store

PATIENCE_S = 600.0
"""Long beyond reason on a fast machine: the tests wait for events, never for durations."""


def wait_until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:g} s in vain until {what}"
        time.sleep(0.01)


def server_pid(path: Path) -> int:
    return json.loads((path / "address.json").read_text())["pid"]


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    return _stat(pid)[:1] not in ([], ["Z"])


def kill_server(path: Path, patience_s: float = PATIENCE_S) -> None:
    """Kill -9, and wait until the kernel has let go of what it held."""
    pid = server_pid(path)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the killed server is gone", patience_s)


def children(pid: int) -> list[int]:
    """Living processes that this one has started."""
    return [other for other in _processes() if (stat := _stat(other)) and stat[0] != "Z" and int(stat[1]) == pid]


def titled(title: str) -> list[int]:
    """Processes of this machine whose command line begins so; Ray's workers name in it what they run."""
    found = []
    for pid in _processes():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title.encode()):
                found.append(pid)
    return found


def kill_session(pid: int) -> None:
    """Kill -9 everything in the session that `pid` leads, process groups of their own included."""

    def members() -> list[int]:
        return [other for other in _processes() if (stat := _stat(other)) and stat[0] != "Z" and int(stat[3]) == pid]

    def kill_members() -> bool:
        found = members()
        for member in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        return not found

    wait_until(kill_members, f"session {pid} is empty")


class Audit(NamedTuple):
    """What a memory holds of the numbers 0 to `wanted` - 1."""

    acknowledged: int
    lost: int
    duplicated: int
    readable: int
    wanted: int
    strange: int

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self._asdict().items())

    @property
    def is_exact(self) -> bool:
        """Everything, once, and nothing else."""
        return self.lost == self.duplicated == self.strange == 0 and self.readable == self.wanted


def audit(client: Client, config: StoreConfig, num_points: int, acknowledged_ids: Iterable[str]) -> Audit:
    """Read every point back and compare it bit by bit with what its number makes.

    lost: acknowledged and not readable as written; duplicated: ids that a scroll meets again, or that `count` counts too
    many; strange: ids that no number has.
    """
    store = Store(client, config)
    manifest = store.manifest()
    readable = {
        point_id(number)
        for start in range(0, num_points, 500)
        for number in _readable(store, range(start, min(start + 500, num_points)), manifest)
    }
    met = Counter(scrolled_ids(client, config.collection))
    acknowledged_ids = set(acknowledged_ids)
    return Audit(
        acknowledged=len(acknowledged_ids),
        lost=len(acknowledged_ids - readable),
        duplicated=met.total() - len(met) + abs(store.count() - len(met)),
        readable=len(readable),
        wanted=num_points,
        strange=len(met.keys() - {point_id(number) for number in range(num_points)}),
    )


def scrolled_ids(client: Client, collection: str) -> Iterable[str]:
    """The id of every point, page by page."""
    request = api.ScrollPoints(
        collection_name=collection,
        offset=api.PointId(uuid=FIRST_POINT),
        limit=1000,
        with_payload=api.WithPayloadSelector(enable=False),
    )
    while True:
        page = client.call(client.points.Scroll, request, PATIENCE_S)
        yield from (point.id.uuid for point in page.result)
        if not page.HasField("next_page_offset"):
            return
        request.offset.CopyFrom(page.next_page_offset)


def _readable(store: Store, numbers: range, manifest) -> list[int]:
    found = store.fetch([point_id(number) for number in numbers], Parts(text=True))
    kept = []
    for row, number in enumerate(numbers):
        wanted, length = make_point(number, manifest), int(found.mask[row].sum())
        if (
            found.ids[row] == [wanted.id]
            and found.texts[row] == [wanted.text]
            and np.array_equal(found.states[row, :length].view(np.uint16), wanted.states.view(np.uint16))
            and np.array_equal(found.token_ids[row, :length], wanted.token_ids)
        ):
            kept.append(number)
    return kept


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on: state, parent, group, session; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
