"""Convert a collection of format 2 into one of this format: no text is encoded again.

Format 2 kept token states, from which the teacher's vectors come as their means, and left IDF to the store: the caller
publishes term statistics afterwards. Format 2 was written until 2026-11-28; the old collection stays as it is. A collection
whose states were cut or projected is refused: its vectors cannot be had from them.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from vector_store.codec import STATES, VECTOR, as_bytes, as_text, decode, pack_vector, unpack_states
from vector_store.errors import CollectionMismatch
from vector_store.protocol import api
from vector_store.schema import FORMAT_VERSION, UNPROJECTED, Manifest, Point
from vector_store.store import Store

BEFORE = 2
SMALL_VOCABULARY = 2**16


def convert(old: Store, new: Store, vocabulary: int, advance: Callable[[int], object] = lambda num_points: None) -> int:
    """Write the points of `old` that `new` neither has nor had deleted, and return how many; interrupted, it is run again.

    `vocabulary` is the size of the encoder's vocabulary. CollectionMismatch where the old collection is of another format, or
    has no whole states; InvalidPoint at the first point that cannot be read.
    """
    manifest = converted_manifest(old.raw_manifest(), vocabulary)
    new.ensure(manifest)
    if deleted := old.deleted_ids():
        new.remember_deleted(deleted)
    written = 0
    for messages in old.raw_pages(manifest.bytes_per_point()):
        points = [_point(message, manifest) for message in messages]
        to_write = set(new.known([point.id for point in points]).new)
        written += new.upsert([point for point in points if point.id in to_write])
        advance(len(points))
    return written


def converted_manifest(fields: dict[str, Any], vocabulary: int) -> Manifest:
    """Return the manifest of what a collection with this one of format 2 becomes."""
    if (found := fields.get("format_version")) != BEFORE:
        raise CollectionMismatch(f"the collection has format {found}, wanted {BEFORE}: there is nothing to convert")
    if fields["projection"] != UNPROJECTED or fields["tokens"] != fields["text_tokens"]:
        raise CollectionMismatch(
            "the collection keeps states that were cut or projected, and sentence vectors are means of whole ones; ingest its "
            "texts again"
        )
    kept = {name: value for name, value in fields.items() if name in Manifest.model_fields}
    return Manifest(
        **{**kept, "format_version": FORMAT_VERSION},
        words_dim=fields["encoder_dim"] if fields["dense_index"] else 0,
        token_bytes=2 if vocabulary <= SMALL_VOCABULARY else 4,
    )


def _point(message: api.RetrievedPoint, manifest: Manifest) -> Point:
    """Decode a point of format 2 as one of this format whose vector is the mean of its states, then with that vector."""
    packed = as_bytes(message.payload[STATES].string_value)
    states = unpack_states(packed, manifest.dim, manifest.datatype)
    vector = states.mean(0, dtype=np.float32) if len(states) else np.zeros(manifest.encoder_dim, np.float32)
    message.payload[VECTOR].string_value = as_text(pack_vector(vector, manifest.vector_datatype))
    point = decode(message, manifest.model_copy(update={"token_bytes": 4}))
    return replace(point, vector=vector, packed_states=packed)
