"""Check every point of a collection against the manifest, its id against its text, and that look-ups can find it.

A point without keywords, or in a dense index with a zero sentence vector, is bad; one without both is not where its text may
consist of special tokens alone. Also says what the server reports as lost. Reads whole points, page by page, and never writes.
Runs no encoder, so whether vectors and states are those of their text is not checked; `copies` compares the copies of a point.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vector_store.codec import check, decode
from vector_store.errors import MISSING_POINTS, InvalidPoint
from vector_store.protocol import api
from vector_store.schema import Manifest, parts, point_id
from vector_store.store import Store

NUM_SHOWN = 10
"""Most bad points that are listed; all are counted."""

OTHER_ID = "its id is not the hash of its text"
NO_KEYWORDS = "its keywords are gone, so no look-up finds it by them"
NO_SENTENCE = "its sentence vector is zero, so no look-up finds it by that"

SPECIAL_TOKENS = 5
"""A text may consist of so many different special tokens, and then has neither keywords nor a sentence vector."""


@dataclass
class Verification:
    """Result of a check: each bad point counts under one reason, the first that was found."""

    num_checked: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first_bad: list[tuple[str, str]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """What the server says of acknowledged points that it no longer has, a line each."""

    @property
    def num_bad(self) -> int:
        """Number of bad points."""
        return self.reasons.total()


def verify(store: Store, advance: Callable[[int], object] = lambda num_points: None) -> Verification:
    """Check each point: its payload, shapes, values, vectors, and its id against its text.

    Goes on after a bad point; CollectionMismatch where the collection has no manifest. `advance` is called after each page with
    its number of points.
    """
    manifest = store.manifest()
    found = Verification(lost=[warning for warning in store.warnings() if MISSING_POINTS in warning])
    for messages in store.stored_pages():
        for message in messages:
            if reason := _fault(message, manifest):
                found.reasons[reason] += 1
                if len(found.first_bad) < NUM_SHOWN:
                    found.first_bad.append((message.id.uuid or str(message.id.num), reason))
        found.num_checked += len(messages)
        advance(len(messages))
    return found


def _fault(message: api.RetrievedPoint, manifest: Manifest) -> str | None:
    try:
        point = decode(message, manifest)
        check(point, manifest)
    except InvalidPoint as error:
        return error.reason
    if point.id != point_id(manifest.fingerprint, parts(point.text)):
        return OTHER_ID
    has_keywords, has_sentence = (
        len(point.keywords.indices) > 0,
        point.sentence is not None and bool(point.sentence.any()),
    )
    if not has_keywords and (has_sentence or len(np.unique(point.token_ids)) > SPECIAL_TOKENS):
        return NO_KEYWORDS
    if has_keywords and manifest.dense_index and not has_sentence:
        return NO_SENTENCE
    return None
