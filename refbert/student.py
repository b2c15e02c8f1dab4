"""The student: a small BERT encoder whose attention also sees the teacher's states of a reference text.

RefBERT (Wang et al., IJCNN 2021) lets the key and the value of the first layer's attention take the teacher's
pre-computed representations of a reference sample. The paper's exact formula is not public: where the reference is read,
beside or in place of the layer's own keys and values, and where its keys come from are options of `RefBertConfig`.

A `PreTrainedModel`: `save_pretrained`, `from_pretrained`, the Auto classes and the Hub work after `import refbert`.

Shapes: batch, tokens, ref_tokens, hidden, dim (the teacher's hidden size), reference_dim (of a stored state), heads,
head_dim, labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from refbert.attention import QKV


class RefBertConfig(PretrainedConfig):
    """Shape of a student.

    Defaults are TinyBERT-4's: 4 layers of 312, FFN 1200, 12 heads. `dim` is the teacher's hidden size, `reference_dim` the
    width of stored states: the same, unless the memory keeps a projection of them.

    - `embedding_size`: width of the token embeddings where it is not `hidden_size`: a table (vocabulary, embedding_size) and
      a projection without bias (ALBERT, sec. 3.1). With 128, 5.6 M parameters fewer of BERT's vocabulary.
    - `reference_layers`: `first` (the paper), `all`, or a list of layer numbers. Each reading layer costs two
      dim -> hidden projections where keys come from states, one where they come from embeddings.
    - `reference_mode`: `concat` (own keys and values beside the reference's), `replace` (the reference's only: the paper read
      literally), `none` (vanilla TinyBERT: no reference parameters at all).
    - `reference_readout`: also copy from the reference's states at the end, in the teacher's own space (`ReadOut`); ours.
      Two projections of `readout_width`, whatever the teacher's width.
    - `reference_gate`: what is read goes through a gate that starts at zero (`Attention`, `ReadOut`): an encoder that knew
      something before keeps it until reading helps. For `concat`.
    - `reference_keys`: `states`, or `embedding`: the student's own embedding of the reference's token ids through the
      layer's own key projection; values always come from the states.
    """

    model_type = "refbert"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 312,
        embedding_size: int | None = None,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 12,
        intermediate_size: int = 1200,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
        pad_token_id: int = 0,
        dim: int = 768,
        reference_dim: int | None = None,
        reference_layers: str | Sequence[int] = "all",
        reference_mode: str = "concat",
        reference_keys: str = "states",
        reference_readout: bool = False,
        reference_gate: bool = False,
        readout_heads: int = 4,
        readout_width: int = 128,
        memory: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.embedding_size = embedding_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.dim = dim
        self.reference_dim = dim if reference_dim is None else reference_dim
        self.reference_layers = reference_layers if isinstance(reference_layers, str) else list(reference_layers)
        self.reference_mode = reference_mode
        self.reference_keys = reference_keys
        self.reference_readout = reference_readout
        self.reference_gate = reference_gate
        self.readout_heads = readout_heads
        self.readout_width = readout_width
        self.memory = memory
        self.pad_token_id = pad_token_id
        super().__init__(**kwargs)

    @property
    def reads_any(self) -> bool:
        """Whether the student reads a reference at all: in a layer, or at the end."""
        return any(map(self.reads_reference, range(self.num_hidden_layers))) or self.reads_out

    @property
    def reads_out(self) -> bool:
        """Whether the student copies from the reference's states at the end."""
        return self.reference_readout and self.reference_mode != "none"

    def reads_reference(self, layer: int) -> bool:
        """Whether this layer's attention sees the reference."""
        if self.reference_mode == "none":
            return False
        if self.reference_layers == "all":
            return True
        return layer == 0 if self.reference_layers == "first" else layer in self.reference_layers


@dataclass
class RefBertOutput(ModelOutput):
    """What the encoder says.

    `last_hidden_state` (batch, tokens, hidden); `projected_states` (batch, tokens, dim), the same in the teacher's space;
    `sentence_embedding` (batch, dim), the masked mean of those, not normalised; `hidden_states` where asked for,
    embeddings first, each (batch, tokens, hidden); `attention_scores` where asked for, of each layer, as in `AttentionTrace`,
    and with them `readout_scores` (batch, heads, tokens, 1 + ref_tokens), as in `ReadOut`; `qkv` where asked for, of the last
    layer.
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
    """`logits` (batch, labels), `loss` where labels were given, and the encoder's parts of the same name."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    projected_states: Tensor | None = None
    sentence_embedding: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attention_scores: tuple[Tensor, ...] | None = None
    readout_scores: Tensor | None = None
    qkv: QKV | None = None


@dataclass
class Reference:
    """The reference as the layers read it: a null slot before the reference's own tokens.

    `states` (batch, 1 + ref_tokens, reference_dim), `embedding` (batch, 1 + ref_tokens, hidden) or None, `mask` likewise, bool.
    """

    states: Tensor
    embedding: Tensor | None
    mask: Tensor


class AttentionTrace(NamedTuple):
    """What one layer's attention computed.

    `scores` (batch, heads, tokens, seen), scaled, before softmax, -inf where masked. Seen are the layer's own tokens, unless
    the reference replaces them, then, where it reads one, null slot and reference tokens. `qkv` is of its own tokens, None
    where the reference replaces them.
    """

    scores: Tensor
    qkv: QKV | None


class Embeddings(nn.Module):
    """Token, position and segment embeddings, normalised: BERT's; tokens by way of a narrower table where it is factorised."""

    def __init__(self, config: RefBertConfig) -> None:
        super().__init__()
        narrow = config.embedding_size
        self.word_embeddings = nn.Embedding(
            config.vocab_size, narrow or config.hidden_size, padding_idx=config.pad_token_id
        )
        self.word_projection = nn.Linear(narrow, config.hidden_size, bias=False) if narrow else None
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """(batch, tokens) ids to (batch, tokens, hidden)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        segments = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        words = self.word_embeddings(input_ids)
        if self.word_projection is not None:
            words = self.word_projection(words)
        return self.dropout(
            self.norm(words + self.position_embeddings(positions) + self.token_type_embeddings(segments))
        )


class Attention(nn.Module):
    """Multi-head attention over the layer's own tokens and, where the layer reads one, the reference's.

    With a gate the reference has a softmax of its own, and each head adds tanh(gate) of what it finds there (Flamingo, Alayrac
    et al. 2022, sec. 2.2); gates start at 0, so that at first nothing is read.
    """

    def __init__(self, config: RefBertConfig, layer: int) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.replaces = config.reference_mode == "replace"
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        reads = config.reads_reference(layer)
        needs_own_key = not (reads and self.replaces and config.reference_keys == "states")
        self.key = nn.Linear(config.hidden_size, config.hidden_size) if needs_own_key else None
        self.value = nn.Linear(config.hidden_size, config.hidden_size) if not (reads and self.replaces) else None
        self.reference_key = (
            nn.Linear(config.reference_dim, config.hidden_size) if reads and config.reference_keys == "states" else None
        )
        self.reference_value = nn.Linear(config.reference_dim, config.hidden_size) if reads else None
        self.gate = nn.Parameter(torch.zeros(self.heads)) if reads and config.reference_gate else None
        self.own: nn.Linear | None = None
        self.referred: nn.Linear | None = None

    def fuse(self) -> None:
        """Make one matrix of those that read the same input, for inference: a tenth to a fifth less time for each (CPU)."""
        if self.value is not None:
            assert self.key is not None
            self.own = _joined(self.query, self.key, self.value)
        if self.reference_key is not None:
            assert self.reference_value is not None
            self.referred = _joined(self.reference_key, self.reference_value)

    def forward(
        self, hidden: Tensor, mask: Tensor, reference: Reference | None, traces: list[AttentionTrace] | None = None
    ) -> Tensor:
        """(batch, tokens, hidden) to the same; `mask` (batch, tokens) is True on tokens that may be seen.

        Where `traces` is given, computes step by step and appends its own.
        """
        keys, values, visible = [], [], []
        if self.own is not None:
            query, key, value = self.own(hidden).chunk(3, -1)
            keys, values, visible = [key], [value], [mask]
        else:
            query = self.query(hidden)
            if self.value is not None:
                assert self.key is not None
                keys, values, visible = [self.key(hidden)], [self.value(hidden)], [mask]
        if self.reference_value is not None:
            assert reference is not None
            if self.referred is not None:
                key, value = self.referred(reference.states).chunk(2, -1)
            else:
                project = self.key if self.reference_key is None else self.reference_key
                assert project is not None
                key = project(reference.embedding if self.reference_key is None else reference.states)
                value = self.reference_value(reference.states)
            keys.append(key)
            values.append(value)
            visible.append(reference.mask)
        dropout = self.dropout if self.training else 0.0
        if self.gate is not None:
            attended, scores = self._gated(query, keys, values, visible, dropout, traces is not None)
        else:
            attended, scores = self._attended(
                query, torch.cat(keys, 1), torch.cat(values, 1), torch.cat(visible, 1), dropout, traces is not None
            )
        if traces is not None:
            assert scores is not None
            own = self.key is not None and self.value is not None
            traces.append(AttentionTrace(scores, QKV(query, keys[0], values[0]) if own else None))
        return self.output(attended.transpose(1, 2).flatten(2))

    def _attended(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, is_traced: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(batch, heads, tokens, head_dim) under one softmax and, where traced, the scores before it."""
        q, k, v = self._split(query), self._split(key), self._split(value)
        seen = mask[:, None, None, :]
        if not is_traced:
            return attend(q, k, v, seen, dropout), None
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~seen, float("-inf"))
        return F.dropout(scores.softmax(-1), dropout) @ v, scores

    def _gated(
        self,
        query: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        visible: Sequence[Tensor],
        dropout: float,
        is_traced: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Own tokens and, through the gate, the reference's; scores of both are such that one softmax gives their shares."""
        assert self.gate is not None
        gate = self.gate.tanh()[:, None, None]
        own, reference = (
            self._attended(query, *parts, dropout, is_traced) for parts in zip(keys, values, visible, strict=True)
        )
        scores = None
        if own[1] is not None and reference[1] is not None:
            opened = gate.detach().abs().log()  # where it is 0 it has no slope
            shares = reference[1].log_softmax(-1) + opened + own[1].logsumexp(-1, keepdim=True)
            scores = torch.cat([own[1], shares], -1)
        return own[0] + gate.to(own[0].dtype) * reference[0], scores

    def _split(self, x: Tensor) -> Tensor:
        """(batch, tokens, hidden) to (batch, heads, tokens, head_dim)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """Scaled dot-product attention, all (batch, heads, tokens, head_dim); under autocast on a CPU in float32.

    torch 2.13 takes five times as long for its backward in bfloat16 there as in float32.
    """
    if query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return attend(query.float(), key.float(), value.float(), mask, dropout)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


class Layer(GradientCheckpointingLayer):
    """Attention and feed-forward, each with residual and post-normalisation: BERT's."""

    def __init__(self, config: RefBertConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.widen = nn.Linear(config.hidden_size, config.intermediate_size)
        self.narrow = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden: Tensor, mask: Tensor, reference: Reference | None, traces: list[AttentionTrace] | None = None
    ) -> Tensor:
        """(batch, tokens, hidden) to the same; `traces` as in `Attention`."""
        hidden = self.attention_norm(hidden + self.dropout(self.attention(hidden, mask, reference, traces)))
        return self.norm(hidden + self.dropout(self.narrow(F.gelu(self.widen(hidden)))))


class ReadOut(nn.Module):
    """Mix the student's last states with the teacher's states of the reference, in the teacher's own space.

    Each head attends from the student's tokens to the reference's and to a null slot; what falls on reference tokens copies
    that share of their states, the rest is the student's own. Pointer-generator networks (See et al. 2017, eq. 9) and kNN-LM
    (Khandelwal et al. 2020, eq. 3) mix distributions so; here it is states, which a head cuts by width.
    """

    NULL_SCORE = 0.0
    """Where the null slot starts: level with a token that matches nothing. At 5, which starts by copying little, the first 600
    steps got less out of the reference (docs/log.md)."""

    def __init__(self, config: RefBertConfig) -> None:
        super().__init__()
        self.heads = config.readout_heads
        self.query = nn.Linear(config.hidden_size, config.readout_width)
        self.key = nn.Linear(config.reference_dim, config.readout_width, bias=False)
        self.null = nn.Parameter(torch.empty(config.readout_heads))
        self.match = nn.Parameter(torch.empty(config.readout_heads))
        self.gate = nn.Parameter(torch.zeros(config.readout_heads)) if config.reference_gate else None

    def forward(
        self,
        hidden: Tensor,
        own: Tensor,
        input_ids: Tensor,
        reference_ids: Tensor | None,
        states: Tensor,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return (batch, tokens, dim), `own` states mixed with the reference's `states` (batch, ref_tokens, dim), and scores.

        Scores (batch, heads, tokens, 1 + ref_tokens) are those before softmax, the null slot first, -inf where masked.
        `hidden` (batch, tokens, hidden) asks. Tokens of the same id score `match` more. Where `mask` (batch, ref_tokens) is all
        zero, `own` comes back as it is.
        """
        states = states.to(hidden.dtype)
        query, key = self._split(self.query(hidden)), self._split(self.key(F.layer_norm(states, states.shape[-1:])))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if reference_ids is not None:
            same = (input_ids[:, None, :, None] == reference_ids[:, None, None, :]).to(scores.dtype)
            scores = scores + self.match[:, None, None].to(scores.dtype) * same
        if mask is not None:
            scores = scores.masked_fill(~mask.bool()[:, None, None, :], float("-inf"))
        null = self.null.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([null, scores], -1)
        kept, weights = scores.softmax(-1).split([1, states.shape[1]], -1)
        if self.gate is not None:
            gate = self.gate.tanh()[:, None, None].to(scores.dtype)
            kept, weights = 1 - gate + gate * kept, gate * weights
            scores = torch.cat([kept, weights], -1).detach().abs().log()  # shares, as one softmax would give them
        mixed = weights @ self._split(states) + kept * self._split(own)
        return mixed.transpose(1, 2).flatten(2), scores

    def _split(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to (batch, heads, tokens, width / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class RefBertPreTrainedModel(PreTrainedModel):
    """Weight initialisation and loading shared by the heads."""

    config_class = RefBertConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True

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
        elif isinstance(module, ReadOut):
            nn.init.constant_(module.null, ReadOut.NULL_SCORE)
            nn.init.ones_(module.match)
        elif isinstance(module, RefBertModel) and module.null_reference is not None:
            nn.init.normal_(module.null_reference, std=spread)


class RefBertModel(RefBertPreTrainedModel):
    """The encoder. Without references it reads the learned null reference instead."""

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
        """Join matrices that read the same input, for inference only: the results are the same, the state dict grows."""
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.attention.fuse()
        return self

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        assert isinstance(value, nn.Embedding)
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        reference_ids: Tensor | None = None,
        reference_states: Tensor | None = None,
        reference_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        output_qkv: bool = False,
        output_projected_states: bool = True,
        **_: Any,
    ) -> RefBertOutput:
        """Encode (batch, tokens) ids, each reading its reference.

        `reference_states` (batch, ref_tokens, reference_dim) are the teacher's, `reference_ids` and `reference_mask`
        (batch, ref_tokens) go with them. A row whose mask is all zero, and every row where no states are given, reads the
        null reference. Raises ValueError for states of another width. `output_attentions` and `output_qkv` compute attention
        step by step, in every layer or in the last. Without `output_projected_states` only the mean is projected, a twentieth
        of the work less.
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        hidden = self.embeddings(input_ids, token_type_ids)
        reference = self._reference(len(input_ids), reference_ids, reference_states, reference_mask)
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
            sentence = masked_mean(projected, mask)
        else:
            sentence = self.projection(masked_mean(hidden, mask))  # linear: the mean of the projected
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
        """Put the null slot before the reference's tokens; it is visible only where the row has no reference."""
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
    """A head on the sentence embedding: classes, or a number where `num_labels` is 1."""

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

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **inputs: Any) -> RefBertClassifierOutput:
        """Return logits (batch, labels); with `labels` (batch,) also the loss: cross-entropy, or MSE for one label."""
        encoded = self.encoder(input_ids, **inputs)
        logits = self.classifier(self.dropout(encoded.sentence_embedding))
        loss = None
        if labels is not None:
            one = self.config.num_labels == 1
            loss = F.mse_loss(logits.squeeze(-1), labels.float()) if one else F.cross_entropy(logits, labels)
        return RefBertClassifierOutput(
            loss=loss,
            logits=logits,
            projected_states=encoded.projected_states,
            sentence_embedding=encoded.sentence_embedding,
            hidden_states=encoded.hidden_states,
            attention_scores=encoded.attention_scores,
            readout_scores=encoded.readout_scores,
            qkv=encoded.qkv,
        )


def _joined(*parts: nn.Linear) -> nn.Linear:
    """One linear map whose output is that of its parts, side by side."""
    with torch.device("meta"):
        joined = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts))
    joined.weight = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat([part.bias for part in parts]), requires_grad=False)
    return joined


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: (batch, tokens, width) and (batch, tokens) to (batch, width)."""
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)


AutoConfig.register("refbert", RefBertConfig)
AutoModel.register(RefBertConfig, RefBertModel)
AutoModelForSequenceClassification.register(RefBertConfig, RefBertForSequenceClassification)
