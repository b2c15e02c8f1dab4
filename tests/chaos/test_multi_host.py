"""A training on several hosts, each with a network of its own, and what it costs when one of them fails.

Ray head, two workers and the store are each a host; jobs are submitted from a fifth. Every disturbed run must end with the
losses of the undisturbed one: steps after the newest checkpoint are made again, look-ups wait for the store.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from jobs.run.session import NODE_ENVIRONMENT
from tests.chaos.network import INTERFACE, Network, network

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PATIENCE_S = 900.0

STEPS, SAVE_EVERY = 150, 25
DISTURBED_AT = SAVE_EVERY + 15
"""Between two checkpoints, so that there is something to repeat."""

TOLERANCE = 1e-4
"""Relative, of every step's loss: one worker adds float32 gradients in another order than two, and Adam carries it on."""

STORE_AWAY_S = 30.0


class Run(NamedTuple):
    """What one training left behind, and what it took."""

    losses: list[float]
    training: dict[str, float]
    starts: list[dict]
    seconds: float
    points: int


class Site:
    """The hosts with what runs on them."""

    def __init__(self, net: Network, folder: Path, run_file: Path) -> None:
        self.net, self.folder, self.run_file = net, folder, run_file
        self.home = folder / "home"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "REFBERT_"))}
        self.environment = {
            **NODE_ENVIRONMENT, **inherited, "HOME": str(folder), "REFBERT_HOME": str(self.home), "RAY_AUTH_MODE": "token",
            "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": INTERFACE,
            "QDRANT_API_KEY": "a-key", "OMP_NUM_THREADS": "1",
            "REFBERT_CACHE": os.environ.get("REFBERT_CACHE", str(Path("~/.cache/refbert").expanduser())),
        }  # fmt: skip
        self.store_url = f"http://{net.addresses['store']}:6334"
        self.store: subprocess.Popen | None = None

    def run(self, host: str, *words: str) -> str:
        done = subprocess.run(
            self.net.words(host, *words),
            env=self.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
        return done.stdout

    def start(self) -> None:
        self.run("head", "ray", "get-auth-token", "--generate")
        address = self.net.addresses["head"]
        self.start_node("head", "--head", "--num-cpus=0", f"--dashboard-host={address}", "--port=6379")
        for host in ("worker-1", "worker-2"):
            self.start_worker(host)
        self.start_store()

    def start_node(self, host: str, *options: str) -> None:
        self.run(
            host, "ray", "start", "--disable-usage-stats", f"--node-ip-address={self.net.addresses[host]}",
            f"--temp-dir={self.temp_dir(host)}", "--object-store-memory=200000000", *options,
        )  # fmt: skip

    def temp_dir(self, host: str) -> Path:
        return Path(tempfile.gettempdir()) / self.net.namespace(host)  # Ray's socket paths must stay short

    def start_worker(self, host: str) -> None:
        self.start_node(host, "--num-cpus=1", f"--address={self.net.addresses['head']}:6379")

    def start_store(self) -> None:
        words = [sys.executable, "-m", "vector_store", "serve", str(self.home / "store"), "--host"]
        with (self.folder / "store.log").open("ab") as output:
            self.store = subprocess.Popen(
                self.net.words("store", *words, self.net.addresses["store"], "--port", "6334"), env=self.environment,
                cwd=REPOSITORY, stdout=output, stderr=output,
            )  # fmt: skip

    def points(self) -> int:
        """How many references are stored whole."""
        said = self.run("user", sys.executable, "-m", "vector_store", "verify", self.store_url)
        checked, bad = map(int, re.search(r"(\d+) points checked, (\d+) bad", said).groups())
        return checked - bad

    def train(self, name: str, disturb: Callable[["Training"], None] | None = None) -> Run:
        """Submit a training from the fifth host, disturb it amid, and wait for its end."""
        began = time.monotonic()
        log = self.folder / f"{name}.log"
        submit = self.net.words(
            "user", "ray", "job", "submit", f"--address=http://{self.net.addresses['head']}:8265", "--", "python",
            "jobs/distill.py", str(self.run_file), f"name={name}", f"store.url={self.store_url}",
        )  # fmt: skip
        with log.open("w") as output:
            job = subprocess.Popen(submit, env=self.environment, cwd=REPOSITORY, stdout=output, stderr=output)
        training = Training(self.home / "runs" / name, log, job)
        try:
            if disturb:
                training.wait(lambda: training.step() >= DISTURBED_AT, f"step {DISTURBED_AT}")
                disturb(training)
            training.wait(lambda: job.poll() is not None, "the job ends", may_end=True)
        finally:
            job.kill()
        assert job.returncode == 0, log.read_text()[-6000:]
        lines = [json.loads(line) for line in (training.directory / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        assert (training.directory / "student" / "model.safetensors").exists()
        made = json.loads((training.directory / "manifest.json").read_text())["training"]
        return Run(
            [line["train/loss"] for line in lines], made, training.starts(), time.monotonic() - began, self.points()
        )


class Training:
    """A training under way, as it is seen from outside."""

    def __init__(self, directory: Path, log: Path, job: subprocess.Popen) -> None:
        self.directory, self.log, self.job = directory, log, job

    def step(self) -> int:
        metrics = self.directory / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def starts(self) -> list[dict]:
        return [json.loads(line) for line in (self.directory / "starts.jsonl").read_text().splitlines()]

    def wait(self, condition: Callable[[], object], what: str, may_end: bool = False) -> float:
        """Wait for an event; returns the seconds it took."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < PATIENCE_S, f"no {what}: {self.log.read_text()[-6000:]}"
            assert may_end or self.job.poll() is None, f"ended before {what}: {self.log.read_text()[-6000:]}"
            time.sleep(0.05)
        return time.monotonic() - began

    def goes_on_after(self, mend: Callable[[], None]) -> str:
        """Mend what a standing training waits for, and wait until it makes steps again; says where it stood and how long."""
        stood_at = self.step()
        mend()
        again_s = self.wait(lambda: self.step() > stood_at, "steps go on")
        return f"training stood at step {stood_at}, went on {again_s:.1f} s after that"

    def report_recovery(self) -> None:
        """Print when the failure was seen, when workers had started anew, and when the lost steps were made again."""
        reached, starts = self.step(), len(self.starts())
        seen_s = self.wait(lambda: "failed:" in self.log.read_text(), "a failure is seen")
        started_s = seen_s + self.wait(lambda: len(self.starts()) > starts, "workers start anew")
        again_s = started_s + self.wait(lambda: self.step() > reached, "lost steps are made again")
        print(
            f"failure seen after {seen_s:.1f} s, workers anew after {started_s:.1f} s, caught up after {again_s:.1f} s"
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory, tiny_teacher_path, tiny_run) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    config = tiny_run(
        train__steps=STEPS, train__save_every=SAVE_EVERY, train__num_workers=2, train__min_workers=1,
        train__threads_per_worker=1, train__store_patience_s=300, train__collective_timeout_s=60,
    )  # fmt: skip
    run_file = folder / "run.yaml"
    run_file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with network("head", "worker-1", "worker-2", "store", "user") as net:
        made = Site(net, folder, run_file)
        made.start()
        yield made
    for host in net.addresses:
        shutil.rmtree(made.temp_dir(host), ignore_errors=True)


@pytest.fixture(scope="module")
def undisturbed(site) -> Run:
    run = site.train("undisturbed")
    print(f"undisturbed: loss {run.losses[-1]:.6f}, {run.training}")
    assert [start["workers"] for start in run.starts] == [2]
    return run


def check(run: Run, undisturbed: Run, most_repeated: int) -> None:
    """Print what the disturbance cost, and require that it cost no more than time and repeated steps."""
    made = run.training
    pairs = zip(run.losses, undisturbed.losses, strict=True)
    difference = max(abs(ours - theirs) / theirs for ours, theirs in pairs)
    print(
        f"loss {run.losses[-1]:.6f} against {undisturbed.losses[-1]:.6f} undisturbed (relative difference over all steps "
        f"{difference:.1e} at most); steps "
        f"repeated {made['steps_repeated']}; look-ups live {made['lookups_live']}, cached {made['lookups_cached']}, null "
        f"{made['lookups_null']}; references lost {undisturbed.points - run.points}; {run.seconds:.0f} s against "
        f"{undisturbed.seconds:.0f} s; workers by start {[start['workers'] for start in run.starts]}"
    )
    assert difference <= TOLERANCE
    assert made["steps"] == STEPS
    assert made["steps_repeated"] <= most_repeated
    assert made["lookups_cached"] == made["lookups_null"] == 0
    assert run.points == undisturbed.points > 0


def test_training_waits_while_the_link_to_the_store_is_cut(site, undisturbed):
    def disturb(training: Training) -> None:
        site.net.cut("store")
        time.sleep(STORE_AWAY_S)
        print(f"store's link cut for {STORE_AWAY_S:g} s; {training.goes_on_after(lambda: site.net.mend('store'))}")

    check(site.train("store-cut", disturb), undisturbed, most_repeated=0)


def test_training_waits_for_a_killed_store_to_be_restarted(site, undisturbed):
    def disturb(training: Training) -> None:
        site.net.kill_all("store")
        site.store.wait()
        time.sleep(5)
        print(f"store killed, restarted 5 s later; {training.goes_on_after(site.start_store)}")

    check(site.train("store-killed", disturb), undisturbed, most_repeated=0)


def test_a_killed_worker_costs_the_steps_since_the_checkpoint(site, undisturbed):
    def disturb(training: Training) -> None:
        (worker,) = site.net.running("worker-2", "ray::RayTrainWorker")
        os.kill(worker, signal.SIGKILL)
        training.report_recovery()

    run = site.train("worker-killed", disturb)
    assert len(run.starts) > 1
    check(run, undisturbed, most_repeated=2 * SAVE_EVERY)


def test_a_worker_cut_off_for_good_costs_the_steps_since_the_checkpoint(site, undisturbed):
    """The last one: its host does not come back, and the training goes on without."""

    def disturb(training: Training) -> None:
        site.net.cut("worker-2")
        training.report_recovery()

    run = site.train("worker-cut", disturb)
    assert run.starts[-1]["workers"] == 1
    check(run, undisturbed, most_repeated=2 * SAVE_EVERY)
