"""The parts of the training loop that need no cluster: the learning rate, and which checkpoints are refused."""

import types
from pathlib import Path

import pytest
import torch

from jobs.corpus.prepared import CorpusCounts, PreparedCorpus
from jobs.training.checkpoint import write_checkpoint
from jobs.training.loop import restore
from refbert.errors import InputError


def test_a_checkpoint_of_another_corpus_is_refused(tmp_path):
    write_checkpoint(tmp_path / "step-00000001", {"weights/a": torch.ones(2)}, {"corpus": "before"})
    corpus = PreparedCorpus(Path("corpora/any"), CorpusCounts(0, 1, 1, 1, ()), "after")
    job = types.SimpleNamespace(corpus=corpus)
    with pytest.raises(InputError, match="the corpus has changed since"):
        restore(None, None, job, tmp_path / "step-00000001")
