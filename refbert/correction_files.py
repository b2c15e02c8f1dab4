"""Read the word table and the correction in a student's folder, and check that the correction belongs to the student there.

A student is told by the `fingerprint` of its weights and word table. Writes nothing; `folder.py` does, and loads the model.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from refbert.atomic import checksum
from refbert.correction import Correction
from refbert.errors import InputError
from refbert.finite import fault_in
from refbert.word_table import WordTable
from refbert.words import WordVectors

WORD_TABLE = "word_table.safetensors"
"""With it a student asks a dense memory without its teacher."""

WEIGHTS = "model.safetensors"

CORRECTION = "correction.safetensors"
"""What the memory's last version corrects: answers without a store are corrected by it too. Not the student's own."""


def load_word_table(folder: Path) -> WordTable:
    """Load the table of token vectors that asks a dense memory: a file of its own, or the student's frozen embeddings.

    Raises InputError where there is none, or one that is not finite.
    """
    path = folder / WORD_TABLE
    if path.exists():
        table = WordTable(**load_file(path))
    elif shared := _shared_words(folder):
        table = shared
    else:
        raise InputError(f"{path} is missing, and a dense memory is asked with it; copy the whole student/ folder")
    if fault := fault_in([("scales", torch.from_numpy(table.scales))]):
        raise InputError(f"{path} asks for nothing: {fault}; copy the whole student/ folder again, or train it again")
    return table


def has_word_table(folder: Path) -> bool:
    """Whether a student's folder has a word table, or embeddings that are one."""
    return (folder / WORD_TABLE).exists() or _shared_words(folder) is not None


def _shared_words(folder: Path) -> WordTable | None:
    """Read the word table that a student's frozen embeddings are; None where its embeddings were learned."""
    with safe_open(folder / WEIGHTS, "numpy") as file:
        names = {name.rpartition("word_embeddings.")[2]: name for name in file.keys() if "word_embeddings." in name}  # noqa: SIM118
        if "rows" not in names:
            return None
        return WordTable(file.get_tensor(names["rows"]), file.get_tensor(names["scales"]).astype(np.float16))


def load_correction(folder: Path) -> Correction | None:
    """Load the last correction of a student's answers by a memory; None where the student was never adapted to one."""
    path = folder / CORRECTION
    return Correction.from_bytes(path.read_bytes()) if path.exists() else None


def fingerprint(folder: Path) -> str:
    """12 hex digits of a `student/` folder's weights and word table: which student answered, whatever corrects it."""
    files = sorted(file for file in folder.glob("*.safetensors") if file.name != CORRECTION)
    return checksum(b"".join(bytes.fromhex(checksum(file)) for file in files))[:12]


def correction_in(folder: Path, special_ids: Sequence[int]) -> tuple[Correction | None, WordVectors | None]:
    """Read what corrects the student in a folder, and the words that it needs; None where it was never adapted.

    Raises InputError where the correction is another student's.
    """
    correction = load_correction(folder)
    if correction is None:
        return None, None
    if (student := fingerprint(folder)) != correction.student:
        raise InputError(
            f"{folder} holds student {student}, and its {CORRECTION} is of student {correction.student}: its weights changed "
            f"since; adapt a memory to it (`python jobs/adapt.py`), or delete {CORRECTION}"
        )
    return correction, WordVectors(load_word_table(folder), special_ids)
