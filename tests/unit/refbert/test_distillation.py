"""One distillation step: which parts the loss has, and that a student learns from every kind of target."""

import pytest
import torch

from refbert.config import LossConfig, StudentConfig, TeacherConfig
from refbert.distillation import DistillBatch, Distiller, Targets, new_student
from refbert.student import RefBertForSequenceClassification
from refbert.teacher import load_teacher, tokenize

SMALL = StudentConfig(hidden=24, layers=2, heads=4, intermediate=48, dropout=0)
TEXTS = ["The film is slow.", "A lovely phone, and cheap.", "Congress debates.", "so happy today!!"]


@pytest.fixture(scope="module")
def tiny(tiny_teacher_path):
    return load_teacher(TeacherConfig(model=tiny_teacher_path, tokens=16, head="classification"))


def batch_and_targets(tiny) -> tuple[DistillBatch, Targets]:
    ids, mask = tokenize(tiny.tokenizer, TEXTS, 16)
    encoding = tiny.encode(ids, mask, every_layer=True)
    reference = torch.roll(encoding.states, 1, 0).clone(), torch.roll(mask, 1, 0), torch.roll(ids, 1, 0)
    states, reference_mask, reference_ids = reference
    batch = DistillBatch(ids, mask, reference_ids, states, reference_mask)
    return batch, Targets(tuple(layer.clone() for layer in encoding.layers), mask, encoding.logits.clone())


ONLY = dict.fromkeys(("hidden", "embedding", "relation", "contrastive", "prediction"), 0.0)


@pytest.mark.parametrize(
    "weights",
    [
        {"hidden": 1.0},
        {"hidden": 1.0, "layer_map": "uniform"},
        {"embedding": 1.0},
        {"relation": 1.0, "relation_heads": 4},
        {"contrastive": 1.0},
        {"prediction": 1.0},
    ],
    ids=lambda weights: "-".join(map(str, weights)),
)
def test_a_student_learns_from_each_loss_alone(tiny, weights):
    distiller = Distiller(new_student(SMALL, tiny, seed=0), LossConfig(**{**ONLY, **weights}))
    batch, targets = batch_and_targets(tiny)
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss, parts = distiller(batch, targets)
        assert set(parts) == {name for name in weights if name in ONLY}
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    floor = -(targets.logits.softmax(-1) * targets.logits.log_softmax(-1)).sum(-1).mean().item()
    at_best = floor if "prediction" in weights else 0.0
    assert losses[-1] - at_best < 0.7 * (losses[0] - at_best)


def test_the_loss_is_the_weighted_sum_of_its_parts(tiny):
    weights = LossConfig(hidden=3, embedding=2, relation=5, contrastive=7, prediction=11, relation_heads=4)
    loss, parts = Distiller(new_student(SMALL, tiny, seed=0), weights)(*batch_and_targets(tiny))
    assert loss.item() == pytest.approx(
        sum(getattr(weights, name) * part.item() for name, part in parts.items()), rel=1e-5
    )


def test_each_of_several_references_is_a_negative_of_its_own(tiny):
    batch, targets = batch_and_targets(tiny)
    one = batch.reference_vectors()
    tokens = batch.reference_mask.shape[1]
    twice = DistillBatch(
        batch.input_ids,
        batch.mask,
        batch.reference_ids.repeat(1, 2),
        torch.cat([batch.reference_states, batch.reference_states + 1], 1),
        batch.reference_mask.repeat(1, 2),
        reference_spans=torch.zeros(len(TEXTS), 2, 2 * tokens, dtype=torch.bool),
    )
    twice.reference_spans[:, 0, :tokens] = batch.reference_mask.bool()
    twice.reference_spans[1:, 1, tokens:] = batch.reference_mask[1:].bool()  # the first row has one only
    vectors, there = twice.reference_vectors()
    assert there.tolist() == [True, False, *[True] * 6]
    assert torch.allclose(vectors[::2], one[0], atol=1e-5)
    assert torch.allclose(vectors[3::2], one[0][1:] + 1, atol=1e-5)
    distiller = Distiller(new_student(SMALL, tiny, seed=0), LossConfig(**{**ONLY, "contrastive": 1.0}))
    assert torch.isfinite(distiller(twice, targets)[0])


def test_uniform_map_reads_the_teachers_layers_evenly(tiny):
    distiller = Distiller(new_student(SMALL, tiny, seed=0), LossConfig(layer_map="uniform"))
    targets = Targets(tuple(torch.zeros(1) for _ in range(13)), torch.ones(1))
    assert [distiller._teacher_layer(layer, targets) for layer in (1, 2)] == [6, 12]


def test_the_same_seed_gives_the_same_student_and_the_teachers_head_its_labels(tiny):
    first, second, other = (new_student(SMALL, tiny, seed=seed) for seed in (1, 1, 2))
    assert isinstance(first, RefBertForSequenceClassification)
    assert first.classifier.out_features == 2
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.encoder.projection.weight, other.encoder.projection.weight)
