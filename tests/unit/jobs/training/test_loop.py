"""The parts of the training loop that need no cluster: which checkpoints are refused, how an interrupt reaches workers."""

import os
import signal
import time
import types
from pathlib import Path

import pytest
import torch

from jobs.corpus.prepared import CorpusCounts, PreparedCorpus
from jobs.training.checkpoint import write_checkpoint
from jobs.training.loop import fit, restore, stop_request
from refbert.errors import InputError


def test_a_checkpoint_of_another_corpus_is_refused(tmp_path):
    write_checkpoint(tmp_path / "step-00000001", {"weights/a": torch.ones(2)}, {"corpus": "before"})
    corpus = PreparedCorpus(Path("corpora/any"), CorpusCounts(0, 1, 1, 1, ()), "after")
    job = types.SimpleNamespace(corpus=corpus)
    with pytest.raises(InputError, match="the corpus has changed since"):
        restore(None, None, job, tmp_path / "step-00000001")


def trainer_that(fits) -> types.SimpleNamespace:
    return types.SimpleNamespace(fit=fits)


def test_an_interrupt_asks_the_workers_to_stop_and_is_raised_when_they_have(tmp_path):
    seen = []

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        while not (tmp_path / "stop").exists():
            time.sleep(0.01)
        time.sleep(0.2)  # the checkpoint
        seen.append("stopped")

    (tmp_path / "stop").touch()  # of a job that was killed
    with stop_request(tmp_path) as request:
        assert not request.exists()
        with pytest.raises(KeyboardInterrupt):
            fit(trainer_that(interrupted), request)
        assert request.exists()
    assert seen == ["stopped"]
    assert not (tmp_path / "stop").exists()


def test_a_second_interrupt_does_not_wait_for_the_workers(tmp_path):
    def interrupted_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        while not (tmp_path / "stop").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    started_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fit(trainer_that(interrupted_twice), tmp_path / "stop")
    assert time.monotonic() - started_s < 4


def test_a_training_that_is_not_interrupted_returns_or_raises_what_it_does(tmp_path):
    assert fit(trainer_that(lambda: "result"), tmp_path / "stop") == "result"

    def fails() -> None:
        raise InputError("the memory is of another teacher")

    with pytest.raises(InputError, match="another teacher"):
        fit(trainer_that(fails), tmp_path / "stop")
    assert not (tmp_path / "stop").exists()
