"""Attention mass and output changes, against numbers computed by hand."""

import math

import pytest
import torch

from refbert import RefBertConfig, RefBertModel
from refbert.explanation import answer, attention_mass, leaving_out, output_change

INF = float("inf")


def test_attention_mass_is_the_mean_softmax_over_heads():
    # Two heads, two own tokens, seen: own, own, null (masked), one reference token; weights 1 1 . 2 and 1 2 . 1.
    log = math.log
    scores = torch.tensor([[[0, 0, -INF, log(2)]] * 2, [[0, log(2), -INF, 0]] * 2])
    mass = attention_mass(scores, ref_tokens=1)
    torch.testing.assert_close(mass.references, torch.full((2, 1), (2 / 4 + 1 / 4) / 2))
    torch.testing.assert_close(mass.own, torch.full((2,), (2 / 4 + 3 / 4) / 2))
    assert mass.null.tolist() == [0, 0]
    torch.testing.assert_close(mass.per_reference_token, torch.tensor([0.375]))


def test_in_replace_mode_no_mass_goes_to_own_tokens():
    scores = torch.tensor([[[-INF, 0.0, math.log(3)], [-INF, math.log(3), 0.0]]])
    mass = attention_mass(scores, ref_tokens=2)
    assert mass.own.tolist() == mass.null.tolist() == [0, 0]
    torch.testing.assert_close(mass.references, torch.tensor([[0.25, 0.75], [0.75, 0.25]]))
    torch.testing.assert_close(mass.per_reference_token, torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("mode", ["concat", "replace"])
def test_attention_mass_sums_to_one_for_each_token(mode):
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8, "dim": 6}
    student = RefBertModel(RefBertConfig(vocab_size=50, reference_mode=mode, **shape)).eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "reference_states": torch.randn(1, 4, 6)}
    for seen, null in ((torch.tensor([[1, 1, 1, 0]]), 0.0), (torch.zeros(1, 4), 1.0)):
        with torch.inference_mode():
            output = student(**inputs, reference_mask=seen, output_attentions=True)
        for scores in output.attention_scores:
            mass = attention_mass(scores[0], ref_tokens=4)
            torch.testing.assert_close(mass.own + mass.null + mass.references.sum(-1), torch.ones(3))
            assert float(mass.references[:, 3].abs().max()) == 0  # padding of the reference
            assert (float(mass.null.mean()) > 0) == bool(null)


def test_output_change_equals_the_values_worked_out_by_hand():
    change = output_change(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0]))
    assert change.cosine_distance == pytest.approx(1 - 3 / 5)
    assert change.relative == pytest.approx(4 / 3)
    assert change.probabilities is None
    same = torch.randn(7, generator=torch.Generator().manual_seed(1))
    assert output_change(same, same).cosine_distance < 1e-12


def test_output_change_compares_probabilities_of_labels_and_numbers_of_a_regression():
    vector, even = torch.ones(2), torch.zeros(2)
    change = output_change(vector, vector, torch.tensor([math.log(3), 0.0]), even)
    torch.testing.assert_close(change.probabilities, torch.tensor([0.25, -0.25]))
    assert answer(torch.tensor([2.5])).tolist() == [2.5]


def test_masks_leave_out_each_reference_in_turn_then_all():
    masks = leaving_out(torch.tensor([0, 0, 1]), count=2)
    assert masks.int().tolist() == [[1, 1, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]]
