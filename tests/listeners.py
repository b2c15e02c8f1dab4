"""Where processes of this machine listen, as the kernel says it; and somebody who listens where a server was to."""

import ipaddress
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jobs.run.ports import Listener, listeners
from tests.chaos.faults import wait_until


def addresses_of(pids: Iterable[int]) -> set[str]:
    """Addresses on which these processes listen."""
    return {listener.address for listener in listeners_of(pids)}


def listeners_of(pids: Iterable[int]) -> set[Listener]:
    """Where these processes listen."""
    sockets = {f"socket:[{one.inode}]": one for one in listeners()}
    found = set()
    for pid in pids:
        with suppress(FileNotFoundError):  # a process that has ended meanwhile
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                found.add(sockets.get(os.readlink(entry)) if entry.is_symlink() else None)
    return found - {None}


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches the address."""
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


@contextmanager
def stranger_at(port: int) -> Iterator[socket.socket]:
    """What listens at a server's port once that is free; `accept` raises BlockingIOError while nobody has connected."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wait_until(lambda: bound(taken, port), "its port is free", 10)
        taken.listen()
        taken.settimeout(0.0)
        yield taken


def bound(listener: socket.socket, port: int) -> bool:
    """Whether the port was free, and is the listener's now."""
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
