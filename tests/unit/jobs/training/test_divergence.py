"""What is said of a step whose loss or gradient is not finite: what it is, where it comes from, and what to do."""

import pytest
import torch

from jobs.sections import TrainConfig
from jobs.training.divergence import explanation, faults_of, weighed
from refbert.distillation import Targets

SOURCES = ["good", "bad", "after"]


def targets(value: float = 0.0, **more: torch.Tensor) -> Targets:
    states = torch.zeros(3, 2, 4)
    states[1, 0, 0] = value
    return Targets((torch.zeros(3, 2, 4), states), torch.ones(3, 2), **more)


def test_targets_and_references_that_are_not_finite_name_their_row_and_losses_their_part():
    references = torch.zeros(3, 5, 4)
    assert faults_of({"loss": torch.tensor(1.0), "hidden": torch.tensor(1.0)}, [(SOURCES, references, targets())]) == []
    broken = references.clone()
    broken[2, 4, 0] = float("-inf")
    losses = {"loss": torch.tensor(float("nan")), "hidden": torch.tensor(float("nan")), "relation": torch.tensor(0.5)}
    assert faults_of(losses, [(SOURCES, broken, targets(float("inf")))]) == [
        "targets of bad", "references of after", "loss.hidden",
    ]  # fmt: skip


def test_a_row_without_a_label_and_a_masked_score_are_no_faults():
    missing = {
        "labels": torch.full((3,), float("nan")),
        "attention_scores": (torch.full((3, 1, 2, 2), float("-inf")),),
        "logits": torch.zeros(3, 2),
    }
    assert faults_of({}, [(SOURCES, torch.zeros(3, 0, 4), targets(**missing))]) == []


@pytest.mark.parametrize(
    ("faults", "options", "wanted"),
    [
        (["loss.hidden", "targets of doc#3"], {}, "the loss is not finite (loss.hidden)"),
        (["loss.hidden", "targets of doc#3"], {}, "the teacher's states are not, for doc#3; leave that text out"),
        (["targets of doc#3"], {"targets": "memory"}, "and fill the memory anew"),
        (["loss.hidden", "references of doc#3"], {}, "stored states are not, which doc#3 reads; check the memory"),
        ([], {}, "the gradient is not finite, and no step may be left out (train.max_skipped_steps)"),
        ([], {"max_skipped_steps": 3}, "after 3 that were left out"),
        ([], {"learning_rate": 0.5}, "too long for train.learning_rate=0.5; lower it, under another name"),
        ([], {"clip": 0}, "without clipping; lower it, and set train.clip=1"),
        ([], {"precision": "bf16", "zero_stage": 1}, "or set train.precision=autocast"),
    ],
)
def test_an_explanation_says_what_is_not_finite_the_likely_cause_and_the_remedy(faults, options, wanted):
    assert wanted in explanation(faults, TrainConfig(**options))


def test_the_gradient_of_a_loss_that_is_not_finite_is_nan_and_any_other_is_weighed():
    for loss, wanted in ((3.0, 0.5), (float("inf"), float("nan")), (float("nan"), float("nan"))):
        x = torch.tensor(loss, requires_grad=True)
        weighed(x, 0.5).backward()
        torch.testing.assert_close(x.grad, torch.tensor(wanted), equal_nan=True)
