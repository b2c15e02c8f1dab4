"""`python jobs/serve.py` as a process of its own: a proxy of Ray's that is killed, and its end when it is told to."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import ray

from tests.chaos.faults import kill_session, titled, wait_until
from tests.listeners import listeners_of

CUT_OFF = ("ReadError", "RemoteProtocolError")
"""A connection that ends before the response has come."""

SERVE = Path(__file__).parents[4] / "jobs" / "serve.py"


@pytest.fixture(scope="module")
def command(trained, trained_home, ray_cluster, tmp_path_factory):
    """The service of the trained run on this session's Ray, its address, and what it prints."""
    folder = tmp_path_factory.mktemp("serve")
    log = folder / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, SERVE, trained.run_directory / "config.yaml", "serve.port=0"],
            env={
                **os.environ, "REFBERT_HOME": str(trained_home), "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
            },
            cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: "page at" in log.read_text() or process.poll() is not None, "it serves", 120)
        found = re.search(r"page at (http://\S+),", log.read_text())
        assert found, log.read_text()
        yield process, found[1], log
    finally:
        kill_session(process.pid)


def proxies(address: str) -> set[int]:
    """Ray Serve's HTTP proxies at this address: another Ray of this machine may have some, too."""
    port = int(address.rpartition(":")[2])
    return {pid for pid in titled("ray::ProxyActor") if port in {one.port for one in listeners_of([pid])}}


def test_a_killed_proxy_is_replaced_and_the_service_answers_at_the_same_address(command):
    process, address, _ = command
    (killed,) = proxies(address)
    os.kill(killed, signal.SIGKILL)
    started_s = time.monotonic()

    def answers() -> bool:
        with suppress(httpx.TransportError):
            return httpx.post(f"{address}/v1/embeddings", json={"input": "a text"}, timeout=10).status_code == 200
        return False

    wait_until(answers, "it answers again", 25)
    print(f"answers again after {time.monotonic() - started_s:.1f} s")  # 26 to 29 s where Ray checks each 10 s
    assert proxies(address) - {killed}
    assert process.poll() is None


def test_sigterm_ends_a_service_in_one_line_once_what_is_in_flight_is_answered(command, steady_load):
    process, address, log = command
    before = log.read_text()
    with httpx.Client(base_url=address, timeout=60) as client, steady_load(client, threads=6) as statuses:
        wait_until(lambda: len(statuses) > 20, "it answers", 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 143, log.read_text()
    outcomes = [status for (status,) in statuses]
    assert set(outcomes) <= {200, 503, "ConnectError", *CUT_OFF}
    # The proxy ends last, with the connections that are open: all that the service had was answered long before. A thread that
    # was cut off may open another one before the port is closed.
    cut_off = [at for at, status in enumerate(outcomes) if status in CUT_OFF]
    assert len(cut_off) <= 2 * 6
    assert not cut_off or outcomes.index(503) < cut_off[0]
    said = log.read_text().removeprefix(before).strip().splitlines()
    assert said == ["interrupted; start the same command again to go on"]
