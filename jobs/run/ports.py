"""Find TCP ports that nobody listens on, for serve.port=0 (jobs/serve.py) and a cluster's parts, and see whose the ends of
connections on this machine are.

Reserves none of these ports: until its server listens, another user of the machine may. Who listens or is connected is read
from /proc/net/tcp and tcp6 (proc_net_tcp(5)); where there is none (no Linux) it is not known.
"""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from refbert.errors import InputError

_LISTENS, _IS_CONNECTED = "0A", "01"

EVERYWHERE = ("0.0.0.0", "::")


class Listener(NamedTuple):
    """A TCP socket that listens: where, of which user, and its number by which `/proc/PID/fd` names it."""

    address: str
    port: int
    uid: int
    inode: int


class _Connection(NamedTuple):
    here: tuple[str, int]
    there: tuple[str, int]
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
    """Whether another user of this machine listens at an address, by its number or name; for 0.0.0.0 and ::, at any of a port.

    False where that is not known.
    """
    try:
        named = {str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError:
        named = {host}
    hosts = {*named, *EVERYWHERE, *(f"::ffff:{one}" for one in named)}
    is_everywhere = not named.isdisjoint(EVERYWHERE)
    return any(
        one.port == port and one.uid != os.getuid() and (is_everywhere or one.address in hosts) for one in listeners()
    )


def connected_strangers() -> set[int]:
    """Return the other users of this machine whom this process is connected to over TCP: empty where that is not known."""
    ours = set()
    folder = Path("/proc/self/fd")
    for entry in folder.iterdir() if folder.exists() else ():
        with suppress(OSError):  # it is closed by now
            ours.add(os.readlink(entry))
    ends = [_Connection(_as_ipv4(here), _as_ipv4(there), *of) for here, there, *of in _sockets(_IS_CONNECTED)]
    mine = {(end.there, end.here) for end in ends if f"socket:[{end.inode}]" in ours}
    return {end.uid for end in ends if (end.here, end.there) in mine} - {os.getuid()}


def listeners() -> Iterator[Listener]:
    """Yield the TCP sockets of this machine that listen; none where that is not known."""
    for (address, port), _, uid, inode in _sockets(_LISTENS):
        yield Listener(address, port, uid, inode)


def _sockets(state: str) -> Iterator[tuple[tuple[str, int], tuple[str, int], int, int]]:
    """Yield address and port here and there, user and number of each TCP socket in a state."""
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        file = Path("/proc/net") / table
        for line in file.read_text().splitlines()[1:] if file.exists() else ():
            fields = line.split()
            if fields[3] == state:
                yield _end(fields[1], family), _end(fields[2], family), int(fields[7]), int(fields[9])


def _as_ipv4(end: tuple[str, int]) -> tuple[str, int]:
    """An end as the other one has it: a socket of IPv6 says ::ffff:127.0.0.1 for 127.0.0.1."""
    return end[0].removeprefix("::ffff:"), end[1]


def _end(written: str, family: int) -> tuple[str, int]:
    address, _, port = written.partition(":")
    words = struct.unpack(f"<{len(address) // 8}I", bytes.fromhex(address))
    return socket.inet_ntop(family, struct.pack(f">{len(words)}I", *words)), int(port, 16)
