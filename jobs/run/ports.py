"""Find TCP ports that nobody listens on, for serve.port=0 (jobs/serve.py) and a cluster's parts, and see who listens at one.

Reserves none of them: until its server listens, another user of the machine may.
"""

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from refbert.errors import InputError

_LISTENS = "0A"


class Listener(NamedTuple):
    """A TCP socket that listens: where, of which user, and its number by which `/proc/PID/fd` names it."""

    address: str
    port: int
    uid: int
    inode: int


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
    """Whether another user of this machine listens at an address; False where that is not known (no Linux)."""
    hosts = {host, "0.0.0.0", "::", f"::ffff:{host}"}
    return any(one.address in hosts and one.port == port and one.uid != os.getuid() for one in listeners())


def listeners() -> Iterator[Listener]:
    """Yield the TCP sockets of this machine that listen, by /proc/net/tcp and tcp6 (proc_net_tcp(5)); none without these."""
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        file = Path("/proc/net") / table
        for line in file.read_text().splitlines()[1:] if file.exists() else ():
            fields = line.split()
            if fields[3] == _LISTENS:
                address, _, port = fields[1].partition(":")
                words = struct.unpack(f"<{len(address) // 8}I", bytes.fromhex(address))
                packed = struct.pack(f">{len(words)}I", *words)
                yield Listener(socket.inet_ntop(family, packed), int(port, 16), int(fields[7]), int(fields[9]))
