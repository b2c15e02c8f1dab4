"""Find TCP ports that nobody listens on, for serve.port=0 (jobs/serve.py) and a cluster's parts, and see who listens at one.

Reserves none of them: until its server listens, another user of the machine may.
"""

import os
import socket
import sys
from pathlib import Path

from refbert.errors import InputError

_LISTENS = "0A"


def free_ports(count: int, host: str) -> list[int]:
    """Find ports that nobody listens on now. Raises InputError where `host` is not an address of this machine."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for opened in sockets:
            opened.bind((host, 0))
        return [opened.getsockname()[1] for opened in sockets]
    except OSError as error:
        raise InputError(f"cannot listen on {host}: {error.strerror}; give an address of this machine") from None
    finally:
        for opened in sockets:
            opened.close()


def is_anothers(host: str, port: int) -> bool:
    """Whether another user of this machine listens at an IPv4 address; False where that is not known (no Linux, IPv6)."""
    return sys.platform == "linux" and ":" not in host and any(uid != os.getuid() for uid in _listeners(host, port))


def _listeners(host: str, port: int) -> set[int]:
    """User ids of the sockets that listen at the address or at every address, by /proc/net/tcp and tcp6 (proc_net_tcp(5))."""
    own = socket.inet_aton(host)[::-1].hex().upper()
    hosts = {own, "0" * 8, "0" * 32, f"{'0' * 16}FFFF0000{own}"}
    found = set()
    for table in ("tcp", "tcp6"):
        file = Path("/proc/net") / table
        for line in file.read_text().splitlines()[1:] if file.exists() else ():
            fields = line.split()
            address, _, number = fields[1].rpartition(":")
            if fields[3] == _LISTENS and address in hosts and int(number, 16) == port:
                found.add(int(fields[7]))
    return found
