"""Where references become points and back: the one place that knows both libraries' words.

`refbert` speaks of references, `vector_store` of points and neighbours. Ingest, training, evaluation and serving all go
through `ReferenceTexts` and `open_retriever`, with the same code.
"""

import importlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, get_args

import numpy as np
import ray
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from jobs.config import RunConfig, load_config
from refbert.config import ReferenceConfig
from refbert.corpus import Text, normalise, text_of
from refbert.errors import InputError
from refbert.references import Keywords, document_keywords, query_keywords, sentence_table, sentence_vector
from refbert.teacher import Teacher, Tokens, load_tokenizer, tokenize, tokenizer_hash
from refbert.trained import LookUp
from vector_store.client import Client, connect
from vector_store.config import EMBEDDED, StoreConfig
from vector_store.place import open_place
from vector_store.retriever import Retriever
from vector_store.schema import (
    ANY_PROJECTION,
    FORMAT_VERSION,
    UNPROJECTED,
    Criterion,
    Manifest,
    Neighbours,
    Point,
    Query,
    SparseVector,
    parts,
    point_id,
)
from vector_store.server.process import embedded_server
from vector_store.store import Store

CLUSTER_STORE = "REFBERT_STORE_URL"
"""Where a cluster serves the store that its jobs call embedded."""

SENTENCE_TABLE = "sentence_table.safetensors"
PATIENCE_MS = 30_000.0
"""Look-ups run ahead of the step, so training can wait for a slow store where a server has to degrade."""


class NeighbourSource(Protocol):
    """What a criterion must offer: the built-in retriever, or a user's own."""

    counts: dict[Any, int]  # queries answered, by rung of the degrade ladder
    lookup_ms: float  # how long the last batch took

    def neighbours(self, queries: Sequence[Query]) -> Neighbours:
        """Return the best points for each query."""

    def neighbours_and_points(self, queries: Sequence[Query]) -> tuple[Neighbours, Neighbours]:
        """Return the best points for each query, and the points stored under the queries' own ids."""


@dataclass(frozen=True)
class MemoryAddress:
    """Where a running memory answers, and the manifest that its writer and its readers must share."""

    url: str
    manifest: Manifest


def manifest_of(teacher: Teacher, references: ReferenceConfig, projection: str | None = None) -> Manifest:
    """Describe what this teacher writes under these options: with this projection, or any, where they ask for one.

    Raises InputError where they ask for more tokens or a greater width than the teacher has.
    """
    for key, wanted, most in (
        ("tokens", references.tokens, teacher.config.tokens),
        ("dim", references.dim, teacher.dim),
    ):
        if wanted is not None and wanted > most:
            raise InputError(f"references.{key}={wanted} exceeds the teacher's {most}; leave it out, or give less")
    is_projected = references.dim not in (None, teacher.dim)
    return Manifest(
        encoder=teacher.config.model,
        fingerprint=teacher.fingerprint,
        tokenizer=tokenizer_hash(teacher.tokenizer),
        layer=teacher.num_layers,
        text_tokens=teacher.config.tokens,
        tokens=references.tokens or teacher.config.tokens,
        encoder_dim=teacher.dim,
        dim=references.dim or teacher.dim,
        datatype=references.datatype,
        projection=(projection or ANY_PROJECTION) if is_projected else UNPROJECTED,
        dense_index=references.dense_index,
        bm25_k1=references.bm25_k1,
        bm25_b=references.bm25_b,
        bm25_average_tokens=references.bm25_average_tokens,
    )


def trained_manifest(saved: dict[str, Any] | None, student: str | Path) -> Manifest | None:
    """Read the manifest of the memory that a student was distilled with, from its config; None where it read none."""
    if saved is None:
        return None
    try:
        return Manifest.model_validate(saved)
    except ValidationError:
        raise InputError(
            f"{student} was distilled with a memory of format {saved.get('format_version')}, this release reads "
            f"{FORMAT_VERSION}; distil it again under another name=..."
        ) from None


def reference_id(fingerprint: str, text: Text) -> str:
    """Id of a text's point, or of a pair's, whoever stores it: of its teacher and its normalised form."""
    return point_id(fingerprint, parts(normalise(text)))


@contextmanager
def running_store(config: RunConfig) -> Iterator[str]:
    """Yield the URL of the run's store; an embedded one is started, or found running, and lives until its last user ends.

    On a cluster that serves one (`python -m cluster`), that is the embedded store of its jobs.
    """
    if (url := os.environ.get(CLUSTER_STORE)) and config.store.url == EMBEDDED:
        yield url
        return
    if config.store.url != EMBEDDED:
        yield config.store.url
        return
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(machines) > 1:
        raise InputError(
            f"store.url=embedded serves one machine, and this Ray cluster has {len(machines)}; serve its directory to "
            "all with `python -m vector_store serve PATH --host ADDRESS --port 6334` and set store.url=http://ADDRESS:6334, or "
            "name a Qdrant server"
        )
    with embedded_server(config.store_directory, message_bytes=config.store.message_bytes) as url:
        yield url


class ReferenceTexts:
    """What a text needs to be stored or to ask: its id, its keyword weights and, where the memory is dense, its vector."""

    def __init__(
        self,
        manifest: Manifest,
        references: ReferenceConfig,
        tokenizer: PreTrainedTokenizerBase,
        table: NDArray[np.float16] | None,
    ) -> None:
        self.manifest = manifest
        self.references = references
        self.tokenizer = tokenizer
        self.special_ids = sorted(tokenizer.all_special_ids)
        self.table = table
        self._tokenizing = threading.Lock()

    def tokenize(self, texts: Sequence[Text]) -> Tokens:
        """Return what an encoder reads. Threads may share it: a fast tokenizer alone fails as `Already borrowed`."""
        with self._tokenizing:
            return tokenize(self.tokenizer, texts, self.manifest.text_tokens)

    def identifier(self, text: Text) -> str:
        """Return the id that a text is stored under, and asks under."""
        return reference_id(self.manifest.fingerprint, text)

    def point(
        self, row: dict[str, Any], identifier: str, token_ids: NDArray[np.int32], states: NDArray[np.float16]
    ) -> Point:
        """Build the point of a prepared passage from all of its token ids (text_tokens,), and states (text_tokens, dim).

        The manifest's token budget cuts what is stored; keywords and sentence vector are the whole passage's.
        """
        budget = self.manifest.tokens
        return Point(
            id=identifier,
            states=states[:budget],
            token_ids=token_ids[:budget],
            keywords=_sparse(document_keywords(token_ids, self.special_ids, self.references)),
            sentence=self._sentence(token_ids),
            text=text_of(row),
            source=row["source"],
            document=row["document"],
            split=row["split"],
        )

    def query(self, text: Text, token_ids: NDArray[np.int32], document: str | None) -> Query:
        """Build the look-up of a text; its own point never comes back, nor does its document's."""
        return Query(
            id=self.identifier(text),
            keywords=_sparse(query_keywords(token_ids, self.special_ids)),
            sentence=self._sentence(token_ids),
            document=document if self.references.exclude_same_document else None,
        )

    def queries(
        self, texts: Sequence[Text], ids: Tensor, mask: Tensor, documents: Sequence[str | None] | None = None
    ) -> list[Query]:
        """Build the look-ups of a tokenized batch; `ids` and `mask` (batch, tokens) are padded on the right."""
        lengths = mask.sum(1).tolist()
        return [
            self.query(text, ids[row, : lengths[row]].numpy(), documents[row] if documents else None)
            for row, text in enumerate(texts)
        ]

    def _sentence(self, token_ids: NDArray[np.int32]) -> NDArray[np.float32] | None:
        return None if self.table is None else sentence_vector(token_ids, self.special_ids, self.table)


def reference_texts(teacher: Teacher, manifest: Manifest, references: ReferenceConfig) -> ReferenceTexts:
    """Make the text side of a memory from its teacher."""
    table = sentence_table(teacher.static_vectors()) if manifest.dense_index else None
    return ReferenceTexts(manifest, references, teacher.tokenizer, table)


def open_retriever(
    client: Client,
    store: StoreConfig,
    texts: ReferenceTexts,
    criterion: str,
    with_text: bool = False,
    patience_s: float = 0.0,
) -> NeighbourSource:
    """Open one process's retriever under a criterion. Raises InputError for a dotted path that is no criterion.

    A built-in one waits up to `patience_s` for a store that has gone away, before look-ups degrade.
    """
    if criterion in get_args(Criterion):
        built_in, references = cast(Criterion, criterion), texts.references
        return Retriever(
            client, store, texts.manifest, built_in, references.exclude_splits, with_text, count=references.count,
            patience_s=patience_s,
        )  # fmt: skip
    return _import_criterion(criterion)(client, store, texts.manifest)


@contextmanager
def references_at(student: str | Path, place: str | None = None, config: RunConfig | None = None) -> Iterator[LookUp]:
    """Open the memory that a student was trained with as the look-up that `refbert.load` takes.

    `place` is the URL of a server or the directory of an embedded store; by default where the run's own is. The options
    (collection, criterion, deadline) are those of the run's config.yaml, beside the student's folder, unless given. Another
    memory than the student's is refused; one that goes away later costs quality, not an error.
    """
    folder = Path(student)
    config = config or load_config(folder.parent / "config.yaml")
    saved = json.loads((folder / "config.json").read_text()).get("memory")
    if (manifest := trained_manifest(saved, folder)) is None:
        raise InputError(f"{folder} was trained without a memory; load it without references")
    if place is None:
        place = config.store.url if config.store.url != EMBEDDED else str(folder.absolute().parents[2] / "store")
    table = load_file(folder / SENTENCE_TABLE)["table"] if manifest.dense_index else None
    texts = ReferenceTexts(manifest, config.references, load_tokenizer(str(folder)), table)
    with open_place(place, config.store) as client:
        Store(client, config.store).require(manifest)
        source = open_retriever(client, config.store, texts, config.references.criterion)

        def look_up(asked: Sequence[Text]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
            ids, mask, _ = texts.tokenize(asked)
            found = source.neighbours(texts.queries(asked, ids, mask))
            longest = max(1, int(found.mask.sum(1).max(initial=0)))
            return found.token_ids[:, :longest], found.states[:, :longest], found.mask[:, :longest]

        yield look_up


def patient_store(config: RunConfig) -> StoreConfig:
    """Return the run's store options with the patience of a job that nobody waits for."""
    return config.store.model_copy(update={"lookup_deadline_ms": PATIENCE_MS})


def connect_store(config: RunConfig, url: str, rank: int | None = None) -> Client:
    """Open this process's client of a running store; of several nodes one on its machine, else that of a worker's rank."""
    return connect(config.store, url, rank=rank)


def _sparse(keywords: Keywords) -> SparseVector:
    return SparseVector(keywords.token_ids, keywords.weights)


def _import_criterion(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"references.criterion={path} cannot be imported ({error}); give module.function") from None
