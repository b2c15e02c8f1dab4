"""A student's labels mixed with its teacher's of near texts."""

import numpy as np
import pytest
import torch

from refbert.answers import Mixing, mixed, stored_answers
from refbert.errors import InputError

NAN = float("nan")


def test_half_is_the_students_and_half_the_teachers_weighed_by_cosine():
    own = torch.tensor([[2.0, 0.0, 1.0]])
    near = torch.tensor([[[0.0, 3.0, 0.0, 9.0], [1.0, 0.0, 0.0, 9.0]]])  # the last number is beyond the labels
    cosines = torch.tensor([[0.9, 0.84]])
    found = mixed(own, near, cosines, Mixing(share=0.5, temperature=0.06)).softmax(-1)
    weights = np.exp([0.9 / 0.06, 0.84 / 0.06])
    weights /= weights.sum()
    classes = np.exp([[0, 3, 0], [1, 0, 0]])
    classes /= classes.sum(1, keepdims=True)
    alone = np.exp([2, 0, 1]) / np.exp([2, 0, 1]).sum()
    assert found[0].tolist() == pytest.approx((0.5 * alone + 0.5 * weights @ classes).tolist(), abs=1e-6)


def test_a_text_without_near_ones_keeps_its_answer_and_missing_ones_have_no_weight():
    own = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    near = torch.tensor([[[NAN, NAN, NAN], [NAN, NAN, NAN]], [[0.0, 5.0, 0.0], [NAN, NAN, NAN]]])
    cosines = torch.tensor([[0.0, 0.0], [0.5, 0.9]])
    found = mixed(own, near, cosines, Mixing(share=0.25)).softmax(-1)
    assert found[0].tolist() == pytest.approx(own[0].softmax(-1).tolist(), abs=1e-6)
    wanted = 0.75 * own[1].softmax(-1) + 0.25 * torch.tensor([0.0, 5.0]).softmax(-1)
    assert found[1].tolist() == pytest.approx(wanted.tolist(), abs=1e-6)


def test_a_number_is_mixed_as_it_is():
    found = mixed(
        torch.tensor([[1.0], [1.0]]), torch.tensor([[[3.0, 0.0]], [[NAN, NAN]]]), torch.zeros(2, 1), Mixing(share=0.25)
    )
    assert found[:, 0].tolist() == pytest.approx([1.5, 1.0])


def test_answers_are_stored_as_wide_as_a_vector_and_no_wider():
    stored = stored_answers(np.array([[1.0, -2.0]], np.float32), 4)
    assert stored.tolist() == [[1.0, -2.0, 0.0, 0.0]]
    with pytest.raises(InputError, match="5 labels, and a stored answer has room for its width, 4"):
        stored_answers(np.zeros((1, 5), np.float32), 4)
