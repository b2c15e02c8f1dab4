"""What a worker sets up: its share of the cores, less what other processes use of them, and which libraries are quiet."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from jobs.run import worker
from jobs.run.worker import ThreadShare, processor_seconds, quiet_libraries


@pytest.fixture
def used(monkeypatch):
    """Say how many cores others use between looks, of which each takes ten seconds; torch's threads are set back."""
    clock, seconds = [0.0], {7: 0.0}
    monkeypatch.setattr(worker, "processor_seconds", lambda: dict(seconds))
    monkeypatch.setattr(worker.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)

    def use(cores: float) -> None:
        clock[0] += 10.0
        seconds[7] += 10.0 * cores

    return use


@pytest.mark.parametrize(("cores", "workers", "busy", "threads"), [
    (2, 1, 0.0, 2), (2, 1, 0.3, 2), (2, 1, 1.0, 1), (2, 1, 5.0, 1), (8, 2, 2.0, 3), (8, 2, 0.0, 4), (2, 4, 0.0, 1),
])  # fmt: skip
def test_threads_follow_what_other_processes_leave(used, cores, workers, busy, threads):
    share = ThreadShare(workers, cores=cores)
    used(busy)
    share.follow()
    assert share.threads == threads


def test_a_change_is_one_line_and_threads_come_back(used, caplog):
    caplog.set_level("INFO")
    share = ThreadShare(1, cores=2)
    for busy in (1.0, 1.0, 0.0):
        used(busy)
        share.follow()
        share.follow()  # too soon to look again
    assert share.threads == 2
    assert [record.getMessage() for record in caplog.records] == [
        "other processes use 1.0 of 2 cores: each worker computes with 1 threads, not 2",
        "other processes use 0.0 of 2 cores: each worker computes with 2 threads, not 1",
    ]


def test_a_number_of_threads_that_was_asked_for_stays(used):
    share = ThreadShare(1, fixed=2, cores=2)
    used(2.0)
    share.follow()
    assert share.threads == 2


def test_processes_of_another_group_are_seen_and_those_of_this_one_are_not():
    spin = [sys.executable, "-c", "while True: pass"]
    other, ours = subprocess.Popen(spin, start_new_session=True), subprocess.Popen(spin)
    try:
        while processor_seconds().get(other.pid, 0.0) < 0.1:
            assert other.poll() is None
        assert ours.pid not in processor_seconds()
        assert os.getpid() not in processor_seconds()
    finally:
        for process in (other, ours):
            process.kill()
            process.wait()


def test_a_service_does_not_say_which_build_of_itself_faiss_has_tried(caplog):
    """faiss 1.15 logs four lines at its import, one of them of a module that it could not find."""
    import faiss.loader

    logging.getLogger("faiss").setLevel(logging.NOTSET)
    caplog.set_level(logging.INFO)
    assert faiss.loader.logger.isEnabledFor(logging.INFO)
    quiet_libraries()
    assert not faiss.loader.logger.isEnabledFor(logging.INFO)
