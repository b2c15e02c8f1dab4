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

from refbert.errors import InputError, UnavailableError

_LISTENS, _IS_CONNECTED = "0A", "01"

EVERYWHERE = ("0.0.0.0", "::")


class Listener(NamedTuple):
    """A TCP socket that listens: where, of which user, and its number by which `/proc/PID/fd` names it."""

    address: str
    port: int
    uid: int
    inode: int


class _Socket(NamedTuple):
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


def require_own(address: str, whose: str) -> None:
    """Raise UnavailableError where another user of this machine listens at [http://]HOST:PORT.

    For a port to which this user's clients say what only this user's server is to hear. `whose` ends the line: what the port
    was taken for, and what to do.
    """
    address = address.removeprefix("http://")
    host, _, port = address.rpartition(":")
    if is_anothers(host, int(port)):
        raise UnavailableError(f"another user of this machine listens at {address}, {whose}")


def connected_strangers() -> set[int]:
    """Return the other users of this machine whom this process is connected to over TCP: empty where that is not known."""
    ours = set()
    folder = Path("/proc/self/fd")
    for entry in folder.iterdir() if folder.exists() else ():
        with suppress(OSError):  # it is closed by now
            ours.add(os.readlink(entry))
    connected = list(_sockets(_IS_CONNECTED))
    other_ends = {_as_ipv4(one.there, one.here) for one in connected if f"socket:[{one.inode}]" in ours}
    return {one.uid for one in connected if _as_ipv4(one.here, one.there) in other_ends} - {os.getuid()}


def listeners() -> Iterator[Listener]:
    """Yield the TCP sockets of this machine that listen; none where that is not known."""
    for one in _sockets(_LISTENS):
        yield Listener(*one.here, one.uid, one.inode)


def _sockets(state: str) -> Iterator[_Socket]:
    """Yield the TCP sockets of this machine in a state, with address and port at both ends."""
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        file = Path("/proc/net") / table
        for line in file.read_text().splitlines()[1:] if file.exists() else ():
            fields = line.split()
            if fields[3] == state:
                yield _Socket(_end(fields[1], family), _end(fields[2], family), int(fields[7]), int(fields[9]))


def _as_ipv4(*ends: tuple[str, int]) -> tuple[tuple[str, int], ...]:
    """Ends as a socket of IPv4 has them: one of IPv6 says ::ffff:127.0.0.1 for 127.0.0.1."""
    return tuple((address.removeprefix("::ffff:"), port) for address, port in ends)


def _end(written: str, family: int) -> tuple[str, int]:
    address, _, port = written.partition(":")
    words = struct.unpack(f"<{len(address) // 8}I", bytes.fromhex(address))
    return socket.inet_ntop(family, struct.pack(f">{len(words)}I", *words)), int(port, 16)
