"""Augment a labelled task's texts: copies in which some words are replaced by similar ones.

TinyBERT's data augmentation (Jiao et al. 2020, sec. 3.2, algorithm 1), but there a masked language model and GloVe propose a
word's candidates; here the teacher's own token embeddings do, which any encoder has, so only words of one token are replaced. A
replaced word may reverse the meaning, so a copy has no label: the student learns the teacher's states and answers for it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from refbert.config import AugmentConfig
from refbert.errors import InputError
from refbert.passages import Text, normalise
from refbert.teacher import Teacher

AT_ONCE = 512
"""Texts, and words whose candidates are searched, per batch."""


class Augmenter:
    """Makes copies of texts with words replaced. Holds the whole words of a vocabulary and finds similar ones for each."""

    def __init__(self, teacher: Teacher, config: AugmentConfig) -> None:
        """Raises InputError where the teacher's tokenizer cannot say where words are."""
        if not teacher.tokenizer.is_fast:
            raise InputError("task_stage.augment needs a fast tokenizer, which says where words are; set its copies=0")
        self.tokenizer = teacher.tokenizer
        self.config = config
        vectors = teacher.static_vectors()
        self.words = _whole_words(self.tokenizer, len(vectors))
        self.places = np.array([token for token, word in enumerate(self.words) if word], np.int64)
        centred = vectors - vectors.mean(0)
        self.vectors = centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(1e-12)
        self._candidates: dict[int, NDArray[np.int64]] = {}

    def copies(self, texts: Sequence[Text], seed: int) -> Iterator[list[Text]]:
        """Yield each text's copies, at most `config.copies`, which differ from it and from each other.

        They depend on the seed and on the text's place. In a copy each word that is one token is replaced with probability
        `config.replaced`, by any of its candidates.
        """
        for start in range(0, len(texts), AT_ONCE):
            chunk = texts[start : start + AT_ONCE]
            replaceable = {side: self._words_in(side) for text in chunk for side in _sides(text)}
            self._look_for({token for words in replaceable.values() for _, _, token in words})
            for place, text in enumerate(chunk, start):
                rng = np.random.default_rng([seed, place])
                made: dict[Text, None] = {}
                for _ in range(self.config.copies):
                    changed = tuple(self._changed(side, replaceable[side], rng) for side in _sides(text))
                    made[changed[0] if isinstance(text, str) else (changed[0], changed[1])] = None
                made.pop(text, None)
                yield list(made)

    def candidates(self, token: int) -> NDArray[np.int64]:
        """Return a word's `config.candidates` nearest other words, by the cosine of centred token embeddings."""
        self._look_for({token})
        return self._candidates[token]

    def _look_for(self, tokens: set[int]) -> None:
        asked = sorted(tokens - self._candidates.keys())
        words, count = self.vectors[self.places], min(self.config.candidates, len(self.places) - 1)
        for start in range(0, len(asked), AT_ONCE):
            chunk = np.array(asked[start : start + AT_ONCE])
            similarity = self.vectors[chunk] @ words.T
            similarity[chunk[:, None] == self.places] = -np.inf
            nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
            self._candidates |= {int(token): self.places[row] for token, row in zip(chunk, nearest, strict=True)}

    def _words_in(self, text: str) -> list[tuple[int, int, int]]:
        """Where the words that may be replaced begin and end, and their tokens, from the last one to the first."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        found = []
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            start = end - len(text[start:end].lstrip())  # byte-level tokenizers count the space before a word to it
            is_whole = not text[start - 1 : start].isalnum() and not text[end : end + 1].isalnum()
            if self.words[token] and is_whole:
                found.append((start, end, token))
        return found[::-1]

    def _changed(self, text: str, words: list[tuple[int, int, int]], rng: np.random.Generator) -> str:
        for start, end, token in words:
            if rng.random() < self.config.replaced:
                text = f"{text[:start]}{self.words[rng.choice(self._candidates[token])]}{text[end:]}"
        return normalise(text)


def _sides(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def _whole_words(tokenizer: PreTrainedTokenizerBase, size: int) -> list[str | None]:
    """Spell (vocabulary,) the tokens that are words by themselves: two letters or more, and one token again when read."""
    special = set(tokenizer.all_special_ids)
    known = [token for token in range(min(size, len(tokenizer))) if token not in special]
    texts = [str(tokenizer.decode([token])).strip() for token in known]
    spaced = tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"]
    words: list[str | None] = [None] * size
    for token, text, read in zip(known, texts, spaced, strict=True):
        if len(text) > 1 and text.isalpha() and read == [token]:
            words[token] = text
    return words
