"""The demo as a user runs it, on a small share of its corpus; in the long form killed, started again, and reused as well."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.faults import is_alive

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    "corpus.max_texts=800", "train.steps=8", "train.num_workers=1", "train.log_every=4",
    "evaluate.texts=60", "evaluate.labelled_train=60",
    "evaluate.speed_repeats=3", "serve.port=0", "demo.corpus.max_texts=400", "demo.shares=[1]",
    "demo.trained_steps=0",
]  # fmt: skip

KEYS = {
    "teacher": {"name", "params", "layers", "dim"},
    "student": {"params", "layers", "dim", "compression"},
    "memory": {"points", "bytes", "criterion", "tokens", "dim", "datatype", "url_kind"},
    "distill": {"steps", "examples_per_s", "data_wait_fraction", "world_size", "zero_stage"},
    "fidelity": {"null"},
    "speed": {"teacher", "student", "student_corrected", "student_with_references"},
    "adapted": {"collection", "version", "answers", "nearness"},
    "run": {"commit", "versions", "hardware", "seconds"},
}
FIDELITY = {"state_mse", "sentence_cosine", "mutual_information_nats", "retrieval_top1"}
SPEED = {"batch", "latency_ms_p50", "latency_ms_p99", "examples_per_s"}


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


@pytest.mark.timeout(600)
def test_the_demo_ends_with_a_complete_report(tmp_path, is_long):
    if is_long:  # of jobs alone, kills and reuse are tested in tests/chaos and tests/integration
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
    printed = finish(start(tmp_path, log), log)
    run = tmp_path / "runs" / "quickstart"
    report = json.loads((run / "report.json").read_text())
    for section, keys in KEYS.items():
        assert keys <= set(report[section]), section
    assert set(report["fidelity"]["null"]) == FIDELITY  # the student that reads nothing
    for contender in report["speed"].values():
        assert set(contender) == SPEED
        assert contender["examples_per_s"] > 0
    # The same numbers as an undisturbed run's: every passage of these corpora is a distinct text.
    stored = {json.loads(file.read_text())["counts"]["train"] for file in tmp_path.glob("corpora/*/manifest.json")}
    growth = json.loads((run / "growth.json").read_text())
    (step,) = growth["steps"]  # several, and the control: tests/integration/jobs/test_new_domain.py
    assert step["references"] == report["adapted"]["points"]
    assert stored == {report["memory"]["points"], step["references"]}
    assert step["heldout"]["alone"] <= step["heldout"]["references"]
    assert report["teacher"]["params"] == 22_713_216
    assert report["student"]["compression"] == pytest.approx(22_713_216 / report["student"]["params"])
    assert "read:" in printed
    assert str(run / "report.md") in printed

    pid = server_pid(tmp_path)
    deadline = time.monotonic() + 20
    while pid and is_alive(pid):  # the store ends with its last user
        assert time.monotonic() < deadline
        time.sleep(0.2)

    if is_long:
        log = tmp_path / "third.log"
        printed = finish(start(tmp_path, log), log)
        assert f"skipped {report['memory']['points']}, duplicate 0, written 0" in printed
        assert "is complete" in printed
