"""Ports to listen on: free ones, and a host that is not here."""

import os
import socket

import pytest

from jobs.run.ports import free_ports, is_anothers
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
