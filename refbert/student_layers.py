"""The student's modules: BERT's embeddings and layers, attention that can also see a reference, and the read-out.

Shapes are named as in `refbert.student`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from refbert.attention import QKV
from refbert.student_config import RefBertConfig


@dataclass
class Reference:
    """The reference as the layers read it: a null slot, then the reference's tokens.

    `states` (batch, 1 + ref_tokens, reference_dim), `embedding` (batch, 1 + ref_tokens, hidden) or None, and `mask`
    (batch, 1 + ref_tokens), bool.
    """

    states: Tensor
    embedding: Tensor | None
    mask: Tensor


class AttentionTrace(NamedTuple):
    """Scores, queries, keys and values of one layer's attention.

    `scores` (batch, heads, tokens, seen) are scaled, before softmax, -inf where masked. `seen` are the layer's own tokens,
    unless the reference replaces them; then, in a layer that reads one, the null slot and the reference's tokens. `qkv` is of
    the layer's own tokens, None where the reference replaces them.
    """

    scores: Tensor
    qkv: QKV | None


class WordEmbedding(nn.Module):
    """Token embeddings that are frozen, in 8 bits: a `refbert.word_table.WordTable`, without its weights of rarity.

    Buffers: `rows` (vocabulary, embedding_size) int8, `scales` (vocabulary,), and `gain`, a scalar that gives embeddings the
    spread of the initialiser's.
    """

    rows: Tensor
    scales: Tensor
    gain: Tensor

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(vocabulary, width, dtype=torch.int8))
        self.register_buffer("scales", torch.zeros(vocabulary))
        self.register_buffer("gain", torch.ones(()))

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, tokens) ids to (batch, tokens, embedding_size)."""
        rarity = torch.log1p(input_ids.to(self.scales.dtype)).clamp_min(1.0)
        scales = self.gain * self.scales[input_ids] / rarity
        return self.rows[input_ids].to(scales.dtype) * scales[..., None]


class Embeddings(nn.Module):
    """BERT's token, position and segment embeddings, summed and normalised. The token table may be factorised."""

    def __init__(self, config: RefBertConfig) -> None:
        super().__init__()
        narrow = config.embedding_size
        self.word_embeddings: nn.Module
        if config.token_embeddings == "words":
            assert narrow is not None
            self.word_embeddings = WordEmbedding(config.vocab_size, narrow)
        else:
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

    With a gate the reference has a softmax of its own, and each head adds tanh(gate) times its result (Flamingo, Alayrac et al.
    2022, sec. 2.2). Gates start at 0, so an untrained gate reads nothing.
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
        self.gate = nn.Parameter(torch.empty(self.heads)) if reads and config.reference_gate else None
        self.own: nn.Linear | None = None
        self.referred: nn.Linear | None = None

    def fuse(self) -> None:
        """Join the matrices that read the same input, for inference. Saves a tenth to a fifth of their time (CPU)."""
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

        Where `traces` is given, attention is computed step by step and this layer's trace is appended.
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
            # One is not copied: that takes a twelfth of a small student's forward.
            key, value, seen = (some[0] if len(some) == 1 else torch.cat(some, 1) for some in (keys, values, visible))
            attended, scores = self._attended(query, key, value, seen, dropout, traces is not None)
        if traces is not None:
            assert scores is not None
            own = self.key is not None and self.value is not None
            traces.append(AttentionTrace(scores, QKV(query, keys[0], values[0]) if own else None))
        return self.output(attended.transpose(1, 2).flatten(2))

    def _attended(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, is_traced: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with one softmax: (batch, heads, tokens, head_dim) and, where traced, the scores before softmax."""
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
        """Attend to own tokens and, through the gate, to the reference's. A softmax over the scores gives their shares."""
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
    """Scaled dot-product attention, all (batch, heads, tokens, head_dim). Under autocast on a CPU it computes in float32.

    There the backward of torch 2.13 takes five times as long in bfloat16 as in float32.
    """
    if query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return attend(query.float(), key.float(), value.float(), mask, dropout)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


class Layer(GradientCheckpointingLayer):
    """BERT's layer: attention and feed-forward, each with residual and post-normalisation."""

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

    Each head attends from the student's tokens to the reference's tokens and to a null slot. The output is the mean of the
    reference's states, weighted by their attention, and of the student's own state, weighted by the null slot's. So do
    pointer-generator networks (See et al. 2017, eq. 9) and kNN-LM (Khandelwal et al. 2020, eq. 3) mix distributions. Here
    states are mixed, and each head mixes its part of their width.
    """

    NULL_SCORE = 0.0
    """Initial score of the null slot: that of a token that matches nothing. At 5, where little is copied at first, the first
    600 steps gained less from the reference (docs/log.md)."""

    def __init__(self, config: RefBertConfig) -> None:
        super().__init__()
        self.heads = config.readout_heads
        self.query = nn.Linear(config.hidden_size, config.readout_width)
        self.key = nn.Linear(config.reference_dim, config.readout_width, bias=False)
        self.null = nn.Parameter(torch.empty(config.readout_heads))
        self.match = nn.Parameter(torch.empty(config.readout_heads))
        self.gate = nn.Parameter(torch.empty(config.readout_heads)) if config.reference_gate else None

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

        Scores (batch, heads, tokens, 1 + ref_tokens) are before softmax, the null slot first, -inf where masked. Queries come
        from `hidden` (batch, tokens, hidden). A reference token of the same id scores `match` more. Rows whose `mask`
        (batch, ref_tokens) is all zero return `own` unchanged.
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


def _joined(*parts: nn.Linear) -> nn.Linear:
    """Make one linear layer whose output is that of the parts, concatenated."""
    with torch.device("meta"):
        joined = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts))
    joined.weight = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat([part.bias for part in parts]), requires_grad=False)
    return joined
