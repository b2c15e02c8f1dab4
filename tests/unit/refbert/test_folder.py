"""A student's folder holds finite weights: others are neither written nor loaded."""

import numpy as np
import pytest
import torch

import refbert
from refbert import RefBertConfig, RefBertForSequenceClassification, RefBertModel
from refbert.errors import InputError
from refbert.folder import load_model, load_word_table, save_student, save_word_table, start_from
from refbert.references import word_table
from refbert.teacher import load_tokenizer

SHAPE = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "dim": 16}


@pytest.mark.parametrize("kind", [RefBertModel, RefBertForSequenceClassification])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tiny_teacher_path, tmp_path, kind, value):
    student, tokenizer = kind(RefBertConfig(**SHAPE)), load_tokenizer(tiny_teacher_path)
    save_student(tmp_path / "student", student, tokenizer)
    good = load_model(tmp_path / "student").state_dict()
    next(reversed(dict(student.named_parameters()).values())).data[-1] = value
    message = "1 tensors hold NaN or infinite values, the first is "
    with pytest.raises(InputError, match=f"is not written to .*{message}"):
        save_student(tmp_path / "student", student, tokenizer)
    kept = load_model(tmp_path / "student").state_dict()
    assert all(torch.equal(kept[name], good[name]) for name in good)
    student.save_pretrained(tmp_path / "student")  # as an earlier release did
    for load in (load_model, refbert.load):
        with pytest.raises(InputError, match=f"cannot answer: {message}"):
            load(tmp_path / "student")


def test_a_word_table_that_is_not_finite_is_neither_saved_nor_loaded(tiny_teacher_path, tmp_path):
    student, tokenizer = RefBertModel(RefBertConfig(**SHAPE)), load_tokenizer(tiny_teacher_path)
    table = word_table(np.ones((30522, 4), np.float32))
    save_student(tmp_path / "student", student, tokenizer, table)
    loaded = load_word_table(tmp_path / "student")
    assert all(np.array_equal(*parts) for parts in zip(loaded, table, strict=True))
    table.scales[5] = np.inf
    with pytest.raises(InputError, match="the first is scales of words"):
        save_student(tmp_path / "student", student, tokenizer, table)
    save_word_table(tmp_path / "student", table)
    with pytest.raises(InputError, match="asks for nothing"):
        load_word_table(tmp_path / "student")


def test_a_student_starts_from_another_ones_weights_of_the_same_shape(tiny_teacher_path, tmp_path):
    torch.manual_seed(0)
    given = RefBertModel(RefBertConfig(**SHAPE))
    save_student(tmp_path / "student", given, load_tokenizer(tiny_teacher_path))
    started = RefBertModel(RefBertConfig(**SHAPE))
    start_from(started, tmp_path / "student")
    assert all(torch.equal(tensor, given.state_dict()[name]) for name, tensor in started.state_dict().items())
    with pytest.raises(InputError, match="of another shape"):
        start_from(RefBertModel(RefBertConfig(**SHAPE | {"num_hidden_layers": 2})), tmp_path / "student")
