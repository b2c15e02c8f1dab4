"""Record the queries, keys and values of an encoder's attention by forward hooks, and compute its scores from them.

The three linear layers are found by name, so BERT, RoBERTa, ELECTRA, ALBERT, MPNet, DistilBERT and similar encoders need no
code of their own, but for MPNet's bias of relative positions. Computes no loss.

Shapes: batch, tokens, width (of all heads together), heads.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from refbert.errors import InputError

NAMES = (
    ("query", "key", "value"),  # BERT, RoBERTa, ELECTRA, ALBERT
    ("q", "k", "v"),  # MPNet
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("q_proj", "k_proj", "v_proj"),  # GTE, NomicBERT
    ("query_proj", "key_proj", "value_proj"),  # DeBERTa
)


class QKV(NamedTuple):
    """Queries, keys and values of a layer's own tokens, each (batch, tokens, width), heads side by side."""

    queries: Tensor
    keys: Tensor
    values: Tensor


@dataclass
class AttentionRecord:
    """The attention of one forward, layer by layer in the order of the calls."""

    linears: tuple[list[Tensor], list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], [], []))
    position_bias: list[Tensor] = field(default_factory=list)

    def qkv(self, layer: int) -> QKV:
        """Queries, keys and values of a layer, counted from 1."""
        return QKV(*(outputs[layer - 1].float() for outputs in self.linears))

    def scores(self, layer: int, heads: int) -> Tensor:
        """Scores of a layer, counted from 1, before mask and softmax: (batch, heads, tokens, tokens).

        Q K^T / sqrt(head width), and MPNet's bias of relative positions, which all its layers share.
        """
        queries, keys, _ = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in self.qkv(layer))
        scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
        return scores + self.position_bias[0].float().permute(2, 0, 1) if self.position_bias else scores


@contextmanager
def recorded_attention(model: nn.Module, layers: int) -> Iterator[AttentionRecord]:
    """Record the next forward of an encoder of so many layers. Raises InputError where its attention is not found."""
    record = AttentionRecord()
    with ExitStack() as hooks:
        for module in model.modules():
            for names in NAMES:
                if all(isinstance(getattr(module, name, None), nn.Linear) for name in names):
                    for name, outputs in zip(names, record.linears, strict=True):
                        hooks.callback(_keep_output(module.get_submodule(name), outputs))
            if isinstance(bias := getattr(module, "relative_attention_bias", None), nn.Embedding):
                hooks.callback(_keep_output(bias, record.position_bias))
        yield record
    if any(len(outputs) != layers for outputs in record.linears):  # ALBERT calls one module as often as it has layers
        found = "none" if not record.linears[0] else f"{len(record.linears[0])} of {layers}"
        raise InputError(
            f"the teacher {type(model).__name__} has no query, key and value layers that can be read ({found} found by the "
            f"names {', '.join('/'.join(names) for names in NAMES)}); set loss.attention=0 and loss.relation_of=states"
        )


def _keep_output(module: nn.Module, outputs: list[Tensor]) -> Callable[[], None]:
    """Append the module's output to `outputs` at each call, until the returned function is called."""
    return module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)).remove


def plain_scores(record: AttentionRecord, probabilities: tuple[Tensor, ...] | None, heads: int) -> bool:
    """Whether the softmax of the recorded scores gives the encoder's own attention probabilities, for texts without padding."""
    if probabilities is None:
        return False
    tolerance = 0.02  # bf16 rounds probabilities by 0.004; a rotation of the keys moves them by far more
    return all(
        torch.allclose(record.scores(layer, heads).softmax(-1), theirs.float(), atol=tolerance, rtol=0)
        for layer, theirs in enumerate(probabilities, start=1)
    )
