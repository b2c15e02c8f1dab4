"""The point of a passage: what is stored of a text, from its tokens, its teacher's answer and the vector of its words.

Residuals are added elsewhere, by whoever adapts a student or stores texts for an adapted one. Needs no torch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refbert.config import ReferenceConfig
from refbert.passages import Text, normalise, text_of
from refbert.references import Keywords, document_keywords
from vector_store.schema import Manifest, Point, SparseVector, parts, point_id


def reference_id(fingerprint: str, text: Text) -> str:
    """Id of a text's point, or of a pair's, whoever stores it: of its teacher and its normalised form."""
    return point_id(fingerprint, parts(normalise(text)))


def reference_point(
    row: dict[str, Any],
    identifier: str,
    token_ids: NDArray[np.int32],
    vector: NDArray[np.float32],
    sentence: NDArray[np.float32] | None,
    states: NDArray[np.float16] | None,
    special_ids: Sequence[int],
    manifest: Manifest,
    references: ReferenceConfig,
) -> Point:
    """Build the point of a prepared passage from all of its token ids (text_tokens,), its teacher's sentence vector
    (encoder_dim,), the mean vector of its words (words_dim,) and states (text_tokens, dim), where the memory keeps these.

    The manifest's token budget cuts the states that are stored.
    """
    budget = manifest.tokens
    return Point(
        id=identifier,
        vector=vector,
        token_ids=token_ids,
        keywords=sparse(document_keywords(token_ids, special_ids, references)),
        sentence=sentence,
        text=text_of(row),
        source=row["source"],
        document=row["document"],
        split=row["split"],
        states=states[:budget] if budget and states is not None else None,
    )


def sparse(keywords: Keywords) -> SparseVector:
    """Keywords as the store takes them."""
    return SparseVector(keywords.token_ids, keywords.weights)
