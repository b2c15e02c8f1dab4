"""The demo as a user runs it, on a small share of its corpus: killed, started again, and reused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.faults import is_alive
from tests.e2e.demo_report import SMALL, assert_complete

REPOSITORY = Path(__file__).parents[2]


def start(home: Path, log: Path) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, REPOSITORY / "jobs" / "demo.py", *SMALL],
            env={**environment, "REFBERT_HOME": str(home)}, cwd=home, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def server_pid(home: Path) -> int | None:
    address = home / "store" / "address.json"
    return json.loads(address.read_text())["pid"] if address.exists() else None


def finish(process: subprocess.Popen, log: Path) -> str:
    assert process.wait(timeout=560) == 0, log.read_text()[-4000:]
    return log.read_text()


@pytest.mark.long  # its sibling is in test_job_submit.py; of jobs alone, kills and reuse are tested in chaos and integration
@pytest.mark.timeout(900)
def test_a_killed_demo_ends_with_a_complete_report_and_another_reuses_what_there_is(tmp_path):
    log = tmp_path / "first.log"
    killed = start(tmp_path, log)
    deadline = time.monotonic() + 120
    while "ingest " not in log.read_text():  # its bar: some references are stored, not all
        assert killed.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()

    log = tmp_path / "second.log"
    report = assert_complete(tmp_path, finish(start(tmp_path, log), log))

    pid = server_pid(tmp_path)
    deadline = time.monotonic() + 20
    while pid and is_alive(pid):  # the store ends with its last user
        assert time.monotonic() < deadline
        time.sleep(0.2)

    log = tmp_path / "third.log"
    printed = finish(start(tmp_path, log), log)
    assert f"skipped {report['memory']['points']}, duplicate 0, written 0" in printed
    assert "is complete" in printed
