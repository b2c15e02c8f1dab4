"""What a plan needs to know of a teacher, from its files: no model is loaded, torch and transformers are not imported.

Knows the encoders that docs/teachers.md names for `--show`, with a config.json, a tokenizer.json and weights in one
model.safetensors. Of others, and where these files are missing, cannot be read or do not fit the options, only the loaded model
tells: `outline_in_files` returns None.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from refbert.config import TeacherConfig
from refbert.errors import InputError
from refbert.packaged import local_path
from refbert.tokenizer import Tokenizer, TokenizerFile

POOLED = ("albert", "bert", "camembert", "mpnet", "roberta", "xlm-roberta")
"""Model types whose encoder is loaded with a pooler, a new one where the checkpoint has none."""

OFFSET = ("camembert", "mpnet", "roberta", "xlm-roberta")
"""Of these, two positions are used for no token."""

UNPOOLED = ("deberta", "deberta-v2", "distilbert", "electra", "modernbert")

BUFFERS = ("position_ids", "token_type_ids")
"""Ends of names that older checkpoints have beside parameters."""


@dataclass(frozen=True)
class TeacherOutline:
    """A teacher's shape and tokenizer. `labels` is None without a head; what would identify its weights is not known."""

    config: TeacherConfig
    dim: int
    embedding_dim: int
    num_layers: int
    vocabulary: int
    labels: int | None
    num_parameters: int
    tokenizer: Tokenizer
    fingerprint: str = "unread"
    tokenizer_hash: str = "unread"


def outline_in_files(config: TeacherConfig) -> TeacherOutline | None:
    """Read a teacher's outline from its folder, or from what the Hub's cache has of it; None where it is not told there."""
    files = [_file(config.model, name) for name in ("config.json", "model.safetensors", "tokenizer.json")]
    if not all(files):
        return None
    shape_file, weights, tokenizer = (file for file in files if file)
    try:
        shape = json.loads(shape_file.read_text())
        num_parameters = _num_parameters(shape, weights, config.head != "none")
        if num_parameters is None:
            return None
        if config.tokens > shape["max_position_embeddings"] - 2 * (shape["model_type"] in OFFSET):
            return None
        labels = len(shape.get("id2label") or (0, 1))
        dim = int(shape["dim"] if shape["model_type"] == "distilbert" else shape["hidden_size"])
        return TeacherOutline(
            config,
            dim=dim,
            embedding_dim=int(shape.get("embedding_size") or dim),
            num_layers=int(shape["n_layers"] if shape["model_type"] == "distilbert" else shape["num_hidden_layers"]),
            vocabulary=int(shape["vocab_size"]),
            labels=None if config.head == "none" else labels,
            num_parameters=num_parameters,
            tokenizer=TokenizerFile(tokenizer),
        )
    except (ValueError, LookupError, TypeError, AttributeError, OSError, SafetensorError, InputError):
        return None  # loading it says what is wrong


def _file(model: str, name: str) -> Path | None:
    folder = Path(local_path(model)).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).exists() else None
    from huggingface_hub import try_to_load_from_cache  # its import takes a while, too
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model, name)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def _num_parameters(shape: dict[str, Any], weights: Path, has_head: bool) -> int | None:
    """Count what would be loaded of a checkpoint; None where that is not known."""
    kind = shape["model_type"]
    if kind not in (*POOLED, *UNPOOLED) or "auto_map" in shape:
        return None
    if has_head and not shape["architectures"][0].endswith("ForSequenceClassification"):
        return None
    with safe_open(weights, framework="numpy") as file:
        sizes = {name: prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    sizes = {name: size for name, size in sizes.items() if not name.endswith(BUFFERS)}
    if has_head:
        return sum(sizes.values())
    (within,) = {name.partition("embeddings.")[0] for name in sizes if _embeds(name)}
    sizes = {name.removeprefix(within): size for name, size in sizes.items() if name.startswith(within)}
    pooler = 0
    if kind in POOLED and not any(name.startswith("pooler.") for name in sizes):
        pooler = (shape["hidden_size"] + 1) * shape["hidden_size"]
    return sum(sizes.values()) + pooler


def _embeds(name: str) -> bool:
    """Whether a parameter is one of the encoder's embeddings: `embeddings.` or `NAME.embeddings.` is before its own name."""
    return name.startswith("embeddings.") or name.partition(".")[2].startswith("embeddings.")
