"""See whether every point of a collection is what its manifest and its own id say.

Reads whole points, page by page, and never writes. Knows nothing of how points are made.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from qdrant_client import grpc as api

from vector_store.codec import check, decode
from vector_store.errors import InvalidPoint
from vector_store.schema import Manifest, parts, point_id
from vector_store.store import Store

NUM_SHOWN = 10
"""Bad points named one by one; the others are counted."""

OTHER_ID = "its id is not the hash of its text"


@dataclass
class Verification:
    """What was found: every bad point is counted under one reason, the first that it gave."""

    num_checked: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first_bad: list[tuple[str, str]] = field(default_factory=list)

    @property
    def num_bad(self) -> int:
        """Points with any fault."""
        return self.reasons.total()


def verify(store: Store, advance: Callable[[int], object] = lambda num_points: None) -> Verification:
    """Check each point: its payload, shapes, values, vectors, and its id against its text.

    Damaged points end nothing; a collection without a manifest raises CollectionMismatch. `advance` is called with the
    number of points of each page done.
    """
    manifest = store.manifest()
    found = Verification()
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
    return None if point.id == point_id(manifest.fingerprint, parts(point.text)) else OTHER_ID
