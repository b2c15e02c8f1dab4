"""Where processes of this machine listen, as the kernel says it."""

import ipaddress
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LISTENING = "0A"


def listeners(pids: Iterable[int]) -> set[str]:
    """Addresses on which these processes listen."""
    sockets = {}
    for table, size in (("tcp", 4), ("tcp6", 16)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING:
                words = bytes.fromhex(fields[1].split(":")[0])
                swapped = b"".join(words[start : start + 4][::-1] for start in range(0, size, 4))
                sockets[f"socket:[{fields[9]}]"] = socket.inet_ntop(
                    socket.AF_INET if size == 4 else socket.AF_INET6, swapped
                )
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
