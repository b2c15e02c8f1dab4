"""Tiny untrained encoders of the families that teachers come from, each with a tokenizer of its family's kind."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoConfig, AutoModel

TEXTS = [
    "A good phone, but the film was much too long and it says nothing at all.",
    "Is it? It is. Some words are here for a tokenizer to learn from, and some are not.",
    "Numbers 1 2 3 and names like Anna, Ben and Cleo were in the text of yesterday.",
    "Nothing at all is good.",
    "The words of a text, one after another, and then the end of it.",
    "Too long, too dark; but the names were good.",
]

POSITIONS = 40


class Family(NamedTuple):
    """`model` by transformers' name, its tokenizer's class, and what its config has beside the usual."""

    model: str
    tokenizer: str
    options: dict[str, Any]


FAMILIES = {
    "BERT": Family("bert", "BertTokenizer", {}),
    "DistilBERT": Family("distilbert", "DistilBertTokenizer", {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    "ELECTRA": Family("electra", "ElectraTokenizer", {"embedding_size": 16}),
    "MPNet": Family("mpnet", "MPNetTokenizer", {}),
    "ALBERT": Family("albert", "AlbertTokenizer", {"embedding_size": 16}),
    "RoBERTa": Family("roberta", "RobertaTokenizer", {"type_vocab_size": 1}),
    "XLM-RoBERTa": Family("xlm-roberta", "XLMRobertaTokenizer", {"type_vocab_size": 1}),
    "CamemBERT": Family("camembert", "CamembertTokenizer", {"type_vocab_size": 1}),
    "DeBERTa": Family("deberta", "DebertaTokenizer", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "DeBERTa-v3": Family(
        "deberta-v2", "DebertaV2Tokenizer",
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False, "type_vocab_size": 0},
    ),
    "ModernBERT": Family("modernbert", "RobertaTokenizer", {}),
    "XLNet": Family("xlnet", "XLNetTokenizer", {"d_model": 24, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    "T5": Family("t5", "T5Tokenizer", {"d_model": 24, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4}),
    "BART": Family(
        "bart", "BartTokenizer",
        {
            "d_model": 24, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        },
    ),
    "GPT-2": Family("gpt2", "GPT2Tokenizer", {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}),
}  # fmt: skip
"""By their names in docs/teachers.md."""

UNLIMITED = ("xlnet", "t5")
"""Models with relative positions alone."""

USUAL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def make_tokenizer(family: Family) -> Any:
    """Train a tokenizer of the family's kind on a few texts."""
    return getattr(transformers, family.tokenizer)().train_new_from_iterator(TEXTS, 320)


def make_model(family: Family, tokenizer: Any, auto: Any = AutoModel, **changes: Any) -> Any:
    """Build an untrained model, with a vocabulary as large as the tokenizer's."""
    torch.manual_seed(0)
    usual = {} if {"d_model", "n_embd", "dim"} & family.options.keys() else USUAL
    special = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id")
        for name in ("pad", "bos", "eos", "cls", "sep")
        if getattr(tokenizer, f"{name}_token", None) is not None
    }
    positions = {} if family.model in UNLIMITED else {"max_position_embeddings": POSITIONS}
    shape = {**usual, "vocab_size": len(tokenizer), **positions, **special, **family.options}
    return auto.from_config(AutoConfig.for_model(family.model, **shape | changes))


def make_teacher(name: str, folder: Path, auto: Any = AutoModel, **changes: Any) -> str:
    """Write a teacher of a family into a folder; returns its path."""
    family = FAMILIES[name]
    tokenizer = make_tokenizer(family)
    make_model(family, tokenizer, auto, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
