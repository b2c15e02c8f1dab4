"""One distillation step: the parts of the loss, and learning from every kind of target."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from refbert.attention import QKV
from refbert.batch import Batch
from refbert.config import LossConfig, StudentConfig, TeacherConfig
from refbert.distillation import Distiller, Targets, check_losses, new_student
from refbert.errors import InputError
from refbert.losses import attention_loss, hidden_loss, relation_loss
from refbert.student import RefBertForSequenceClassification, masked_mean
from refbert.teacher import load_teacher, tokenize

SMALL = StudentConfig(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, reference_mode="concat",
    token_embeddings="learned",
)  # fmt: skip
TEXTS = ["The film is slow.", "A lovely phone, and cheap.", "Congress debates.", "so happy today!!"]


@pytest.fixture(scope="module")
def tiny(tiny_teacher_path):
    return load_teacher(TeacherConfig(model=tiny_teacher_path, tokens=16, head="classification"))


def batch_and_targets(tiny, score_layers=(2,)) -> tuple[Batch, Targets]:
    ids, mask, _ = tokenize(tiny.tokenizer, TEXTS, 16)
    encoding = tiny.encode(ids, mask, every_layer=True, score_layers=score_layers, qkv_layer=tiny.num_layers)
    reference = torch.roll(encoding.states, 1, 0).clone(), torch.roll(mask, 1, 0), torch.roll(ids, 1, 0)
    states, reference_mask, reference_ids = reference
    batch = Batch(ids, mask, reference_ids, states, reference_mask)
    targets = Targets(
        tuple(layer.clone() for layer in encoding.layers),
        mask,
        encoding.logits.clone(),
        tuple(scores.clone() for scores in encoding.attention_scores),
        QKV(*(x.clone() for x in encoding.qkv)),
    )
    return batch, targets


ONLY = dict.fromkeys(
    ("hidden", "embedding", "attention", "relation", "contrastive", "prediction", "sentence", "similarity"), 0.0
)


@pytest.mark.parametrize(
    "weights",
    [
        {"hidden": 1.0},
        {"hidden": 1.0, "layer_map": "uniform"},
        {"embedding": 1.0},
        {"attention": 1.0},
        {"relation": 1.0, "relation_heads": 4},
        {"relation": 1.0, "relation_heads": 6, "relation_of": "qkv"},
        {"contrastive": 1.0},
        {"sentence": 1.0},
        {"similarity": 1.0},
        {"prediction": 1.0},
    ],
    ids=lambda weights: "-".join(map(str, weights)),
)
def test_a_student_learns_from_each_loss_alone(tiny, weights):
    distiller = Distiller(new_student(SMALL, tiny, seed=0), LossConfig(**{**ONLY, **weights}))
    batch, targets = batch_and_targets(tiny)
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=5e-3, fused=True)
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
    weights = LossConfig(
        hidden=3, embedding=2, attention=13, relation=5, contrastive=7, prediction=11, relation_heads=4
    )
    loss, parts = Distiller(new_student(SMALL, tiny, seed=0), weights)(*batch_and_targets(tiny))
    assert loss.item() == pytest.approx(
        sum(getattr(weights, name) * part.item() for name, part in parts.items()), rel=1e-5
    )


def test_a_teacher_of_first_states_teaches_its_first_state_as_the_texts_vector(tiny, monkeypatch):
    batch, targets = batch_and_targets(tiny)
    monkeypatch.setattr(tiny, "pooling", "cls")
    student = new_student(SMALL, tiny, seed=0)
    loss, _ = Distiller(student, LossConfig(**ONLY | {"sentence": 1.0, "hidden": 1e-9}))(batch, targets)
    said = student.encoder(
        batch.input_ids, attention_mask=batch.mask, reference_ids=batch.reference_ids,
        reference_states=batch.reference_states, reference_mask=batch.reference_mask, output_projected_states=True,
    ).projected_states[:, 0]  # fmt: skip
    wanted = 1 - torch.nn.functional.cosine_similarity(said, targets.layers[-1][:, 0])
    assert loss.item() == pytest.approx(wanted.mean().item(), abs=1e-5)


def test_what_is_learned_of_sentence_vectors_needs_no_states_and_projects_none(tiny, monkeypatch):
    batch, targets = batch_and_targets(tiny)
    loss = LossConfig(**ONLY | {"sentence": 2.0, "similarity": 3.0})
    distiller = Distiller(new_student(SMALL, tiny, 0), loss).eval()
    monkeypatch.setattr(
        distiller.student.encoder, "forward", partial(only_the_mean_projected, distiller.student.encoder.forward)
    )
    mean = masked_mean(targets.layers[-1], targets.mask)
    alone, parts = distiller(batch, Targets((), targets.mask, sentence=mean))
    with_states, _ = distiller(batch, targets)
    torch.testing.assert_close(alone, with_states)
    torch.testing.assert_close(alone, 2 * parts["sentence"] + 3 * parts["similarity"])
    assert not LossConfig(**ONLY | {"sentence": 1.0}).needs_token_states
    assert LossConfig(**ONLY | {"sentence": 1.0}).needs_states


def only_the_mean_projected(forward, *given, **options):
    assert not options["output_projected_states"]
    return forward(*given, **options)


def test_layer_maps_pair_the_students_layers_with_the_teachers():
    assert LossConfig().teacher_layers(4, 12) == (12,)
    assert LossConfig(layer_map="uniform").teacher_layers(4, 12) == (3, 6, 9, 12)
    assert LossConfig(layer_map="uniform").teacher_layers(4, 2) == (1, 1, 2, 2)
    assert LossConfig(layer_map=[1, 5, 12]).teacher_layers(3, 12) == (1, 5, 12)


def test_mapped_losses_compare_the_layers_that_the_map_names(tiny):
    """One listed layer twice: each part is the mean of the losses between the named layers."""
    weights = LossConfig(
        **{**ONLY, "hidden": 1.0, "attention": 1.0, "relation": 1.0},
        layer_map=(1, 1), relation_layer=1, relation_heads=4,
    )  # fmt: skip
    distiller = Distiller(new_student(SMALL, tiny, seed=0), weights)
    batch, targets = batch_and_targets(tiny, weights.teacher_layers(2, 2))
    _, parts = distiller(batch, targets)
    said = distiller.student(**batch.student_inputs(), output_hidden_states=True, output_attentions=True)
    inner = distiller.layer_projections[0](said.hidden_states[1])
    tokens = batch.mask.shape[1]
    wanted = sum(hidden_loss(ours, targets.layers[1], batch.mask) for ours in (inner, said.projected_states)) / 2
    assert parts["hidden"].item() == pytest.approx(wanted.item(), rel=1e-5)
    first = tiny.encode(batch.input_ids, batch.mask, score_layers=[1]).attention_scores[0]
    wanted = sum(attention_loss(ours[..., :tokens], first, batch.mask) for ours in said.attention_scores) / 2
    assert parts["attention"].item() == pytest.approx(wanted.item(), rel=1e-5)
    wanted = relation_loss(said.projected_states, targets.layers[1], batch.mask, 4)
    assert parts["relation"].item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("of", [{"attention": 1.0}, {"relation": 1.0, "relation_of": "qkv", "relation_heads": 4}])
def test_padding_does_not_change_the_attention_losses_and_only_the_student_has_gradients(tiny, of):
    distiller = Distiller(new_student(SMALL, tiny, seed=0), LossConfig(**{**ONLY, **of}))
    batch, targets = batch_and_targets(tiny)
    loss, _ = distiller(batch, targets)
    loss.backward()
    assert all(p.grad is None for p in tiny.model.parameters())
    assert distiller.student.encoder.layers[-1].attention.query.weight.grad.abs().sum() > 0
    longer = torch.zeros(len(TEXTS), 16 - batch.mask.shape[1], dtype=torch.long)
    ids, mask = torch.cat([batch.input_ids, longer], 1), torch.cat([batch.mask, longer], 1)
    encoding = tiny.encode(ids, mask, score_layers=(2,), qkv_layer=2)
    padded = Targets(encoding.layers, mask, None, encoding.attention_scores, encoding.qkv)
    with torch.no_grad():
        assert distiller(replace(batch, input_ids=ids, mask=mask), padded)[0].item() == pytest.approx(
            loss.item(), rel=1e-4
        )


def test_the_config_knows_which_losses_need_a_live_teacher():
    assert LossConfig().needs_only_last_states
    assert LossConfig(hidden=0, layer_map="uniform").needs_only_last_states  # a map that no loss reads
    assert LossConfig(relation=0, relation_of="qkv", relation_layer=1).needs_only_last_states
    assert LossConfig(prediction=1).needs_only_last_states  # logits are kept with a task
    for needs in (
        {"embedding": 1}, {"attention": 1}, {"layer_map": (1, 2)}, {"relation_of": "qkv"},
        {"relation_layer": 1},
    ):  # fmt: skip
        assert not LossConfig(**needs).needs_only_last_states


@pytest.mark.parametrize(
    ("loss", "student", "message"),
    [
        (
            {"attention": 1},
            {"num_attention_heads": 3},
            r"the student has 3, the teacher 4; set student.num_attention_heads=4",
        ),
        (
            {"layer_map": (1, 3)},
            {},
            r"layer_map=\[1, 3\] must name one of the teacher's layers 1 to 2 for each of the ",
        ),
        ({"layer_map": (2,)}, {}, r"for each of the student's 2$"),
        ({"relation_layer": 3}, {}, r"relation_layer=3 is not one of the teacher's layers 1 to 2"),
        ({"relation_of": "qkv"}, {"reference_mode": "replace"}, r"set student.reference_mode=concat"),
        (
            {"attention": 1, "layer_map": "uniform"},
            {"reference_mode": "replace", "reference_layers": "first"},
            "concat",
        ),
    ],
)
def test_losses_that_teacher_or_student_cannot_compute_are_refused_in_one_line(tiny, loss, student, message):
    with pytest.raises(InputError, match=message) as error:
        check_losses(LossConfig(**loss), SMALL.model_copy(update=student), tiny)
    assert "\n" not in str(error.value)


def test_losses_that_can_be_computed_are_accepted(tiny):
    first = SMALL.model_copy(update={"reference_mode": "replace", "reference_layers": "first"})
    check_losses(LossConfig(attention=1, relation_of="qkv"), first, tiny)  # only the last layer is compared
    check_losses(
        LossConfig(relation_of="qkv", relation_layer=1), SMALL.model_copy(update={"num_attention_heads": 3}), tiny
    )


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_each_of_several_references_is_a_separate_negative(tiny, pooling):
    batch, targets = batch_and_targets(tiny)
    one = batch.reference_vectors(pooling)
    tokens = batch.reference_mask.shape[1]
    twice = Batch(
        batch.input_ids,
        batch.mask,
        batch.reference_ids.repeat(1, 2),
        torch.cat([batch.reference_states, batch.reference_states + 1], 1),
        batch.reference_mask.repeat(1, 2),
        reference_spans=torch.zeros(len(TEXTS), 2, 2 * tokens, dtype=torch.bool),
    )
    twice.reference_spans[:, 0, :tokens] = batch.reference_mask.bool()
    twice.reference_spans[1:, 1, tokens:] = batch.reference_mask[1:].bool()  # the first row has one only
    vectors, there = twice.reference_vectors(pooling)
    assert there.tolist() == [True, False, *[True] * 6]
    assert torch.allclose(vectors[::2], one[0], atol=1e-5)
    assert torch.allclose(vectors[3::2], one[0][1:] + 1, atol=1e-5)
    distiller = Distiller(new_student(SMALL, tiny, seed=0), LossConfig(**{**ONLY, "contrastive": 1.0}))
    assert torch.isfinite(distiller(twice, targets)[0])


def test_a_seed_gives_the_same_student_with_the_teachers_number_of_labels(tiny):
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


def test_unlabelled_rows_add_nothing_to_the_label_loss_and_labelled_rows_weigh_the_same(tiny):
    distiller = Distiller(new_student(SMALL, tiny, seed=0), LossConfig(**{**ONLY, "label": 1.0, "prediction": 1.0}))
    batch, targets = batch_and_targets(tiny)
    labels = torch.tensor([0.0, float("nan"), 1.0, float("nan")])

    def label_part(labels: torch.Tensor) -> float:
        loss, parts = distiller(batch, replace(targets, labels=labels))
        assert loss.isfinite()
        return parts["label"].item()

    halves = [label_part(labels.where(torch.arange(4) == row, torch.nan)) for row in (0, 2)]
    assert min(halves) > 0
    assert label_part(labels) == pytest.approx(sum(halves))
    assert label_part(torch.full((4,), torch.nan)) == 0.0
