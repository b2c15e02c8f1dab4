"""Ctrl-C and SIGTERM amid a training: a checkpoint of that step, from which the same command goes on to the same losses."""

import errno
import json
import os
import signal
import time
import types

import pyarrow as pa
import pytest
import ray

from jobs.run.interrupts import sigterm_interrupts
from jobs.training import loop

pytestmark = pytest.mark.usefixtures("in_process", "home")

TEXTS = [f"text {number} of a corpus that needs no cluster" for number in range(100)]


def losses(config) -> dict[int, float]:
    lines = [json.loads(line) for line in (config.run_directory / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_leaves_a_checkpoint_of_its_step_and_goes_on_from_there(tiny_run, monkeypatch, number):
    rows = [{"text": text, "text_pair": None, "document": text, "source": "s", "split": "train"} for text in TEXTS]
    corpus = types.SimpleNamespace(content="c", table=lambda split: pa.Table.from_pylist(rows))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})

    def run(name: str):
        config = tiny_run(
            name=name, references__criterion="none", student__reference_mode="none", train__targets="teacher",
            train__micro_batch=16, train__global_batch=16,
        )  # fmt: skip
        loop.distil(config, corpus, None, None)
        return config

    whole = losses(run("whole"))
    finish = loop.MetricsLogger.finish_step

    def interrupted_at_4(metrics, *step):
        finish(metrics, *step)
        if metrics.step == 4:
            os.kill(os.getpid(), number)
            while not (metrics.directory / "stop").exists():
                time.sleep(0.01)

    with monkeypatch.context() as patch, sigterm_interrupts():
        patch.setattr(loop.MetricsLogger, "finish_step", interrupted_at_4)
        with pytest.raises(KeyboardInterrupt):
            run("interrupted")
    config = tiny_run(name="interrupted")
    checkpoints = sorted(path.name for path in (config.run_directory / "checkpoints").glob("step-*"))
    assert checkpoints == ["step-00000003", "step-00000004"]
    left = {path.name for path in config.run_directory.iterdir()}
    assert not {"manifest.json", "student", "stop"} & left
    config = run("interrupted")
    assert json.loads((config.run_directory / "manifest.json").read_text())["training"]["steps_repeated"] == 0
    assert losses(config) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(("failure", "raised"), [
    (ray.exceptions.ActorDiedError(), KeyboardInterrupt),
    (OSError(errno.ENOSPC, "No space left on device"), OSError),
])  # fmt: skip
def test_an_interrupt_that_ends_the_workers_too_stays_one_and_a_failed_checkpoint_is_said(tmp_path, failure, raised):
    class Trainer:
        def fit(self):
            os.kill(os.getpid(), signal.SIGINT)
            while not (tmp_path / "stop").exists():
                time.sleep(0.01)
            raise failure

    with pytest.raises(raised):
        loop.fit(Trainer(), tmp_path / "stop")
