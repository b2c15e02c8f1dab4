"""The student: a small BERT encoder whose attention can also see the teacher's states of a reference text.

In RefBERT (Wang et al., IJCNN 2021) the keys and values of the first layer's attention are the teacher's precomputed states of
a reference text. The paper's exact formula is not public. `RefBertConfig` therefore has options for the layers that read the
reference, for reading it beside or instead of the layer's own keys and values, or not at all (what a run does by default), and
for where its keys come from.

Models are `PreTrainedModel`s: `save_pretrained` and `from_pretrained` work; for the Auto classes see `refbert.auto_classes`.

Shapes: batch, tokens, ref_tokens, hidden, dim (the teacher's hidden size), reference_dim (of a stored state), heads, head_dim,
labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import Any, Self, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from refbert.attention import QKV
from refbert.student_config import RefBertConfig
from refbert.student_layers import Attention, AttentionTrace, Embeddings, Layer, ReadOut, Reference, WordEmbedding

Forward = TypeVar("Forward", bound=Callable[..., ModelOutput])


@dataclass
class RefBertOutput(ModelOutput):
    """Output of the encoder.

    - `last_hidden_state` (batch, tokens, hidden).
    - `projected_states` (batch, tokens, dim): the same in the teacher's space.
    - `sentence_embedding` (batch, dim): the masked mean of `projected_states` or the first of them (`pooling`), not normalised.
    - `hidden_states`, by `output_hidden_states`: of the embeddings, then of each layer, each (batch, tokens, hidden).
    - `attention_scores`, by `output_attentions`: of each layer, as in `AttentionTrace`. Their `softmax(-1)` is what other
      models of transformers return as `attentions`, here over the layer's own tokens and the reference's.
    - `readout_scores`, by `output_attentions`: (batch, heads, tokens, 1 + ref_tokens), as in `ReadOut`.
    - `qkv`, by `output_qkv`: of the last layer.
    """

    last_hidden_state: Tensor | None = None
    projected_states: Tensor | None = None
    sentence_embedding: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attention_scores: tuple[Tensor, ...] | None = None
    readout_scores: Tensor | None = None
    qkv: QKV | None = None


@dataclass
class RefBertClassifierOutput(ModelOutput):
    """Output of the classifier: `logits` (batch, labels), `loss` where labels were given, the rest as in `RefBertOutput`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    projected_states: Tensor | None = None
    sentence_embedding: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attention_scores: tuple[Tensor, ...] | None = None
    readout_scores: Tensor | None = None
    qkv: QKV | None = None


class RefBertPreTrainedModel(PreTrainedModel):
    """Weight initialisation and loading, shared by the encoder and the classifier."""

    config_class = RefBertConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True

    @property
    def num_stored(self) -> int:
        """Return how many numbers inference needs: parameters, and the table of frozen token embeddings."""
        tables = (module.rows.numel() for module in self.modules() if isinstance(module, WordEmbedding))
        return sum(parameter.numel() for parameter in self.parameters()) + sum(tables)

    @property
    def stored_bytes(self) -> int:
        """Return how many bytes these numbers take as they are kept: 4 for a parameter, 1 for one of a frozen table."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state_dict().values())

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        spread = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=spread)
            if isinstance(module, nn.Linear):
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, WordEmbedding):
            nn.init.zeros_(module.rows)
            nn.init.zeros_(module.scales)
            nn.init.ones_(module.gain)
        elif isinstance(module, ReadOut):
            nn.init.constant_(module.null, ReadOut.NULL_SCORE)
            nn.init.ones_(module.match)
        elif isinstance(module, RefBertModel) and module.null_reference is not None:
            nn.init.normal_(module.null_reference, std=spread)
        if isinstance(module, Attention | ReadOut) and module.gate is not None:
            nn.init.zeros_(module.gate)


def standard_call(forward: Forward) -> Forward:
    """Give a `forward` transformers' conventions, and refuse keywords that it does not know.

    `output_hidden_states`, `output_attentions` and `return_dict` are by default as the config says; without `return_dict` the
    output is a tuple. An unknown keyword raises TypeError, which names the nearest known one.
    """
    known = signature(forward).parameters

    @wraps(forward)
    def call(model: RefBertPreTrainedModel, *args: Any, **inputs: Any) -> Any:
        for name in sorted(inputs.keys() - known.keys()):
            nearest = get_close_matches(name, known, 1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(list(known)[1:])}"
            raise TypeError(f"{type(model).__name__}.forward() has no input {name}; {hint}")
        for name in ("output_hidden_states", "output_attentions", "return_dict"):
            if inputs.get(name) is None:
                inputs[name] = getattr(model.config, name)
        output = forward(model, *args, **inputs)
        return output if inputs["return_dict"] else output.to_tuple()

    return cast(Forward, call)


class RefBertModel(RefBertPreTrainedModel):
    """The encoder. A text without a reference reads the learned null reference."""

    def __init__(self, config: RefBertConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.projection = nn.Linear(config.hidden_size, config.dim)
        reads = any(config.reads_reference(layer) for layer in range(config.num_hidden_layers))
        self.null_reference = nn.Parameter(torch.empty(config.reference_dim)) if reads else None
        self.readout = ReadOut(config) if config.reads_out else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings, for the Auto machinery."""
        return self.embeddings.word_embeddings

    def fuse(self) -> Self:
        """Join the matrices that read the same input, for inference only. Results stay the same; the state dict grows."""
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.attention.fuse()
        return self

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        assert isinstance(value, nn.Embedding)
        self.embeddings.word_embeddings = value

    @standard_call
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        reference_ids: Tensor | None = None,
        reference_states: Tensor | None = None,
        reference_mask: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_qkv: bool = False,
        output_projected_states: bool = True,
        return_dict: bool | None = None,
    ) -> RefBertOutput:
        """Encode (batch, tokens) ids, each text with its reference.

        `reference_states` (batch, ref_tokens, reference_dim) are the teacher's; `reference_ids` and `reference_mask`
        (batch, ref_tokens) go with them. A row whose mask is all zero reads the null reference, and so does every row where no
        states are given. `output_attentions` computes attention step by step in every layer, `output_qkv` in the last. Without
        `output_projected_states` only the mean is projected, a twentieth of the work less. Without `return_dict` the output is
        a tuple. Raises ValueError for states of another width, TypeError for an unknown keyword.
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        hidden = self.embeddings(input_ids, token_type_ids)
        reference = self._reference(input_ids.shape[0], reference_ids, reference_states, reference_mask)
        every = [hidden]
        traces: list[AttentionTrace] = []
        for layer in self.layers:
            traced = output_attentions or (output_qkv and layer is self.layers[-1])
            hidden = layer(hidden, mask, reference, traces if traced else None)
            every.append(hidden)
        reads_out = self.readout is not None and reference_states is not None
        readout_scores = None
        projected = self.projection(hidden) if output_projected_states or reads_out else None
        if reads_out:
            assert self.readout is not None
            projected, readout_scores = self.readout(
                hidden, projected, input_ids, reference_ids, reference_states, reference_mask
            )
            sentence = pooled(projected, mask, self.config.pooling)
        else:
            sentence = self.projection(pooled(hidden, mask, self.config.pooling))  # linear: as pooled of the projected
        return RefBertOutput(
            last_hidden_state=hidden,
            projected_states=projected if output_projected_states else None,
            sentence_embedding=sentence,
            hidden_states=tuple(every) if output_hidden_states else None,
            attention_scores=tuple(trace.scores for trace in traces) if output_attentions else None,
            readout_scores=readout_scores if output_attentions else None,
            qkv=traces[-1].qkv if output_qkv else None,
        )

    def _reference(
        self, batch: int, ids: Tensor | None, states: Tensor | None, mask: Tensor | None
    ) -> Reference | None:
        """Put the null slot before the reference's tokens. It is visible only in rows without a reference."""
        if self.null_reference is None:
            return None
        null = self.null_reference.expand(batch, 1, -1)
        by_embedding = self.config.reference_keys == "embedding"
        null_ids = torch.full((batch, 1), self.config.pad_token_id, device=null.device)
        if states is None:
            embedding = self.embeddings(null_ids, None) if by_embedding else None
            return Reference(null, embedding, torch.ones(batch, 1, dtype=torch.bool, device=null.device))
        if states.shape[-1] != self.config.reference_dim:
            raise ValueError(
                f"reference_states have width {states.shape[-1]}, this student reads {self.config.reference_dim}; "
                "use the memory that it was trained with"
            )
        seen = torch.ones(states.shape[:2], device=null.device) if mask is None else mask
        seen = seen.bool()
        # Teachers differ in the scale of their states; keys that start too small are all attended alike.
        states = F.layer_norm(states.to(null.dtype), states.shape[-1:])
        embedding = None
        if by_embedding:
            if ids is None:
                raise ValueError("reference_keys='embedding' needs reference_ids beside reference_states")
            embedding = torch.cat([self.embeddings(null_ids, None), self.embeddings(ids, None)], 1)
        return Reference(torch.cat([null, states], 1), embedding, torch.cat([~seen.any(1, keepdim=True), seen], 1))


class RefBertForSequenceClassification(RefBertPreTrainedModel):
    """The encoder with a linear head on the sentence embedding: a classifier, or a regression where `num_labels` is 1."""

    def __init__(self, config: RefBertConfig) -> None:
        super().__init__(config)
        self.encoder = RefBertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.dim, int(config.num_labels or 2))
        self.post_init()

    def fuse(self) -> Self:
        """Join the encoder's matrices, for inference only."""
        self.encoder.fuse()
        return self

    @standard_call
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        reference_ids: Tensor | None = None,
        reference_states: Tensor | None = None,
        reference_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_qkv: bool = False,
        output_projected_states: bool = True,
        return_dict: bool | None = None,
    ) -> RefBertClassifierOutput:
        """Return logits (batch, labels); with `labels` (batch,) also the loss: cross-entropy, or MSE for one label.

        Everything else is as in `RefBertModel.forward`.
        """
        encoded = self.encoder(
            input_ids, attention_mask, token_type_ids, reference_ids, reference_states, reference_mask, return_dict=True,
            output_hidden_states=output_hidden_states, output_attentions=output_attentions, output_qkv=output_qkv,
            output_projected_states=output_projected_states,
        )  # fmt: skip
        logits = self.classifier(self.dropout(encoded.sentence_embedding))
        loss = None
        if labels is not None:
            one = self.config.num_labels == 1
            loss = F.mse_loss(logits.squeeze(-1), labels.float()) if one else F.cross_entropy(logits, labels)
        parts = {name: part for name, part in encoded.items() if name != "last_hidden_state"}
        return RefBertClassifierOutput(loss=loss, logits=logits, **parts)


def pooled(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Return a vector of each text's states (batch, tokens, width), padded on the right: their `mean`, or the first (`cls`)."""
    return states[:, 0] if pooling == "cls" else masked_mean(states, mask)


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: (batch, tokens, width) and (batch, tokens) to (batch, width)."""
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)
