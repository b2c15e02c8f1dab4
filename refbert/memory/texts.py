"""The text side of a memory: what a text needs to be stored, and to ask for its references.

`refbert` speaks of references, `vector_store` of points and queries; here a text becomes either. Ingest, training, evaluation,
adapting and serving all use `ReferenceTexts`. Connects to no store.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from refbert.config import ReferenceConfig
from refbert.memory.points import reference_id, reference_point, sparse
from refbert.passages import Text
from refbert.references import query_keywords, sentence_vector, word_table
from refbert.teacher import Teacher, Tokens, tokenize
from refbert.word_table import WordTable
from refbert.words import WordVectors
from vector_store.schema import Manifest, Point, Query, SparseVector

WITHOUT_KEYWORDS = ("dense", "random", "none")
"""Criteria that do not ask for a text's keywords."""

NO_KEYWORDS = SparseVector(np.empty(0, np.uint32), np.empty(0, np.float32))


class ReferenceTexts:
    """What a text needs to be stored or to ask: its id, its keyword weights and, where the memory is dense, its vector."""

    def __init__(
        self,
        manifest: Manifest,
        references: ReferenceConfig,
        tokenizer: PreTrainedTokenizerBase,
        words: WordVectors | None,
    ) -> None:
        self.manifest = manifest
        self.references = references
        self.tokenizer = tokenizer
        self.special_ids = sorted(tokenizer.all_special_ids)
        self.words = words

    @property
    def table(self) -> WordTable | None:
        """The words' vectors as a student's folder keeps them, where the memory is dense."""
        return self.words.table if self.words is not None else None

    def tokenize(self, texts: Sequence[Text]) -> Tokens:
        """Return what an encoder reads."""
        return tokenize(self.tokenizer, texts, self.manifest.text_tokens)

    def identifier(self, text: Text) -> str:
        """Return the id that a text is stored under, and asks under."""
        return reference_id(self.manifest.fingerprint, text)

    def point(
        self,
        row: dict[str, Any],
        identifier: str,
        token_ids: NDArray[np.int32],
        vector: NDArray[np.float32],
        states: NDArray[np.float16] | None,
    ) -> Point:
        """Build the point of a prepared passage from all of its token ids (text_tokens,), its teacher's sentence vector
        (encoder_dim,), and states (text_tokens, dim) where the memory keeps them.

        The manifest's token budget cuts the states that are stored.
        """
        return reference_point(
            row, identifier, token_ids, vector, self._sentence(token_ids), states, self.special_ids, self.manifest,
            self.references,
        )  # fmt: skip

    def query(self, text: Text, token_ids: NDArray[np.int32], document: str | None) -> Query:
        """Build the look-up of a text; its own point never comes back, nor does its document's."""
        ids = torch.from_numpy(token_ids.astype(np.int64))[None]
        return self.queries([text], ids, torch.ones_like(ids), [document])[0]

    def queries(
        self, texts: Sequence[Text], ids: Tensor, mask: Tensor, documents: Sequence[str | None] | None = None
    ) -> list[Query]:
        """Build the look-ups of a tokenized batch; `ids` and `mask` (batch, tokens) are padded on the right."""
        keywords = None
        if self.references.criterion not in WITHOUT_KEYWORDS:
            keywords = query_keywords(ids.numpy(), mask.bool().numpy(), self.special_ids)
        sentences = None
        if self.words is not None:
            sentences = self.words(ids.to(self.words.device), mask.to(self.words.device)).cpu().numpy()
        documents = documents if self.references.exclude_same_document else None
        return [
            Query(
                id=self.identifier(text),
                keywords=NO_KEYWORDS if keywords is None else sparse(keywords[row]),
                sentence=None if sentences is None else sentences[row],
                document=documents[row] if documents else None,
            )
            for row, text in enumerate(texts)
        ]

    def _sentence(self, token_ids: NDArray[np.int32]) -> NDArray[np.float32] | None:
        return None if self.table is None else sentence_vector(token_ids, self.special_ids, self.table)


def reference_texts(teacher: Teacher, manifest: Manifest, references: ReferenceConfig) -> ReferenceTexts:
    """Make the text side of a memory from its teacher."""
    words = None
    if manifest.dense_index:
        table = word_table(teacher.static_vectors(), manifest.words_dim)
        words = WordVectors(table, teacher.tokenizer.all_special_ids)
    return ReferenceTexts(manifest, references, teacher.tokenizer, words)
