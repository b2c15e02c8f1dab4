"""Hosts that are network namespaces of this machine: each with its own address, on one switch, with links that can be cut.

They share files and processes with the machine, and nothing of the network. Needs root and iproute2.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

INTERFACE = "eth0"


class Network:
    """Hosts by name, and the switch between them."""

    def __init__(self, prefix: str, hosts: tuple[str, ...]) -> None:
        self.prefix = prefix
        self.addresses = {host: f"10.213.7.{number + 1}" for number, host in enumerate(hosts)}

    def namespace(self, host: str) -> str:
        return f"{self.prefix}-{host}"

    def make(self) -> None:
        switch = self.namespace("switch")
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for host, address in self.addresses.items():
            namespace, port = self.namespace(host), self._port(host)
            ip("netns", "add", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
            ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", INTERFACE, "netns", namespace)
            ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            ip("-n", namespace, "addr", "add", f"{address}/24", "dev", INTERFACE)
            ip("-n", namespace, "link", "set", INTERFACE, "up")

    def remove(self) -> None:
        """End what runs in the namespaces, and delete them; whatever of them there is."""
        for name in [*self.addresses, "switch"]:
            if name in self.addresses:
                self.kill_all(name)
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", self.namespace(name))

    def words(self, host: str, *words: str) -> list[str]:
        """The command line that runs these words on a host."""
        return ["ip", "netns", "exec", self.namespace(host), *words]

    def cut(self, host: str) -> None:
        """Unplug a host: packets are lost without a word."""
        ip("-n", self.namespace("switch"), "link", "set", self._port(host), "down")

    def mend(self, host: str) -> None:
        ip("-n", self.namespace("switch"), "link", "set", self._port(host), "up")

    def pids(self, host: str) -> list[int]:
        found = subprocess.run(
            ["ip", "netns", "pids", self.namespace(host)], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in found.stdout.split()]

    def running(self, host: str, name: str) -> list[int]:
        """Processes of a host whose command line begins with a name."""
        found = []
        for pid in self.pids(host):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().startswith(name):
                    found.append(pid)
        return found

    def kill_all(self, host: str) -> None:
        """Kill -9 everything on a host."""
        while pids := self.pids(host):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _port(self, host: str) -> str:
        return f"port{list(self.addresses).index(host)}"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def network(*hosts: str) -> Iterator[Network]:
    """Make hosts for the time of a block; skips the test where they cannot be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    made = Network(f"refbert{os.getpid()}", hosts)
    try:
        try:
            made.make()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {' '.join(error.cmd)}: {error.stderr.strip()}")
        yield made
    finally:
        made.remove()
