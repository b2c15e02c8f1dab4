"""Processes of a cluster, found by their mark and stopped in the order that they need."""

import os
import subprocess
import sys

import pytest

from cluster import processes
from cluster.processes import MARK, marked, stop

NODE = "import time; print('up', flush=True); time.sleep(120)"
SERVER = """
import os, signal, sys, time
def end(*_):  # like Ray's: never, where a node is connected by then
    try:
        os.kill(int(sys.argv[2]), 0)
    except ProcessLookupError:
        sys.exit(0)
signal.signal(signal.SIGTERM, end)
print('up', flush=True)
while True:
    time.sleep(1)
"""


@pytest.fixture
def start():
    started = []

    def run(part: str, *words: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", *words], env={**os.environ, MARK: f"a-cluster-of-tests/{part}"},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "up\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_a_server_that_waits_for_its_nodes_is_asked_to_end_after_them(start, monkeypatch):
    node = start("worker-1", NODE)
    server = start("head", SERVER, "nodes_server", str(node.pid))
    assert {part: len(pids) for part, pids in marked("a-cluster-of-tests").items()} == {"worker-1": 1, "head": 1}
    usual = processes.marked

    def reaped(cluster: str) -> dict[str, list[int]]:
        node.poll()  # its parent is this test: a process that has ended is there until then
        return usual(cluster)

    monkeypatch.setattr(processes, "marked", reaped)
    monkeypatch.setattr(processes, "GRACE_S", 10)
    assert stop("a-cluster-of-tests", last="nodes_server") == 2
    assert server.wait() == 0, "it was killed"


def test_a_process_that_does_not_end_when_asked_is_killed(start, monkeypatch):
    node = start("worker-1", NODE)
    server = start("head", SERVER, "nodes_server", str(node.pid))
    monkeypatch.setattr(processes, "GRACE_S", 0.3)
    assert stop("a-cluster-of-tests", "head", last="nodes_server") == 1
    assert server.wait() == -9
    assert node.poll() is None, "it is of another part"
