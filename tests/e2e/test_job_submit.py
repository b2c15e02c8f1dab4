"""`ray start --head`, then `ray job submit`, with and without --working-dir: trains, leaves a student, and resumes."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for opened in sockets:
        opened.bind(("127.0.0.1", 0))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


@pytest.fixture
def head(tmp_path):
    """A Ray head of its own: own home, ports and temporary directory, ended by its processes' session directory."""
    port, dashboard, agent, metrics, runtime_env, client = free_ports(6)
    folder = Path("/tmp") / f"refbert-test-{os.getpid()}"  # Ray's socket paths must stay short
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "REFBERT_HOME"))}
    environment |= {
        "HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "PATH": f"{BIN}:{os.environ['PATH']}",
        "REFBERT_CACHE": os.environ.get("REFBERT_CACHE", str(Path("~/.cache/refbert").expanduser())),
    }  # fmt: skip
    ray = str(BIN / "ray")
    subprocess.run([ray, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    subprocess.run(
        [
            ray, "start", "--head", "--disable-usage-stats", "--num-cpus=2", f"--port={port}", "--node-ip-address=127.0.0.1",
            f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}",
            f"--runtime-env-agent-port={runtime_env}", f"--ray-client-server-port={client}", f"--temp-dir={folder}",
        ],
        env=environment, cwd=REPOSITORY, check=True, capture_output=True,
    )  # fmt: skip
    yield f"http://127.0.0.1:{dashboard}", environment
    subprocess.run(["pkill", "-TERM", "-f", str(folder)], check=False)
    time.sleep(2)
    subprocess.run(["pkill", "-KILL", "-f", str(folder)], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def submit(head, *arguments: str, working_dir: bool) -> str:
    address, environment = head
    options = ["--working-dir", "."] if working_dir else []
    done = subprocess.run(
        [BIN / "ray", "job", "submit", "--address", address, *options, "--", "python", "jobs/distill.py", *arguments],
        env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_a_submitted_job_trains_leaves_a_student_and_says_when_it_is_complete(head, tmp_path, tiny_run):
    run_file = tmp_path / "run.yaml"
    run_file.write_text(yaml.safe_dump(tiny_run(name="submitted").model_dump(mode="json")))
    submit(head, str(run_file), working_dir=True)
    run = tmp_path / ".refbert" / "runs" / "submitted"  # its own directory is thrown away, so it lives in the home
    assert (run / "student" / "model.safetensors").exists()
    assert json.loads((run / "manifest.json").read_text())["training"]["steps"] == 8
    assert "is complete" in submit(head, str(run_file), working_dir=False)
    submit(head, str(run_file), "name=again", working_dir=False)
    assert (tmp_path / ".refbert" / "runs" / "again" / "student" / "model.safetensors").exists()
