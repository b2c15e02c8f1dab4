"""Fine-tuning a task's teacher: encoders with one segment or without a pad token learn pairs too, others are refused."""

import types

import numpy as np
import pytest
import torch

from jobs.tasks.teacher import _fine_tune
from refbert.config import TeacherConfig
from refbert.errors import InputError
from refbert.teacher import load_teacher
from tests.unit.refbert.teacher_families import TEXTS, make_teacher


def fine_tuned(tiny_run, tmp_path, model: str, tokens: int = 24) -> TeacherConfig:
    """Teach a base encoder pairs for one epoch; returns the teacher that comes of it."""
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    data = types.SimpleNamespace(task=types.SimpleNamespace(regression=False, labels=("no", "yes")))
    labels = np.arange(len(pairs), dtype=np.float32) % 2
    corpus = types.SimpleNamespace(data=data, texts=lambda split: pairs, labels=lambda split: labels)
    config = tiny_run(teacher={"model": model, "tokens": tokens}, task_stage={"teacher": {"epochs": 1, "batch": 3}})
    list(_fine_tune(config, corpus, tmp_path, torch.device("cpu")))
    return TeacherConfig(model=str(tmp_path / "teacher"), tokens=tokens, head="classification")


@pytest.mark.parametrize(("name", "changes"), [("BERT", {"type_vocab_size": 1}), ("DistilBERT", {}), ("GPT-2", {})])
def test_a_base_with_one_segment_or_without_a_pad_token_learns_pairs(tiny_run, tmp_path, name, changes):
    teacher = load_teacher(fine_tuned(tiny_run, tmp_path, make_teacher(name, tmp_path / "base", **changes)))
    inputs = teacher.tokenizer("a good text", return_tensors="pt")
    logits = teacher.encode(inputs["input_ids"], inputs["attention_mask"]).logits
    assert logits.shape == (1, 2)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "tokens", "message"),
    [("BART", 24, "whose head reads its decoder"), ("RoBERTa", 40, "exceeds the 39 positions of")],
)
def test_a_base_that_cannot_learn_a_task_is_refused_before_the_first_step(tiny_run, tmp_path, name, tokens, message):
    model = make_teacher(name, tmp_path / "base")
    with pytest.raises(InputError, match=message):
        fine_tuned(tiny_run, tmp_path, model, tokens)
