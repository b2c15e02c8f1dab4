"""One distillation step: a student, what its teacher and a task's labels teach it, and the weighted sum of the losses.

The loop, the data and the optimizer live elsewhere; here a batch of tensors becomes a loss and its parts. `check_losses`
refuses layers, heads and attention that the losses compare and that student or teacher lack; that there are logits and labels
where losses want them the caller sees to. `new_student` builds an untrained student.

Shapes: batch, tokens, dim (the teacher's hidden size).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from refbert.attention import QKV
from refbert.batch import Batch
from refbert.config import LossConfig, StudentConfig
from refbert.errors import InputError
from refbert.initialisation import start_from_teacher_embeddings, start_from_teacher_layers
from refbert.losses import (
    attention_loss,
    contrastive_loss,
    hidden_loss,
    label_loss,
    prediction_loss,
    qkv_relation_loss,
    relation_loss,
    require_equal_heads,
    sentence_loss,
    similarity_loss,
)
from refbert.student import RefBertForSequenceClassification, RefBertModel, pooled
from refbert.student_config import RefBertConfig
from refbert.teacher import Teacher


@dataclass(frozen=True)
class Targets:
    """The teacher's outputs for a batch: `layers`, `logits` and `qkv` as in `Encoding`, `mask` (batch, tokens).

    `sentence` (batch, width) is the teacher's vector; None where `layers` say it, which are empty where it is enough.
    `attention_scores` are those of `LossConfig.teacher_layers`. `labels` (batch,) are a labelled task's own, NaN for a row
    without one. Targets that no loss reads may be None.
    """

    layers: tuple[Tensor, ...]
    mask: Tensor
    logits: Tensor | None = None
    attention_scores: tuple[Tensor, ...] | None = None
    qkv: QKV | None = None
    labels: Tensor | None = None
    sentence: Tensor | None = None


class Distiller(nn.Module):
    """A student and the losses that it learns by, with projections of its inner layers into the teacher's space.

    With `autocast` the forward's matrix products are in bfloat16; weights and losses stay in float32.
    """

    def __init__(
        self, student: RefBertModel | RefBertForSequenceClassification, config: LossConfig, autocast: bool = False
    ) -> None:
        super().__init__()
        self.student = student
        self.config = config
        self.autocast = autocast
        width, dim = student.config.hidden_size, student.config.dim
        inner = student.config.num_hidden_layers - 1 if config.layer_map != "last" and config.hidden else 0
        self.layer_projections = nn.ModuleList(nn.Linear(width, dim) for _ in range(inner))
        self.embedding_projection = nn.Linear(width, dim) if config.embedding else None

    def forward(self, batch: Batch, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss, and its parts by name: unweighted and detached."""
        weights = self.config
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=self.autocast):
            output = self.student(
                **batch.student_inputs(),
                output_hidden_states=True,
                output_attentions=bool(weights.attention),
                output_qkv=weights.relates_qkv,
                output_projected_states=weights.needs_token_states,
            )
            hidden = output.hidden_states
            inner = [project(states) for project, states in zip(self.layer_projections, hidden[1:], strict=False)]
            embedded = self.embedding_projection(hidden[0]) if self.embedding_projection is not None else None
        mask = targets.mask
        projected = output.projected_states.float() if weights.needs_token_states else None
        mapped = weights.teacher_layers(self.student.config.num_hidden_layers, len(targets.layers) - 1)
        parts: dict[str, Tensor] = {}
        if weights.hidden:
            assert projected is not None
            ours = [*(states.float() for states in inner), projected]
            theirs = [targets.layers[layer] for layer in mapped]
            pairs = zip(ours, theirs, strict=True)
            parts["hidden"] = torch.stack([hidden_loss(*pair, mask) for pair in pairs]).mean()
        if weights.embedding:
            assert embedded is not None
            parts["embedding"] = hidden_loss(embedded.float(), targets.layers[0], mask)
        if weights.attention:
            assert targets.attention_scores is not None
            own = [scores[..., : mask.shape[1]].float() for scores in output.attention_scores[-len(mapped) :]]
            pairs = zip(own, targets.attention_scores, strict=True)
            parts["attention"] = torch.stack([attention_loss(*pair, mask) for pair in pairs]).mean()
        if weights.relates_qkv:
            assert targets.qkv is not None
            qkv = QKV(*(x.float() for x in output.qkv))
            parts["relation"] = qkv_relation_loss(qkv, targets.qkv, mask, weights.relation_heads)
        elif weights.relation:
            assert projected is not None
            related = targets.layers[weights.relation_layer or -1]
            parts["relation"] = relation_loss(projected, related, mask, weights.relation_heads)
        if weights.contrastive or weights.sentence or weights.similarity:
            pooling = self.student.config.pooling
            said = output.sentence_embedding.float() if projected is None else pooled(projected, mask, pooling)
            taught = pooled(targets.layers[-1], mask, pooling) if targets.sentence is None else targets.sentence
            if weights.contrastive:
                negatives = batch.reference_vectors(pooling) if weights.reference_negatives else ()
                parts["contrastive"] = contrastive_loss(said, taught, weights.contrastive_temperature, *negatives)
            if weights.sentence:
                parts["sentence"] = sentence_loss(said, taught)
            if weights.similarity:
                parts["similarity"] = similarity_loss(said, taught)
        if weights.prediction:
            assert targets.logits is not None
            parts["prediction"] = prediction_loss(
                output.logits.float(), targets.logits.float(), weights.prediction_temperature
            )
        if weights.label:
            assert targets.labels is not None
            parts["label"] = label_loss(output.logits.float(), targets.labels)
        loss = torch.stack([getattr(weights, name) * part for name, part in parts.items()]).sum()
        return loss, {name: part.detach() for name, part in parts.items()}


def check_losses(loss: LossConfig, student: StudentConfig, teacher: Teacher) -> None:
    """Raise InputError where teacher or student lack layers, heads or attention that the losses compare.

    Call it before any computation. Logits and labels are not looked for.
    """
    layers = student.num_hidden_layers
    mapped = loss.teacher_layers(layers, teacher.num_layers)
    if loss.layer_map != "last" and (len(mapped) != layers or max(mapped) > teacher.num_layers):
        raise InputError(
            f"loss.layer_map={list(mapped)} must name one of the teacher's layers 1 to {teacher.num_layers} for each of the "
            f"student's {layers}"
        )
    if (loss.relation_layer or 0) > teacher.num_layers:
        raise InputError(
            f"loss.relation_layer={loss.relation_layer} is not one of the teacher's layers 1 to {teacher.num_layers}"
        )
    if not (loss.attention or loss.relates_qkv):
        return
    if loss.attention:
        require_equal_heads(student.num_attention_heads, teacher.heads)
    compared = range(layers - (len(mapped) if loss.attention else 1), layers)
    shape = RefBertConfig(reference_mode=student.reference_mode, reference_layers=student.reference_layers)
    if student.reference_mode == "replace" and any(map(shape.reads_reference, compared)):
        raise InputError(
            "loss.attention and loss.relation_of=qkv compare the student's own keys and values, which student.reference_mode="
            f"replace takes away from reference_layers={student.reference_layers}; set student.reference_mode=concat, or "
            "loss.attention=0 and loss.relation_of=states"
        )
    teacher.check_attention(scores=loss.attention > 0)


def new_student(
    config: StudentConfig, teacher: Teacher, seed: int, reference_dim: int | None = None
) -> RefBertModel | RefBertForSequenceClassification:
    """Build an untrained student with the teacher's vocabulary, width of states and, where the teacher has a head, labels.

    `reference_dim` is the width of stored states, where it is not the teacher's. Raises InputError where `initial` wants layers
    that do not fit, and for words wider than the teacher's.
    """
    labels = {"num_labels": teacher.model.config.num_labels} if teacher.config.head == "classification" else {}
    embedding_size = config.embedding_size
    if config.token_embeddings == "words":
        embedding_size = embedding_size or teacher.embedding_dim
        if embedding_size > teacher.embedding_dim:
            raise InputError(
                f"student.embedding_size={embedding_size} exceeds the teacher's {teacher.embedding_dim} (its token embeddings, "
                "which student.token_embeddings=words takes); leave it out, or give less"
            )
    shape = RefBertConfig(
        **config.model_dump(exclude={"initial", "embedding_size"}),
        embedding_size=embedding_size,
        vocab_size=teacher.model.config.vocab_size,
        pad_token_id=teacher.tokenizer.pad_token_id or 0,
        dim=teacher.dim,
        reference_dim=reference_dim,
        pooling=teacher.pooling,
        **labels,
    )
    torch.manual_seed(seed)
    student = RefBertForSequenceClassification(shape) if labels else RefBertModel(shape)
    encoder = student if isinstance(student, RefBertModel) else student.encoder
    if config.initial == "teacher_embeddings":
        start_from_teacher_embeddings(encoder, torch.from_numpy(teacher.static_vectors()))
    elif config.initial == "teacher_layers":
        try:
            start_from_teacher_layers(encoder, teacher.model.base_model)
        except ValueError as error:
            raise InputError(
                f"student.initial=teacher_layers: teacher {teacher.config.model} has another shape, {error}; give the student "
                "options that it has, or set student.initial=teacher_embeddings"
            ) from None
    return student
