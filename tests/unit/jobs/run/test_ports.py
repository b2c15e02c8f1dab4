"""Ports to listen on: free ones, and a host that is not here."""

import socket

import pytest

from jobs.run.ports import free_ports
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
