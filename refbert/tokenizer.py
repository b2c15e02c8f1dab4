"""A tokenizer as cutting texts and counting their tokens need it: transformers' own, or its file read without transformers.

The import of transformers takes seconds, which a plan need not wait for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import tokenizers

from refbert.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokenizer: TypeAlias = "PreTrainedTokenizerBase | TokenizerFile"


class TokenizerFile:
    """A tokenizer.json, with those calls of a `PreTrainedTokenizerBase` that are made before a model is loaded."""

    is_fast = True

    def __init__(self, path: str | Path) -> None:
        """Raises InputError where the file is none."""
        try:
            self._backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # of the class Exception itself, whatever is wrong
            raise InputError(f"{path} is no tokenizer ({error}); give a teacher with another one") from None
        self._backend.no_padding()

    def __call__(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        add_special_tokens: bool = True,
        truncation: str | None = None,
        max_length: int | None = None,
        return_offsets_mapping: bool = False,
    ) -> Mapping[str, list[Any]]:
        """Return `input_ids` and `offset_mapping` of a text or a pair, cut to `max_length` where `truncation` says how."""
        if truncation and max_length:
            self._backend.enable_truncation(max_length, strategy=truncation)
        else:
            self._backend.no_truncation()
        encoded = self._backend.encode(text, text_pair, add_special_tokens=add_special_tokens)
        return {"input_ids": encoded.ids, "offset_mapping": encoded.offsets if return_offsets_mapping else []}

    def __len__(self) -> int:
        """Tokens of the vocabulary, added ones included."""
        return self._backend.get_vocab_size()

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of tokens that are no words."""
        return [token_id for token_id, token in self._backend.get_added_tokens_decoder().items() if token.special]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many tokens are put around a text, or around and between a pair's."""
        return self._backend.num_special_tokens_to_add(pair)


def word_spans(tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    """Return each token's (start, end) in `text`, special tokens excluded. Passages are cut at them.

    Raises InputError where the tokenizer cannot say them.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"the teacher's tokenizer ({type(tokenizer).__name__}) cannot say where its tokens are in a text; set "
            "corpus.long_texts=truncate, or give a teacher with tokenizer.json"
        )
    return list(tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"])
