"""What the collections of a benchmark are filled with, and what they are asked.

Real: the demo's snippets under the packaged teacher's tokenizer, with keywords and static sentence vectors made as ingest
makes them; also spans of snippets, where a hundred thousand real ones are wanted. Made up: token ids by Zipf's law and
sentence vectors of a chosen shape. Token states are noise everywhere: nothing here reads them, only their size counts.
"""

import functools
import itertools
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refbert.config import CorpusConfig, ReferenceConfig, TeacherConfig
from refbert.corpus import Rejected, Row, corpus_files, read_rows
from refbert.memory.manifest import manifest_of
from refbert.memory.texts import ReferenceTexts, reference_texts
from refbert.passages import split_of
from refbert.references import document_keywords, query_keywords
from refbert.teacher import load_teacher
from vector_store.schema import Manifest, Point, Query, SparseVector

BATCH = 32
SNIPPETS = CorpusConfig(path="pypi:vader-snippets", document_field="document")
REFERENCES = ReferenceConfig(criterion="hybrid", dense_index=True)

VOCABULARY = 30_000
ZIPF_EXPONENT, ZIPF_OFFSET = 1.07, 2.7
"""Mandelbrot's form of Zipf's law with the constants that are usual for English words."""

TOKENS_PER_TEXT = 24
"""Draws per made-up text by default: about 20 distinct tokens."""

LATENT_DIM, POINTS_PER_CLUSTER = 16, 50
NOISE_POOL = 4096
CHUNK = 1000


class Snippet(NamedTuple):
    """One real text and its token ids, special ones included."""

    row: Row
    token_ids: NDArray[np.int32]


@dataclass(frozen=True)
class Snippets:
    """Real texts: some to store, some never stored, and what turns both into points and queries."""

    stored: list[Snippet]
    heldout: list[Snippet]
    texts: ReferenceTexts

    @property
    def manifest(self) -> Manifest:
        """What the whole snippets are stored under."""
        return self.texts.manifest

    def points(self) -> Iterator[Point]:
        """Every stored snippet as ingest writes it, but for its states."""
        states = noise(self.manifest.dim)
        for number, (row, token_ids) in enumerate(self.stored):
            yield self._point(number, row, token_ids, states[number % NOISE_POOL :][: len(token_ids)])

    def spans(self, num: int, tokens: int) -> Iterator[Point]:
        """`num` spans of stored snippets, whole ones first, then random ones of 4 words or more; `tokens` states each."""
        random = np.random.default_rng(0)
        states = noise(self.manifest.dim)
        for number, (row, token_ids) in enumerate(itertools.islice(itertools.cycle(self.stored), num)):
            words = token_ids[1:-1]
            if number >= len(self.stored) and len(words) > 4:
                length = int(random.integers(4, len(words)))
                first = int(random.integers(0, len(words) - length + 1))
                words = words[first : first + length]
            point = self._point(number, row, words, states[number % NOISE_POOL :][:tokens])
            kept = words[:tokens]
            assert point.states is not None
            yield replace(point, token_ids=kept, states=point.states[: len(kept)])

    def queries(self) -> list[Query]:
        """Stored snippets asking, as in training: neither they nor their documents may come back."""
        return [self.texts.query(row.text, token_ids, row.document) for row, token_ids in self.stored]

    def heldout_queries(self) -> list[Query]:
        """Snippets that were never stored."""
        return [self.texts.query(row.text, token_ids, None) for row, token_ids in self.heldout]

    def _point(self, number: int, row: Row, token_ids: NDArray[np.int32], states: NDArray[np.float16]) -> Point:
        fields = {"text": row.text, "source": row.source, "document": row.document, "split": "train"}
        # The first time round a text is stored under its own id, so that as a query it excludes itself.
        whole = number < len(self.stored)
        identifier = self.texts.identifier(row.text) if whole else str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))
        return self.texts.point(fields, identifier, token_ids, states.mean(0, dtype=np.float32), states)


def snippet_rows() -> list[Row]:
    """All of the demo's snippets, in their own order."""
    found = (row for file in corpus_files(SNIPPETS) for row in read_rows(file, SNIPPETS))
    return [row for row in found if not isinstance(row, Rejected)]


@functools.cache
def load_snippets(num: int | None = None) -> Snippets:
    """The first `num` snippets, all by default, a twentieth of them held out by the jobs' own rule."""
    teacher = load_teacher(TeacherConfig())
    rows = snippet_rows()[:num]
    encoded = teacher.tokenizer([row.text for row in rows], truncation=True, max_length=teacher.config.tokens)
    sides: dict[str, list[Snippet]] = {"train": [], "heldout": []}
    for row, ids in zip(rows, encoded["input_ids"], strict=True):
        if len(ids) > 2:  # more than the special tokens
            sides[split_of(row.text, SNIPPETS.heldout_fraction)].append(Snippet(row, np.array(ids, np.int32)))
    manifest = manifest_of(teacher, REFERENCES)
    return Snippets(sides["train"], sides["heldout"], reference_texts(teacher, manifest, REFERENCES))


@dataclass(frozen=True)
class Synthetic:
    """Made-up points: Zipf keywords, and sentence vectors, if any, that are clustered or, the worst case, plain Gaussian.

    Clustered vectors have LATENT_DIM degrees of freedom, embedded in `dim`, around a centre per POINTS_PER_CLUSTER points.
    """

    num: int
    tokens: int
    dim: int
    is_clustered: bool
    text_tokens: int = TOKENS_PER_TEXT
    has_sentences: bool = True

    @property
    def manifest(self) -> Manifest:
        """What they are stored under."""
        return Manifest(
            encoder="made up",
            fingerprint="made up",
            tokenizer="made up",
            layer=1,
            text_tokens=self.text_tokens,
            tokens=self.tokens,
            encoder_dim=self.dim,
            dim=self.dim,
            words_dim=self.dim if self.has_sentences else 0,
            bm25_k1=REFERENCES.bm25_k1,
            bm25_b=REFERENCES.bm25_b,
            bm25_average_tokens=REFERENCES.bm25_average_tokens,
        )

    def points(self) -> Iterator[Point]:
        """All points, the same at each call."""
        states = noise(self.dim)
        for first in range(0, self.num, CHUNK):
            sentences, token_ids, identifiers = self._drawn(first, min(CHUNK, self.num - first))
            for row, sentence in enumerate(sentences):
                keywords = document_keywords(token_ids[row], (), REFERENCES)
                own = states[(first + row) % NOISE_POOL :][: self.tokens]
                yield Point(
                    id=str(uuid.UUID(bytes=identifiers[row].tobytes())),
                    vector=own.mean(0, dtype=np.float32),
                    states=own,
                    token_ids=token_ids[row][: self.tokens],
                    keywords=SparseVector(keywords.token_ids, keywords.weights),
                    sentence=sentence if self.has_sentences else None,
                    text="",
                    source="made up",
                    document=f"document {(first + row) // 4}",
                    split="train",
                )

    def queries(self, num: int) -> list[Query]:
        """`num` texts that are not stored, drawn as the points are; each may not see one document."""
        found: list[Query] = []
        for first in range(0, num, CHUNK):
            size = min(CHUNK, num - first)
            sentences, token_ids, identifiers = self._drawn(self.num + first, size)
            for row, keywords in enumerate(query_keywords(token_ids, np.ones(token_ids.shape, bool), ())):
                found.append(
                    Query(
                        id=str(uuid.UUID(bytes=identifiers[row].tobytes())),
                        keywords=SparseVector(keywords.token_ids, keywords.weights),
                        sentence=sentences[row] if self.has_sentences else None,
                        document=f"document {first + row}",
                    )
                )
        return found

    def _drawn(self, first: int, size: int) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.uint8]]:
        random = np.random.default_rng([self.num, first])
        shares = 1 / (np.arange(VOCABULARY) + ZIPF_OFFSET) ** ZIPF_EXPONENT
        steps = np.cumsum(shares / shares.sum())
        # The last step is 1 but for rounding.
        token_ids = np.minimum(np.searchsorted(steps, random.random((size, self.text_tokens))), VOCABULARY - 1)
        identifiers = random.integers(0, 256, (size, 16), dtype=np.uint8)
        return self._sentences(random, size), token_ids.astype(np.int32), identifiers

    def _sentences(self, random: np.random.Generator, size: int) -> NDArray[np.float32]:
        if self.is_clustered:
            shape = np.random.default_rng(self.num)
            basis = shape.standard_normal((LATENT_DIM, self.dim))
            centres = shape.standard_normal((max(1, self.num // POINTS_PER_CLUSTER), LATENT_DIM))
            latent = centres[random.integers(0, len(centres), size)] + 0.3 * random.standard_normal((size, LATENT_DIM))
            vectors = latent @ basis + 0.1 * random.standard_normal((size, self.dim))
        else:
            vectors = random.standard_normal((size, self.dim))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def noise(dim: int) -> NDArray[np.float16]:
    """States to cut from: rows of noise, more than a whole text over NOISE_POOL so that any may be the first."""
    return np.random.default_rng(1).standard_normal((NOISE_POOL + 512, dim)).astype(np.float16)


def in_batches(queries: Sequence[Query], size: int = BATCH) -> list[list[Query]]:
    """Full batches only."""
    return [list(queries[start : start + size]) for start in range(0, len(queries) - size + 1, size)]
