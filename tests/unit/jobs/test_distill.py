"""The parts of the training loop that need no cluster: the learning rate, and which checkpoints are refused."""

import types
from pathlib import Path

import pytest
import ray.train

from jobs.distill import restore
from jobs.prepared import CorpusCounts, PreparedCorpus
from refbert.errors import InputError


def test_a_checkpoint_of_a_changed_corpus_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: ray.train.Checkpoint.from_directory(tmp_path))
    state = {"corpus": "before", "stream": {"micro_batches": 3}, "progress": {"step": 1, "seconds": 2.0, "wait_s": 0.1}}
    engine = types.SimpleNamespace(load_checkpoint=lambda folder: (folder, state))
    restored = []
    stream = types.SimpleNamespace(load_state_dict=restored.append)
    counts = CorpusCounts(0, 1, 1, 1, ())
    with pytest.raises(InputError, match="the corpus has changed since the checkpoint"):
        restore(engine, stream, PreparedCorpus(Path("corpora/after"), counts))
    assert not restored
    assert restore(engine, stream, PreparedCorpus(Path("corpora/before"), counts)).step == 1
    assert restored == [state["stream"]]
