"""Ports to listen on: free ones, and a host that is not here."""

import os
import socket
import subprocess
import sys

import pytest

from jobs.run.ports import connected_strangers, free_ports, is_anothers
from refbert.errors import InputError


def test_ports_differ_and_can_be_listened_on():
    first, second = free_ports(2, "127.0.0.1")
    assert first != second
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", first))
        other.bind(("127.0.0.1", second))


def test_a_host_of_another_machine_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"^cannot listen on 192\.0\.2\.1: .*; give an address of this machine$"):
        free_ports(1, "192.0.2.1")


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="the kernel does not say who listens")
@pytest.mark.parametrize(("family", "bound"), [
    (socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"), (socket.AF_INET6, "::ffff:127.0.0.1"),
])  # fmt: skip
def test_a_port_where_another_user_listens_is_seen(monkeypatch, family, bound):
    with socket.socket(family) as opened:
        try:
            opened.bind((bound, 0))
        except OSError:
            pytest.skip(f"this machine has no {bound}")
        port = opened.getsockname()[1]
        monkeypatch.setattr(os, "getuid", lambda: opened.fileno() + 10_000)
        assert not is_anothers("127.0.0.1", port), "nobody listens yet"
        opened.listen()
        assert is_anothers("127.0.0.1", port)
        assert not is_anothers("127.0.0.1", free_ports(1, "127.0.0.1")[0])
        assert is_anothers("192.0.2.1", port) == (bound in ("0.0.0.0", "::"))
        monkeypatch.undo()
        assert not is_anothers("127.0.0.1", port), "this user's own"


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="the kernel does not say who listens")
def test_a_port_where_another_user_listens_is_seen_by_any_name_of_its_address(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(os, "getuid", lambda: 10_000)
        for name in ("localhost", "0.0.0.0", "::"):
            assert is_anothers(name, port)
        assert not is_anothers("no-such-host.invalid", port)


CALL = """
import encodings.idna, os, socket, sys
os.setuid(65534)  # who may not read this Python's modules
caller = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
caller.recv(1)
"""


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="the kernel does not say who is connected")
@pytest.mark.skipif(os.getuid() != 0, reason="nobody else can be played")
@pytest.mark.parametrize(("family", "bound"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::")])
def test_another_user_at_the_other_end_of_a_connection_is_seen(family, bound):
    with socket.socket(family) as server:
        server.bind((bound, 0))
        server.listen()
        server.settimeout(20)
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            assert connected_strangers() == set(), "this user's own"
        stranger = subprocess.Popen([sys.executable, "-c", CALL, str(port)])
        with server.accept()[0]:
            assert connected_strangers() == {65534}
        assert stranger.wait(10) == 0
        assert connected_strangers() == set()
