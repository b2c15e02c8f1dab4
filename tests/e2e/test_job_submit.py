"""`python -m cluster`: a head, workers and a store that jobs are submitted to, on loopback, with a token, and gone after."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from cluster.processes import marked
from jobs.run.session import NODE_ENVIRONMENT
from tests.e2e.demo_report import SMALL, assert_complete
from tests.listeners import addresses_of, is_loopback

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

JOIN = """
from jobs.run.session import ray_session
with ray_session():
    import ray
    print(len(ray.nodes()))
"""


class Machine:
    """A home of its own, and the command line as a user has it there."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        unset = ("RAY_", "REFBERT_HOME", *NODE_ENVIRONMENT)  # what a user has not set
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
        self.environment |= {
            "HOME": str(folder), "REFBERT_HOME": str(self.home),
            "REFBERT_CACHE": os.environ.get("REFBERT_CACHE", str(Path("~/.cache/refbert").expanduser())),
        }  # fmt: skip

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            words,
            env=self.environment | more,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=1000,
            check=False,
        )

    def cluster(self, *words: str) -> subprocess.CompletedProcess:
        return self.run(sys.executable, "-m", "cluster", *words)

    def state(self) -> dict:
        return json.loads((self.home / "cluster.json").read_text())


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    yield made
    made.cluster("down")


@pytest.mark.timeout(1200)
def test_jobs_run_on_a_local_cluster_that_starts_repairs_and_stops_as_a_whole(machine, is_long):
    up = machine.cluster("up", "--dashboard-port", "0")
    assert up.returncode == 0, up.stdout + up.stderr
    assert "started head, worker-1, worker-2, store" in up.stdout
    state = machine.state()
    addresses = addresses_of([pid for pids in marked(state["id"]).values() for pid in pids])
    assert len(addresses) >= 1
    assert all(map(is_loopback, addresses)), addresses

    wrong = machine.cluster("submit", "--working-dir", ".", "--", "python", "jobs/distill.py", "train.nope=1")
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    assert "unknown key train.nope" in wrong.stdout

    options = [*SMALL, "train.num_workers=2"]
    words = ["job", "submit", "--address", state["address"], "--", "python", "jobs/demo.py", *options]
    demo = machine.run(str(BIN / "ray"), *words, RAY_AUTH_MODE="token")
    assert demo.returncode == 0, demo.stdout[-4000:] + demo.stderr[-2000:]
    assert assert_complete(machine.home, demo.stdout)["distill"]["world_size"] == 2
    run = machine.home / "runs" / "quickstart"
    assert (run / "student" / "model.safetensors").exists()
    assert json.loads((run / "manifest.json").read_text())["training"]["steps"] == 8
    assert json.loads((machine.home / "store" / "address.json").read_text())["url"] == state["store_url"]

    pids = [pid for part in marked(state["id"]).values() for pid in part]
    workers = [pid for pid in pids if command(pid).startswith("ray::")]
    assert workers
    # With Ray's own niceness of 15 they hardly run beside a busy process; threads that spin take the cores from others.
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in workers} == {0}
    raylets = [pid for pid in pids if "raylet/raylet" in command(pid)]
    assert all(b"OMP_WAIT_POLICY=PASSIVE" in Path(f"/proc/{pid}/environ").read_bytes() for pid in raylets)

    joined = machine.run(sys.executable, "-c", JOIN, RAY_ADDRESS=state["gcs"], PYTHONPATH=str(REPOSITORY))
    assert joined.stdout.split()[-1:] == ["3"], joined.stdout + joined.stderr
    with grpc.insecure_channel(state["gcs"]) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")(b"", timeout=10)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE  # who lacks this user's key is told nothing

    if is_long:
        again = machine.cluster("submit", "--", "python", "jobs/distill.py", *options)
        assert again.returncode == 0, again.stdout + again.stderr
        assert "is complete" in again.stdout
    refused = machine.run(str(BIN / "ray"), "job", "list", "--address", state["address"], RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0

    (raylet,) = (pid for pid in marked(state["id"])["worker-2"] if "raylet/raylet" in command(pid))
    os.kill(raylet, signal.SIGKILL)
    status = machine.cluster("status")
    assert status.returncode == 1, status.stdout + status.stderr
    assert "worker-2 not running" in status.stdout
    assert "SUCCEEDED" in status.stdout
    mended = machine.cluster("up", "--dashboard-port", "0")
    assert "started worker-2\n" in mended.stdout, mended.stdout + mended.stderr
    assert "everything runs already" in machine.cluster("up").stdout
    other = machine.cluster("up", "--workers", "3")
    assert other.returncode == 2
    assert "has 2 workers, not 3; run `python -m cluster down` first" in other.stderr

    down = machine.cluster("down")
    assert down.returncode == 0, down.stdout + down.stderr
    assert marked(state["id"]) == {}
    assert not Path(state["temp_dir"]).exists()
    assert machine.cluster("status").returncode == 3


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["status"], 3, "no cluster was started under"),
        (["submit", "--", "python", "x.py"], 3, "run `python -m cluster up`"),
        (["submit"], 2, "nothing to run; write it after --"),
        (["down"], 0, "no cluster under"),
        (["up", "--host", "0.0.0.0"], 2, "lets other machines reach the store, and $QDRANT_API_KEY holds no key"),
        (["up", "--host", "nowhere"], 2, "--host=nowhere is no IP address"),
        (["up", "--workers", "0"], 2, "0 is not above 0"),
    ],
)
def test_an_impossible_command_ends_with_one_line(tmp_path, monkeypatch, capsys, words, code, message):
    from cluster.__main__ import main

    monkeypatch.setenv("REFBERT_HOME", str(tmp_path))
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)
    try:
        ended = main(words)
    except SystemExit as stopped:
        ended = stopped.code
    said = capsys.readouterr()
    assert ended == code
    assert message in said.out + said.err
