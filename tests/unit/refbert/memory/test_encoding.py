"""What a teacher says of many texts, several batches at once."""

import numpy as np
import pytest
import torch

from refbert.config import TeacherConfig
from refbert.memory.encoding import encode_ahead
from refbert.teacher import load_teacher

TEXTS = [f"text {number} " + "with more words " * (number % 5) for number in range(23)]


@pytest.fixture
def small_batches(tiny_teacher_path):
    return load_teacher(TeacherConfig(model=tiny_teacher_path, tokens=16, batch=4))


@pytest.mark.parametrize("threads", [1, 3])
def test_each_text_comes_once_as_the_teacher_alone_says_it(small_batches, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = {index: (ids, states) for index, ids, states in encode_ahead(small_batches, TEXTS)}
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert sorted(found) == list(range(len(TEXTS)))
    for index, (ids, states) in enumerate(small_batches.encode_texts(TEXTS)):
        np.testing.assert_array_equal(found[index][0], ids)
        np.testing.assert_allclose(found[index][1], states, atol=2e-3)


def test_no_more_texts_are_encoded_at_once_than_in_one_of_the_teachers_batches(small_batches, monkeypatch):
    sizes = []
    encode = small_batches.encode_texts
    monkeypatch.setattr(small_batches, "encode_texts", lambda texts: sizes.append(len(texts)) or encode(texts))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert len(list(encode_ahead(small_batches, TEXTS))) == len(TEXTS)
        assert list(encode_ahead(small_batches, [])) == []
    finally:
        torch.set_num_threads(before)
    assert max(sizes) == 2
