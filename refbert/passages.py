"""Texts and passages: what a text is known by, which are held out, and how a long one is cut into passages, or in two.

Also batches texts of like length. Knows strings; nothing of files, models and tokenizers, but for the places of tokens that a
caller gives.
"""

import hashlib
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, TypeAlias, overload

WINDOW_CHARACTERS = 64
"""Characters per token of the budget that are tokenized at once when a text is cut: some ten passages of most languages."""

SplitName = Literal["train", "heldout"]

Text: TypeAlias = str | tuple[str, str]
"""A text, or a pair of texts that an encoder reads together."""


@overload
def normalise(text: str) -> str: ...
@overload
def normalise(text: tuple[str, str]) -> tuple[str, str]: ...
def normalise(text: Text) -> Text:
    """Return `text`, or both texts of a pair, in NFC with white space folded. Identity and splits are computed from it."""
    if isinstance(text, tuple):
        return normalise(text[0]), normalise(text[1])
    return " ".join(unicodedata.normalize("NFC", text).split())


def text_of(passage: Mapping[str, Any]) -> Text:
    """Return the text of a prepared passage, a pair where it has a `text_pair`."""
    pair = passage.get("text_pair")
    return passage["text"] if pair is None else (passage["text"], pair)


def text_digest(text: Text) -> bytes:
    """Return the SHA-256 of a normalised text or pair. Pairs are joined by a line end, which no normalised text contains."""
    return hashlib.sha256((text if isinstance(text, str) else "\n".join(text)).encode()).digest()


def text_length(text: Text) -> int:
    """Return the characters of a text, or of both texts of a pair: a measure that grows with tokens."""
    return len(text) if isinstance(text, str) else sum(map(len, text))


def by_length(texts: Sequence[Text], batch: int) -> Iterator[list[int]]:
    """Return batches of indices into `texts`, of similar length so that there is little padding, the shortest first."""
    order = sorted(range(len(texts)), key=lambda place: text_length(texts[place]))
    return (order[start : start + batch] for start in range(0, len(order), batch))


def split_of(text: Text, heldout_fraction: float) -> SplitName:
    """Return a text's split, by the text's hash: duplicates are in the same split, whatever the order of files."""
    return "heldout" if falls_in(text, heldout_fraction) else "train"


def falls_in(text: Text, share: float, salt: int = 0) -> bool:
    """Whether a text falls in a share of all texts, by its hash. Each `salt` (0 to 3) draws another share."""
    digest = text_digest(normalise(text))[8 * salt : 8 * salt + 8]
    return int.from_bytes(digest, "big") < share * 2**64


def split_passages(text: str, tokens: int, offsets: Callable[[str], list[tuple[int, int]]]) -> list[str]:
    """Cut a normalised `text` into passages that have at most `tokens` tokens when each is tokenized alone.

    `offsets` gives each token's (start, end) in a text, special tokens excluded. Cuts are at spaces: joined by single spaces
    the passages give the text back. Only a word that exceeds the budget by itself is cut, between two of its tokens, and
    no space is lost there. A single character may have more tokens than the budget; it is a passage then.

    Time is linear in the text's length: tokens are asked for in windows, and again for each passage, since a word may have
    other tokens at the beginning of a text (RoBERTa's, which has a space before it elsewhere) or at its end.
    """
    passages: list[str] = []
    begin = window_begin = window_end = first = 0
    starts: list[int] = []  # of the window's tokens; from `first` on they are the next passage's
    while begin < len(text):
        size = WINDOW_CHARACTERS * tokens
        while len(starts) - first <= tokens and window_end < len(text):
            window_begin, window_end, first = begin, _window_end(text, begin, size), 0
            starts = _token_starts(text, window_begin, window_end, offsets)
            size *= 2  # a word of a thousand letters is one token to WordPiece
        end = _cut(text, begin, starts, first + tokens) or len(text)
        if (begin, end) != (window_begin, window_end):
            while shorter := _cut(text, begin, _token_starts(text, begin, end, offsets), tokens):
                end = shorter
        passages.append(text[begin:end])
        first = bisect_left(starts, end)
        begin = end + text.startswith(" ", end)
    return passages


def _window_end(text: str, begin: int, size: int) -> int:
    """Return the last space within `size` characters from `begin`; the end of these where there is none."""
    end = begin + size
    return len(text) if end >= len(text) else max(text.rfind(" ", begin + 1, end), 0) or end


def _token_starts(text: str, begin: int, end: int, offsets: Callable[[str], list[tuple[int, int]]]) -> list[int]:
    """Return where in `text` each token of `text[begin:end]` starts, ascending."""
    return list(accumulate((min(begin + start, end - 1) for start, _ in offsets(text[begin:end])), max))


def _cut(text: str, begin: int, starts: Sequence[int], too_many: int) -> int | None:
    """Return where a passage ends so that token number `too_many` is not in it; None where there is no such token.

    It ends at the last space before that token, which may be part of the token; else at the token.
    """
    if len(starts) <= too_many:
        return None
    space = text.rfind(" ", begin + 1, starts[too_many] + 1)
    if space > begin:
        return space
    return starts[too_many] if starts[too_many] > begin else next((start for start in starts if start > begin), None)


def halves(text: str) -> tuple[str, str] | None:
    """Split a text in two at the sentence end nearest its middle, else at the nearest space; None where it has no space."""
    spaces = [match.start() for match in re.finditer(" ", text)]
    ends = [place for place in spaces if text[place - 1] in ".!?;" and len(text) // 4 <= place <= 3 * len(text) // 4]
    if not spaces:
        return None
    cut = min(ends or spaces, key=lambda place: abs(2 * place - len(text)))
    return text[:cut], text[cut + 1 :]
