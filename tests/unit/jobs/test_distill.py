"""The parts of the training loop that need no cluster: the learning rate, and which checkpoints are refused."""

import types
from pathlib import Path

import pytest
import ray.train
from torch import nn

from jobs.checkpoint import write_checkpoint
from jobs.distill import started
from jobs.prepared import CorpusCounts, PreparedCorpus
from refbert.errors import InputError


@pytest.mark.parametrize(
    ("content", "message"), [(None, "is no checkpoint of this version"), ("before", "the corpus has changed since")]
)
def test_a_checkpoint_of_another_version_or_corpus_is_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: ray.train.Checkpoint.from_directory(tmp_path))
    if content:
        engine = types.SimpleNamespace(module=nn.Module(), global_rank=0)
        write_checkpoint(tmp_path, engine, {"corpus": content})
    corpus = PreparedCorpus(Path("corpora/after"), CorpusCounts(0, 1, 1, 1, ()))
    job = types.SimpleNamespace(corpus=corpus)
    with pytest.raises(InputError, match=message):
        started(None, None, job)
