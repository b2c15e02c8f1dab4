"""Find and stop the processes of a local cluster, recognized by a variable in their environment.

Process ids are not stored, because they are reused: a process with the variable belongs to the cluster, and so do its
descendants, even where one has overwritten its environment. Starts no process and imports no Ray.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

MARK = "REFBERT_CLUSTER"
"""Environment variable that marks a process: `<cluster>/<part>`, such as 1f3c.../worker-1."""

GRACE_S = 20.0


def marked(cluster: str) -> dict[str, list[int]]:
    """Process ids of a cluster by part: the processes with its mark, and all their descendants."""
    found: dict[str, list[int]] = {}
    parts: dict[int, str] = {}
    parents = {pid: parent for pid in _processes() if (parent := _living_parent(pid)) is not None}
    for pid in parents:
        if part := _part(pid, cluster):
            parts[pid] = part
    for pid in parents:  # Ray's workers change their title, which may overwrite their environment
        line, current = [pid], pid
        while current not in parts and parents.get(current, 0) > 1:
            current = parents[current]
            line.append(current)
        if current in parts:
            parts |= dict.fromkeys(line, parts[current])
    for pid, part in sorted(parts.items()):
        found.setdefault(part, []).append(pid)
    return found


def runs(pids: Iterable[int], name: str) -> bool:
    """Whether one of the processes runs a program of this name."""
    return any(name in _command(pid) for pid in pids)


def stop(cluster: str, part: str | None = None, last: str = "") -> int:
    """Stop a cluster's processes, or those of one part, by SIGTERM and after GRACE_S by SIGKILL; return their number.

    Processes of the program `last` are asked to end once no other is left: they serve the others, and wait for them.
    """

    def living() -> list[int]:
        found = marked(cluster)
        return found.get(part, []) if part else [pid for pids in found.values() for pid in pids]

    stopped = len(living())
    deadline = time.monotonic() + GRACE_S
    sent: set[int] = set()
    while pids := living():
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        others = [pid for pid in pids if not (last and runs([pid], last))]
        for pid in others or pids:
            if number == signal.SIGKILL or pid not in sent:
                sent.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        time.sleep(0.1)
    return stopped


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid()]


def _living_parent(pid: int) -> int | None:
    """Parent of a process; None where the process has ended or is a zombie."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state == "Z" else int(parent)


def _part(pid: int, cluster: str) -> str | None:
    wanted = f"{MARK}={cluster}/".encode()
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or another user's
        return None
    return next((entry[len(wanted) :].decode() for entry in variables if entry.startswith(wanted)), None)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
