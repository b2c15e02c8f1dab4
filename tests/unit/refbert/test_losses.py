"""Losses against numbers worked out by hand or against a slow reference formula."""

import math

import pytest
import torch
from torch.nn import functional as F

from refbert.attention import QKV
from refbert.errors import InputError
from refbert.losses import (
    attention_loss,
    contrastive_loss,
    hidden_loss,
    prediction_loss,
    qkv_relation_loss,
    relation_loss,
    sentence_loss,
    similarity_loss,
)


def test_hidden_loss_is_the_mean_over_real_tokens_only():
    student = torch.tensor([[[1.0, 2.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[0.0, 4.0], [0.0, 0.0]]])
    assert hidden_loss(student, teacher, torch.tensor([[1, 0]])).item() == pytest.approx((1 + 4) / 2)


def test_contrastive_loss_equals_its_formula():
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    # Cosines are the identity: each row's own candidate scores 1 / 0.5 against 0.
    assert contrastive_loss(student, teacher, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_contrastive_loss_penalises_a_copied_reference_and_ignores_a_masked_one():
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    references, reads = torch.tensor([[5.0, 0.0], [1.0, 0.0]]), torch.tensor([True, False])
    plain = contrastive_loss(student, teacher, 0.5).item()
    assert contrastive_loss(student, teacher, 0.5, references, torch.tensor([False, False])).item() == pytest.approx(
        plain
    )
    # The first row's own candidate scores 2, the other text 0 and the reference 2; the second row's 2, 0 and 0.
    forward = (math.log(2 + math.exp(-2)) + math.log(1 + 2 * math.exp(-2))) / 2
    wanted = (forward + plain) / 2
    assert contrastive_loss(student, teacher, 0.5, references, reads).item() == pytest.approx(wanted)


def test_contrastive_loss_of_unrelated_vectors_is_about_log_batch():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 512, generator=generator) for _ in range(2))
    assert contrastive_loss(a, b, 1.0).item() == pytest.approx(math.log(256), abs=0.01)


def test_sentence_and_similarity_losses_equal_their_formulas():
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    cosines = [
        [float(F.cosine_similarity(one, other, dim=0)) for other in some] for some in (student, teacher) for one in some
    ]
    own = [float(F.cosine_similarity(one, other, dim=0)) for one, other in zip(student, teacher, strict=True)]
    assert sentence_loss(student, teacher).item() == pytest.approx(1 - sum(own) / 5, abs=1e-6)
    said, taught = torch.tensor(cosines[:5]), torch.tensor(cosines[5:])
    assert similarity_loss(student, teacher).item() == pytest.approx((said - taught).square().mean().item(), abs=1e-6)
    assert similarity_loss(3 * teacher, teacher).item() == pytest.approx(0, abs=1e-9), "length says nothing"


def test_prediction_loss_is_soft_cross_entropy():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    assert prediction_loss(student, teacher, 1.0).item() == pytest.approx(math.log(2))
    student = torch.tensor([[1.0, 0.0]])
    log_p = torch.log_softmax(student / 2, -1)[0]
    root = math.sqrt(3)
    wanted = -(root / (root + 1) * log_p[0] + 1 / (root + 1) * log_p[1]).item()
    assert prediction_loss(student, teacher, 2.0).item() == pytest.approx(wanted)


def test_prediction_loss_of_one_label_is_squared_error():
    assert prediction_loss(torch.tensor([[1.0]]), torch.tensor([[3.0]]), 1.0).item() == 4


def slow_relation_loss(student, teacher, lengths, heads):
    total, rows = 0.0, 0
    for text, length in enumerate(lengths):
        for head in range(heads):
            distributions = []
            for states in (teacher, student):
                width = states.shape[-1] // heads
                a = states[text, :length, head * width : (head + 1) * width].double()
                distributions.append((a @ a.T / math.sqrt(width)).softmax(-1))
            p, q = distributions
            total += (p * (p / q).log()).sum().item()
            rows += length
    return total / rows


def test_relation_loss_equals_the_slow_formula_over_unequal_widths_and_lengths():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(3, 5, 8, generator=generator), torch.randn(3, 5, 12, generator=generator)
    lengths = [5, 2, 3]
    mask = (torch.arange(5)[None] < torch.tensor(lengths)[:, None]).long()
    got = relation_loss(student, teacher, mask, heads=4).item()
    assert got == pytest.approx(slow_relation_loss(student, teacher, lengths, 4), rel=1e-4)


def test_relation_loss_has_finite_gradients_with_padding():
    student = torch.randn(2, 4, 8, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    relation_loss(student, torch.randn(2, 4, 8), mask, heads=2).backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad[1, 1:].abs().sum() == 0


def test_relation_loss_of_equal_states_is_zero():
    states = torch.randn(2, 4, 8)
    assert relation_loss(states, states, torch.ones(2, 4), heads=2).item() == pytest.approx(0, abs=1e-6)


def test_qkv_relation_loss_is_the_sum_over_queries_keys_and_values():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (QKV(*torch.randn(3, 3, 5, width, generator=generator)) for width in (9, 12))
    lengths = [5, 2, 3]
    mask = (torch.arange(5)[None] < torch.tensor(lengths)[:, None]).long()
    # Two relation heads of a student nine wide leave its last number out.
    wanted = sum(slow_relation_loss(*pair, lengths, 2) for pair in zip(student, teacher, strict=True))
    assert qkv_relation_loss(student, teacher, mask, heads=2).item() == pytest.approx(wanted, rel=1e-4)


def test_attention_loss_is_the_mean_over_heads_and_pairs_of_real_tokens():
    student, teacher = torch.zeros(1, 2, 3, 3), torch.full((1, 2, 3, 3), 7.0)  # 7 stays only where padding is
    teacher[0, 0, :2, :2] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    teacher[0, 1, :2, :2] = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    loss = attention_loss(student, teacher, torch.tensor([[1, 1, 0]]))
    assert loss.item() == pytest.approx(((1 + 4 + 9 + 16) / 4 + 4 / 4) / 2)


def test_attention_loss_has_finite_gradients_where_scores_are_masked():
    scores = torch.randn(2, 2, 3, 3, requires_grad=True)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    student = scores.masked_fill(~mask.bool()[:, None, None, :], float("-inf"))
    teacher = torch.randn(2, 2, 3, 3)
    attention_loss(student, teacher, mask).backward()
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[1, :, 2].abs().sum() == scores.grad[1, :, :, 2].abs().sum() == 0
    # 9 + 4 pairs, 2 heads
    torch.testing.assert_close(scores.grad[1, :, :2, :2], 2 * (scores - teacher).detach()[1, :, :2, :2] / 26)


def test_attention_loss_with_unequal_heads_is_refused_with_advice():
    with pytest.raises(
        InputError, match=r"the student has 2, the teacher 3; set student.num_attention_heads=3, or .*relation_of=qkv"
    ):
        attention_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3), torch.ones(1, 3))
