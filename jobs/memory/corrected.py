"""A student as a version of its memory corrects it: what new texts' residuals are taken from.

Within a version the maps stand still, so a new text's residual is its teacher's vector minus what the student says of the text,
corrected without a look-up.
"""

from pathlib import Path

import torch

from jobs.config import RunConfig
from refbert.folder import fingerprint, load_model, load_word_table
from refbert.memory.reader import Reader, text_tokens
from refbert.memory.version import current_version
from refbert.teacher import load_tokenizer
from refbert.words import WordVectors
from vector_store.client import Client
from vector_store.errors import CollectionMismatch


def corrected_student(config: RunConfig, folder: Path, client: Client, device: torch.device) -> Reader | None:
    """Open a student as its memory's current version corrects it, without look-ups; None where there is no version yet."""
    try:
        correction = current_version(client, config.store, fingerprint(folder)).correction
    except CollectionMismatch:
        return None
    model, tokenizer = load_model(folder).fuse().to(device), load_tokenizer(str(folder))
    correction.part.to(device)
    words = WordVectors(load_word_table(folder), tokenizer.all_special_ids).to(device)
    return Reader(
        model, tokenizer, text_tokens(model.config) or config.teacher.tokens, correction=correction, words=words
    )
