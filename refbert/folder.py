"""Load and save a student's folder: weights, tokenizer, and what the student needs to read its memory.

The folder is written completely or not at all, and so is each file that is put into it later. `from_pretrained` reads the
folder too.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from transformers import AutoConfig, PreTrainedTokenizerBase

from refbert import auto_classes  # noqa: F401  # a student's config is known from here on
from refbert.atomic import whole_file, whole_folder
from refbert.correction import Correction
from refbert.correction_files import (
    CORRECTION,
    WEIGHTS,
    WORD_TABLE,
    fingerprint,
    has_word_table,
    load_correction,
    load_word_table,
)
from refbert.errors import InputError
from refbert.finite import fault_in
from refbert.hub import NO_CODE
from refbert.remote_code import make_loadable
from refbert.student import RefBertForSequenceClassification, RefBertModel
from refbert.student_config import RefBertConfig
from refbert.student_layers import WordEmbedding
from refbert.word_table import WordTable

__all__ = [
    "CORRECTION",
    "WEIGHTS",
    "WORD_TABLE",
    "fingerprint",
    "has_head",
    "has_word_table",
    "load_correction",
    "load_model",
    "load_word_table",
    "save_correction",
    "save_student",
    "save_word_table",
    "start_from",
]


def load_model(folder: str | Path) -> Any:
    """Load the encoder or the classifier that a `student/` folder holds, for inference.

    Raises InputError for other folders, and for weights that are not finite: they would answer every text with NaN.
    """
    path = Path(folder)
    if not (path / "config.json").exists():
        raise InputError(f"{path} holds no student; train one first, or give a run's student/ folder")
    try:
        config = AutoConfig.from_pretrained(path, **NO_CODE)
        if not isinstance(config, RefBertConfig):
            raise InputError(
                f"{path} holds a {config.model_type}, wanted a refbert student; give a run's student/ folder"
            )
        model = (RefBertForSequenceClassification if has_head(config) else RefBertModel).from_pretrained(path).eval()
    except InputError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the student in {path} cannot be loaded ({reason}); copy the whole student/ folder") from None
    if fault := fault_in(model.state_dict().items()):
        raise InputError(f"the student in {path} cannot answer: {fault}; its training diverged, train it again")
    return model


def start_from(encoder: RefBertModel, folder: str | Path) -> None:
    """Give an encoder the weights of the student in a folder. Raises InputError where that one has another shape."""
    start = load_model(folder)
    ours, theirs = encoder.state_dict(), (start if isinstance(start, RefBertModel) else start.encoder).state_dict()
    differing = [name for name in ours if name not in theirs or ours[name].shape != theirs[name].shape]
    if differing or len(ours) != len(theirs):
        raise InputError(
            f"{folder} is a student of another shape than this run's ({(differing or ['more weights'])[0]} differs); give "
            "the student options that it was trained with"
        )
    encoder.load_state_dict(theirs)


def save_word_table(folder: Path, table: WordTable) -> None:
    """Put a word table into a student's folder, which then has another fingerprint."""
    with whole_file(folder / WORD_TABLE) as scratch:
        save_file(table._asdict(), scratch)


def save_correction(folder: Path, correction: Correction) -> None:
    """Put a correction into a student's folder, in the place of an older one. A reader sees the one or the other."""
    with whole_file(folder / CORRECTION) as scratch:
        scratch.write_bytes(correction.to_bytes())


def has_head(config: RefBertConfig) -> bool:
    """Whether the student that was saved with this config classifies."""
    return RefBertForSequenceClassification.__name__ in (config.architectures or ())


def save_student(
    folder: Path,
    student: RefBertModel | RefBertForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    table: WordTable | None = None,
    **reading: Any,
) -> None:
    """Write a student's folder: weights, tokenizer, the word `table` of a dense memory.

    `text_tokens`, `memory`, `collection` and `references` go into its config (see `RefBertConfig`): with them the folder is
    complete, and works as a copy on a machine that has nothing of the run, nor this package (`refbert.remote_code`). Raises
    InputError for weights that are not finite, and leaves an older folder as it is.
    """
    tables = [] if table is None else [("scales of words", torch.from_numpy(table.scales))]
    if fault := fault_in([*student.state_dict().items(), *tables]):
        raise InputError(f"the student is not written to {folder}: {fault}; train it again with a lower learning rate")
    student.config.update(reading)
    with whole_folder(folder) as scratch:
        student.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        if table is not None and not isinstance(student.get_input_embeddings(), WordEmbedding):
            save_file(table._asdict(), scratch / WORD_TABLE)
        make_loadable(scratch, tokenizer.all_special_ids)
