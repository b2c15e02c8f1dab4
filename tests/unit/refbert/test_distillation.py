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


def test_autocast_computes_in_bfloat16_and_keeps_weights_losses_and_gradients_in_float32(tiny):
    shape = LossConfig(
        **{**ONLY, "hidden": 1.0, "embedding": 1.0, "relation": 1.0, "layer_map": "uniform"}, relation_heads=4
    )
    batch, targets = batch_and_targets(tiny)
    gradients, kinds = {}, set()
    for autocast in (False, True):
        distiller = Distiller(new_student(SMALL, tiny, seed=0), shape, autocast=autocast)
        widen = distiller.student.encoder.layers[0].widen
        widen.register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))
        loss, parts = distiller(batch, targets)
        loss.backward()
        assert {tensor.dtype for tensor in (loss, *parts.values(), widen.weight, widen.weight.grad)} == {torch.float32}
        gradients[autocast] = torch.cat([p.grad.flatten() for p in distiller.parameters() if p.grad is not None])
    assert kinds == {torch.float32, torch.bfloat16}
    assert not torch.equal(gradients[True], gradients[False])
    assert (gradients[True] - gradients[False]).norm() < 0.02 * gradients[False].norm()
