"""Export a memory to a folder of parquet files, and import it into a store.

    <folder>/points-00000.parquet ...    points in the order of ids, a bounded number in each file
    <folder>/blobs.parquet               what is kept with the collection: term statistics, students' corrections, deleted ids
    <folder>/manifest.json               the collection's manifest and metadata, the files with their rows; written last

Each file is written to a draft and renamed. States are the packed bytes that the collection stores. An export leaves out points
that fail `check`, an import the deleted ids. Opens no connection: works on the caller's `Store`. The functions import pyarrow,
so that look-ups do not load it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray
from pydantic import BaseModel, NonNegativeInt, ValidationError

from vector_store.atomic import DRAFT, publish, write_whole
from vector_store.codec import check, decode, pack_vector, packed_states, unpack_states, unpack_vector
from vector_store.errors import CollectionMismatch, InvalidPoint, StoreError
from vector_store.protocol import api
from vector_store.schema import Manifest, Point, SparseVector, parts
from vector_store.store import DELETED, Store
from vector_store.versions import PREVIOUS_OF

if TYPE_CHECKING:
    import pyarrow

MANIFEST_FILE = "manifest.json"
FILE_PATTERN = "points-*.parquet"
BLOBS_FILE = "blobs.parquet"

ROWS_PER_GROUP = 256
NUM_SHOWN = 10
"""Most left-out points that are listed; all are counted."""


class ExportedFile(BaseModel, frozen=True, extra="forbid"):
    """One parquet file of an export, and its number of points."""

    name: str
    rows: NonNegativeInt


class ExportManifest(BaseModel, frozen=True, extra="forbid"):
    """Content of `manifest.json`. `metadata` is the collection's, without its manifest, as protobuf's JSON."""

    manifest: Manifest
    metadata: dict[str, Any]
    rows: NonNegativeInt
    left_out: NonNegativeInt
    files: list[ExportedFile]


@dataclass
class Export:
    """Result of an export: what was written, and the points that no store would accept, the first of them with reasons."""

    num_points: int = 0
    num_left_out: int = 0
    first_left_out: list[tuple[str, str]] = field(default_factory=list)
    files: list[ExportedFile] = field(default_factory=list)


@dataclass
class Import:
    """Result of an import: num_read = num_skipped (already stored) + num_deleted (from there before) + num_written."""

    num_read: int = 0
    num_skipped: int = 0
    num_deleted: int = 0
    num_written: int = 0


def export_points(
    store: Store,
    folder: Path,
    rows_per_file: int,
    advance: Callable[[int], object] = lambda num_points: None,
) -> Export:
    """Write every point to parquet files in `folder`, which is created; an unfinished export in it is started again.

    A point that cannot be decoded or fails `check` is left out and reported. StoreError where the folder holds a finished
    export or anything else. After an error the folder has no manifest.json, and no import accepts it.
    """
    import pyarrow.parquet

    manifest = store.manifest()
    _clear_unfinished(folder)
    schema = _schema(manifest)
    done = Export()
    rows = _rows(store, manifest, done, advance)
    while group := list(islice(rows, min(ROWS_PER_GROUP, rows_per_file))):
        name = f"points-{len(done.files):05d}.parquet"
        draft = folder / (name + DRAFT)
        num_rows = 0
        with pyarrow.parquet.ParquetWriter(
            draft,
            schema,
            # States are nearly random bytes: compression takes time and saves little.
            compression={column: "none" if column in ("states", "vector") else "zstd" for column in schema.names},
            use_dictionary=["source", "document", "split"],
            write_page_checksum=True,
        ) as writer:
            while group:
                writer.write_table(pyarrow.Table.from_pylist(group, schema))
                num_rows += len(group)
                group = list(islice(rows, min(ROWS_PER_GROUP, rows_per_file - num_rows)))
        publish(draft, folder / name)
        done.files.append(ExportedFile(name=name, rows=num_rows))
        done.num_points += num_rows
    draft = folder / (BLOBS_FILE + DRAFT)
    kept = dict(store.blobs())
    pyarrow.parquet.write_table(
        pyarrow.table(
            {
                "name": pyarrow.array(kept.keys(), pyarrow.string()),
                "content": pyarrow.array(kept.values(), pyarrow.binary()),
            }
        ),
        draft,
        write_page_checksum=True,
    )
    publish(draft, folder / BLOBS_FILE)
    metadata = {
        key: json_format.MessageToDict(value)
        for key, value in store.metadata().items()
        if not key.startswith(PREVIOUS_OF)  # is about an alias of this store
    }
    finished = ExportManifest(
        manifest=manifest, metadata=metadata, rows=done.num_points, left_out=done.num_left_out, files=done.files
    )
    # Sorted: protobuf orders the keys of its maps anew in each process, and equal memories should give equal exports.
    write_whole(folder / MANIFEST_FILE, json.dumps(finished.model_dump(mode="json"), indent=2, sort_keys=True) + "\n")
    return done


def read_export(folder: Path) -> ExportManifest:
    """Read the manifest of a finished export; StoreError where the folder has none."""
    path = folder / MANIFEST_FILE
    if not path.exists():
        raise StoreError(
            f"{folder} has no {MANIFEST_FILE}: it is not an export, or an unfinished one; export again into it"
        )
    try:
        return ExportManifest.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise StoreError(
            f"{path} is not an export of this format ({error.error_count()} fields missing or unknown); export again "
            "with this release"
        ) from error


def import_points(store: Store, folder: Path, advance: Callable[[int], object] = lambda num_points: None) -> Import:
    """Write the export's points that the collection does not have; the collection is created if missing.

    Points that were deleted from the collection are not stored again. Stored points are not changed, so an interrupted import
    is simply run again. StoreError, with the file's name, where a file is damaged (the points before it stay stored),
    CollectionMismatch where the collection or a file has another manifest.
    """
    export = read_export(folder)
    store.ensure(export.manifest)
    done = Import()
    for file in export.files:
        for points in _read(folder / file.name, file.rows, export.manifest):
            known = store.known([point.id for point in points])
            new = set(known.new)
            done.num_read += len(points)
            done.num_skipped += len(known.stored)
            done.num_deleted += len(known.deleted)
            done.num_written += store.upsert([point for point in points if point.id in new])
            advance(len(points))
    for name, content in _read_blobs(folder / BLOBS_FILE):
        if name != DELETED:
            store.keep(name, content)
    # Last, so that a reader who needs this metadata does not use an incomplete memory.
    store.merge_metadata({key: json_format.ParseDict(value, api.Value()) for key, value in export.metadata.items()})
    return done


def _clear_unfinished(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    drafts = (FILE_PATTERN + DRAFT, MANIFEST_FILE + DRAFT, BLOBS_FILE + DRAFT)
    ours = {path for pattern in (FILE_PATTERN, BLOBS_FILE, *drafts) for path in folder.glob(pattern)}
    others = sorted(path.name for path in folder.iterdir() if path not in ours)
    if others:
        raise StoreError(f"{folder} is not empty (it holds {others[0]!r}); export into a new folder")
    for path in ours:
        path.unlink()


def _schema(manifest: Manifest) -> "pyarrow.Schema":
    import pyarrow as pa

    fields = {
        "id": pa.string(),
        "text": pa.string(),
        "text_pair": pa.string(),
        "source": pa.string(),
        "document": pa.string(),
        "split": pa.string(),
        "num_tokens": pa.int32(),
        "token_ids": pa.list_(pa.int32()),
        "vector": pa.binary(),
        "residuals": pa.map_(pa.string(), pa.binary()),
        "states": pa.binary(),
        "keyword_indices": pa.list_(pa.uint32()),
        "keyword_values": pa.list_(pa.float32()),
        "sentence": pa.list_(pa.float32()),
    }
    return pa.schema(fields, metadata={"manifest": manifest.model_dump_json()})


def _rows(store: Store, manifest: Manifest, done: Export, advance: Callable[[int], object]) -> Iterator[dict[str, Any]]:
    for messages in store.stored_pages():
        for message in messages:
            try:
                point = decode(message, manifest)
                check(point, manifest)
            except InvalidPoint as error:
                done.num_left_out += 1
                if len(done.first_left_out) < NUM_SHOWN:
                    done.first_left_out.append((message.id.uuid or str(message.id.num), error.reason))
                continue
            yield {
                "id": point.id,
                **dict(zip_longest(("text", "text_pair"), parts(point.text))),
                "source": point.source,
                "document": point.document,
                "split": point.split,
                "num_tokens": len(point.token_ids),
                "token_ids": point.token_ids,
                "vector": pack_vector(point.vector, manifest.vector_datatype),
                "residuals": {
                    student: pack_vector(residual, manifest.vector_datatype)
                    for student, residual in point.residuals.items()
                },
                "states": None if point.states is None else packed_states(message),
                "keyword_indices": point.keywords.indices,
                "keyword_values": point.keywords.values,
                "sentence": point.sentence,
            }
        advance(len(messages))


def _read(path: Path, num_rows: int, manifest: Manifest) -> Iterator[list[Point]]:
    """The points of one file, a bounded number at a time."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        # Pre-buffering holds the whole file in RAM: reading one of 480 MiB peaked at 624 MiB with it, at 139 MiB without.
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
            _require_manifest(path, file.schema_arrow, manifest)
            if file.metadata.num_rows != num_rows:
                raise ValueError(f"{file.metadata.num_rows} rows, {MANIFEST_FILE} says {num_rows}")
            for batch in file.iter_batches(ROWS_PER_GROUP):
                if "text_pair" not in batch.schema.names:  # exported by a release without pairs
                    batch = batch.append_column("text_pair", pa.nulls(batch.num_rows, pa.string()))
                columns = [batch.column(name) for name in _schema(manifest).names]
                yield [_point(manifest, *(column[row] for column in columns)) for row in range(batch.num_rows)]
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise StoreError(
            f"{path} is missing, truncated or damaged ({str(error).splitlines()[0]}); the points before it are imported: "
            "replace the file by a complete copy, and import again"
        ) from error


def _read_blobs(path: Path) -> Iterator[tuple[str, bytes]]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            f"{path} is missing or damaged ({str(error).splitlines()[0]}); the points are imported: replace the file by a "
            "complete copy, and import again"
        ) from error
    yield from zip(table["name"].to_pylist(), table["content"].to_pylist(), strict=True)


def _require_manifest(path: Path, schema: "pyarrow.Schema", manifest: Manifest) -> None:
    found = (schema.metadata or {}).get(b"manifest", b"{}")
    if json.loads(found) != manifest.model_dump(mode="json"):
        raise CollectionMismatch(
            f"{path} has another manifest than {path.parent / MANIFEST_FILE}; the folder mixes exports: export again into a "
            "new one"
        )


def _point(
    manifest: Manifest,
    identifier: Any, text: Any, text_pair: Any, source: Any, document: Any, split: Any,
    num_tokens: Any, token_ids: Any, vector: Any, residuals: Any, states: Any, indices: Any, values: Any, sentence: Any,
) -> Point:  # fmt: skip
    """A point from the Arrow scalars of one row, in the order of the columns."""
    packed = states.as_py()
    if len(token_ids) != num_tokens.as_py():
        raise ValueError(f"point {identifier} has {len(token_ids)} token ids, its row says {num_tokens}")

    def unpacked(content: bytes) -> NDArray[np.float32]:
        return unpack_vector(content, manifest.encoder_dim, manifest.vector_datatype)

    return Point(
        id=identifier.as_py(),
        vector=unpacked(vector.as_py()),
        residuals={student: unpacked(content) for student, content in residuals.as_py() or ()},
        states=None if packed is None else unpack_states(packed, manifest.dim, manifest.datatype),
        packed_states=packed,
        token_ids=token_ids.values.to_numpy(zero_copy_only=False),
        keywords=SparseVector(
            indices.values.to_numpy(zero_copy_only=False), values.values.to_numpy(zero_copy_only=False)
        ),
        sentence=sentence.values.to_numpy(zero_copy_only=False) if sentence.is_valid else None,
        text=(text.as_py(), text_pair.as_py()) if text_pair.is_valid else text.as_py(),
        source=source.as_py(),
        document=document.as_py(),
        split=split.as_py(),
    )
