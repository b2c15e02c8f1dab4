"""The student that a replica serves, beside the memory it reads, with the state of that memory.

Two threads use it, one that prepares batches (tokens and references) and one that runs the model. A memory that is away, or
another teacher's, costs quality, never an answer: it is looked at again every few seconds, and read again when it is back.
"""

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from jobs.config import RunConfig
from jobs.memory.student_memory import open_look_up, open_reader, reads_memory
from jobs.service.metrics import MemoryState, Metrics
from jobs.service.schema import Asked, AttendedReference, is_text
from refbert.config import ReferenceConfig
from refbert.corpus import Text, normalise
from refbert.explanation import answer
from refbert.folder import fingerprint
from refbert.memory.explanation import READ_OUT, explained
from refbert.memory.manifest import trained_manifest
from refbert.memory.reader import Reader, references_read
from refbert.teacher import Tokens
from vector_store.client import Client, connect
from vector_store.config import EMBEDDED, StoreConfig
from vector_store.errors import StoreError, StoreUnavailable
from vector_store.retriever import Retriever
from vector_store.schema import Neighbours
from vector_store.server.process import embedded_server
from vector_store.store import Store

log = logging.getLogger(__name__)

BUCKET_TOKENS = 8
"""Forwards are padded to multiples of this, so that few shapes occur and their kernels and buffers are used again."""

NEAREST = 5
"""Stored texts that an explanation compares a text with."""

NEAREST_CACHE_BYTES = 2**20

RETIREMENT_S = 30.0
"""From a student's replacement to its end: longer than a batch and its look-up take."""


@dataclass
class Row:
    """One text's result: its vector (dim,) float32, L2-normalised, and, of a student with a head, its answer (labels,)."""

    vector: NDArray[np.float32]
    scores: NDArray[np.float32] | None
    tokens: int
    references: list[AttendedReference] | None
    lookup_ms: float
    student_ms: float
    queue_ms: float = 0.0


@dataclass(frozen=True)
class Forward:
    """Texts of like length that share a forward: their places in the batch, their tokens, and what they read."""

    places: list[int]
    tokens: Tokens
    found: Neighbours | None
    explain: bool
    lookup_ms: float


class ServedStudent:
    """A student and its memory, for one replica. `close` when no batch uses it any more."""

    def __init__(self, config: RunConfig, folder: Path, device: torch.device, metrics: Metrics) -> None:
        self.config, self.folder, self.name = config, folder, config.name
        self.metrics = metrics
        self.reader: Reader = open_reader(config, folder, None, device, with_text=True)
        shape = self.reader.model.config
        self.dim: int = shape.dim
        self.vocabulary: int = shape.vocab_size
        self.labels = _labels(self.reader.model)
        self.fingerprint = fingerprint(folder)
        self.created = int((folder / "config.json").stat().st_mtime)
        self.state: MemoryState = "none"
        self.reason: str | None = None
        empty = self.reader.tokenizer("")["input_ids"]
        self._before, self._after = empty[:1], empty[1:]  # the special tokens around a text
        self._manifest = trained_manifest(shape.memory, folder) if reads_memory(config, folder) else None
        self._nearest: Reader | None = None
        self._client: Client | None = None
        self._url: str | None = None
        self._server = contextlib.ExitStack()  # the lease on an embedded one
        self._is_lost = False
        self._closed = threading.Event()
        metrics.student_is(self.name, self.fingerprint)
        self.check_memory()
        if self._manifest:
            threading.Thread(target=self._watch, name="memory", daemon=True).start()

    @property
    def reads_references(self) -> bool:
        """Whether the student reads a memory at all."""
        return self._manifest is not None

    # ------------------------------------------------------------ the memory

    def check_memory(self) -> None:
        """See whether the memory is there and still the student's own; start an embedded one that has ended."""
        if self._manifest is None:
            self._memory_is("none", None)
            return
        try:
            self._connect()
            assert self._client is not None
            patience_s = min(5.0, self.config.serve.memory_check_s)
            Store(self._client, self.config.store.model_copy(update={"write_deadline_s": patience_s})).require(
                self._manifest
            )
        except StoreUnavailable as error:
            self._is_lost = True
            self._memory_is("away", str(error))
        except StoreError as error:
            self._memory_is("refused", str(error))
        else:
            self._is_lost = False
            if self.state == "away" and isinstance(self.reader.source, Retriever):
                self.reader.source.reset_breaker()
            self._memory_is("ok", None)

    def close(self) -> None:
        """Stop watching, and let the store go."""
        self._closed.set()
        self._server.close()

    def retire(self) -> None:
        """Close when the batches that still use it must have ended."""
        self._closed.set()
        timer = threading.Timer(RETIREMENT_S, self.close)
        timer.daemon = True
        timer.start()

    def _watch(self) -> None:
        while not self._closed.wait(self.config.serve.memory_check_s):
            try:
                self.check_memory()
            except Exception:  # an edge: a thread that ends would leave the replica degraded for good
                log.exception("the memory could not be looked at")

    def _connect(self) -> None:
        """Open the look-up at the memory's address, where that is new."""
        url = self.config.store.url
        if url == EMBEDDED:
            if self._url and not self._is_lost:
                return
            directory, most = self.config.store_directory, self.config.store.message_bytes
            with contextlib.ExitStack() as lease:  # attaches, or starts the server again
                url = lease.enter_context(embedded_server(directory, message_bytes=most))
                before, self._server = self._server, lease.pop_all()
            before.close()  # not sooner: a server that nobody uses for a moment ends
        if url == self._url:
            return
        assert self._manifest is not None
        reader = self.reader
        client = connect(self.config.store, url)
        reader.texts, reader.source = self._look_up_of(client, self.config.store, self.config.references)
        self._client, self._url = client, url
        self._nearest = self._wide_reader(client)

    def _wide_reader(self, client: Client) -> Reader:
        """The same look-up for more texts than the student reads."""
        assert self._manifest is not None
        references = self.config.references.model_copy(update={"count": NEAREST})
        store = self.config.store.model_copy(update={"cache_bytes": NEAREST_CACHE_BYTES})
        reader, look_up = self.reader, self._look_up_of(client, store, references)
        return Reader(reader.model, reader.tokenizer, reader.max_tokens, *look_up)

    def _look_up_of(self, client: Client, store: StoreConfig, references: ReferenceConfig) -> Any:
        assert self._manifest is not None
        tokenizer = self.reader.tokenizer
        return open_look_up(self.folder, self._manifest, tokenizer, client, store, references, with_text=True)

    def _memory_is(self, state: MemoryState, reason: str | None) -> None:
        if state != self.state:
            log.warning("memory: %s -> %s%s", self.state, state, f": {reason}" if reason else "")
        self.state, self.reason = state, reason
        self.metrics.memory_is(state)

    # ------------------------------------------------------------ before the forward

    def prepare(self, asked: Sequence[Asked], explain: Sequence[bool]) -> list[Forward]:
        """Tokenize a batch, cut it into forwards, and look up what each reads."""
        texts = [self._text(one) for one in asked]
        tokens = self._tokens(asked, texts)
        lengths = tokens.mask.sum(1).tolist()
        forwards = []
        for is_explained in (False, True):
            places = [place for place, wanted in enumerate(explain) if wanted is is_explained]
            for chosen in cut(places, lengths, self.config.serve.max_batch, self.config.serve.batch_tokens):
                width = padded(max(lengths[place] for place in chosen))
                segments = None if tokens.token_type_ids is None else tokens.token_type_ids[chosen]
                own = _narrowed(Tokens(tokens.input_ids[chosen], tokens.mask[chosen], segments), width)
                started_s = time.perf_counter()
                found = self._look_up([texts[place] for place in chosen], own)
                lookup_s = time.perf_counter() - started_s
                self.metrics.lookup_s.observe(lookup_s)
                forwards.append(Forward(chosen, own, found, is_explained, 1000 * lookup_s))
        return forwards

    def _text(self, one: Asked) -> Text:
        """What is looked up: normalised as those that were trained on and stored."""
        if is_text(one):
            return normalise(one)  # type: ignore[arg-type]
        return normalise(str(self.reader.tokenizer.decode([int(token) for token in one], skip_special_tokens=True)))

    def _tokens(self, asked: Sequence[Asked], texts: Sequence[Text]) -> Tokens:
        """Tokenize texts; ids that were given are read as they stand, cut and put between the special tokens."""
        tokens = self.reader.tokenize(texts)
        given = {place: one for place, one in enumerate(asked) if not is_text(one)}
        if not given:
            return tokens
        most = self.reader.max_tokens - len(self._before) - len(self._after)
        rows = {place: [*self._before, *list(ids)[:most], *self._after] for place, ids in given.items()}
        width = max(tokens.input_ids.shape[1], *map(len, rows.values()))
        ids, mask, segments = tokens = _narrowed(tokens, width)
        for place, row in rows.items():
            ids[place], mask[place] = 0, 0
            ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
            if segments is not None:
                segments[place] = 0
        return tokens

    def _look_up(self, texts: Sequence[Text], tokens: Tokens) -> Neighbours | None:
        source = self.reader.source
        if self.state == "refused" or source is None:
            self.metrics.references.labels("null").inc(len(texts))
            return None
        hits = source.counts.get("cache_hits", 0)
        found = self.reader.look_up(texts, tokens)
        steps = Counter(found.rungs if found else ["null"] * len(texts))
        for step, count in steps.items():
            self.metrics.references.labels(step).inc(count)
        self.metrics.cache_hits.inc(max(0, source.counts.get("cache_hits", 0) - hits))
        if set(steps) == {"live"}:
            if self.state == "away":
                self._memory_is("ok", None)
        elif self.state == "ok" and self.config.references.criterion != "none":
            self._memory_is("away", "look-ups are not answered in time; answers come from kept references or none")
        return found

    # ------------------------------------------------------------ the forward

    @torch.inference_mode()
    def answer(self, forward: Forward) -> list[Row]:
        """Run the student over one forward's texts."""
        started_s = time.perf_counter()
        output = self.reader.forward(
            forward.tokens, forward.found, output_projected_states=False, output_attentions=forward.explain
        )
        vectors = F.normalize(output.sentence_embedding, dim=-1).float().cpu().numpy()
        logits = output.get("logits")
        scores = None if logits is None else answer(logits.float()).cpu().numpy()
        student_s = time.perf_counter() - started_s
        self.metrics.student_s.observe(student_s)
        self.metrics.batch_texts.observe(len(forward.places))
        lengths = forward.tokens.mask.sum(1).tolist()
        masses = self._masses(forward, output) if forward.explain else None
        return [
            Row(
                vectors[row],
                None if scores is None else scores[row],
                lengths[row],
                None if masses is None else self._read(forward, row, masses[row]),
                forward.lookup_ms,
                1000 * student_s,
            )
            for row in range(len(forward.places))
        ]

    def _masses(self, forward: Forward, output: Any) -> list[dict[str, NDArray[np.float32]]]:
        """For each row and reading layer the attention mass on each reference, best first, and last on the null slot.

        Mean over heads and the row's own tokens, as `refbert.explanation` has it for one text without padding.
        """
        config = self.reader.model.config
        layers = {
            str(layer): scores for layer, scores in enumerate(output.attention_scores) if config.reads_reference(layer)
        }
        if output.readout_scores is not None:
            layers[READ_OUT] = output.readout_scores
        own, found = forward.tokens.mask.float(), forward.found
        rows: list[dict[str, NDArray[np.float32]]] = [{} for _ in forward.places]
        for name, scores in layers.items():
            mass = scores.softmax(-1).mean(1).cpu()  # (batch, tokens, seen)
            mass = (mass * own[:, :, None]).sum(1) / own.sum(1, keepdim=True)
            count = found.count if found else 0
            ref_tokens = int(found.mask.sum(1).max(initial=0)) if found else 0
            seen = mass[:, mass.shape[1] - max(1, ref_tokens) :].numpy()
            null = mass[:, mass.shape[1] - max(1, ref_tokens) - 1].numpy()
            for row in range(len(rows)):
                ranks = found.ranks[row, :ref_tokens] if found else np.empty(0, np.int16)
                parts = [seen[row, :ref_tokens][ranks == rank].sum() for rank in range(count)]
                rows[row][name] = np.array([*parts, null[row]], np.float32)
        return rows

    def _read(self, forward: Forward, row: int, masses: dict[str, NDArray[np.float32]]) -> list[AttendedReference]:
        read = references_read(forward.found, row)
        return [
            AttendedReference(
                **one.model_dump(),
                attention_mass={
                    layer: float(mass[-1] if one.id is None else mass[rank]) for layer, mass in masses.items()
                },
            )
            for rank, one in enumerate(read)
        ]

    # ------------------------------------------------------------ one text, closely

    def explain(self, text: Text) -> dict[str, Any]:
        """Explain one text and name the stored texts that are nearest to it by the memory's criterion.

        `vector_without` is its vector (dim,) without a reference.
        """
        text = normalise(text)
        explanation = explained(self._safe_reader(), text)
        nearest: list[dict[str, Any]] = []
        if self._nearest is not None and self.state != "refused":
            found = self._nearest.look_up([text], self._nearest.tokenize([text]))
            nearest = [read.model_dump() for read in references_read(found, 0) if read.text is not None]
        alone = Forward([0], self.reader.tokenize([text]), None, False, 0.0)
        return {**explanation, "nearest": nearest, "vector_without": self.answer(alone)[0].vector}

    def _safe_reader(self) -> Reader:
        reader = self.reader
        if self.state != "refused":
            return reader
        return Reader(reader.model, reader.tokenizer, reader.max_tokens, None, None)


def cut(places: Sequence[int], lengths: Sequence[int], max_texts: int, max_tokens: int) -> list[list[int]]:
    """Cut texts into forwards of like length, shortest first: few enough texts, and tokens with padding within the budget.

    A text that exceeds the budget by itself has a forward by itself.
    """
    forwards: list[list[int]] = []
    for place in sorted(places, key=lambda place: lengths[place]):
        current = forwards[-1] if forwards else None
        if current is None or len(current) == max_texts or (len(current) + 1) * padded(lengths[place]) > max_tokens:
            forwards.append([place])
        else:
            current.append(place)
    return forwards


def padded(length: int) -> int:
    """The width that a text of so many tokens is padded to."""
    return -(-length // BUCKET_TOKENS) * BUCKET_TOKENS


def _narrowed(tokens: Tokens, width: int) -> Tokens:
    """Cut or pad tokens to a width; what is cut is padding, and zero is masked."""

    def narrowed(part: torch.Tensor) -> torch.Tensor:
        return F.pad(part[:, :width], (0, max(0, width - part.shape[1])))

    ids, mask, segments = tokens
    return Tokens(narrowed(ids), narrowed(mask), None if segments is None else narrowed(segments))


def _labels(model: Any) -> list[str] | None:
    if not hasattr(model, "classifier"):
        return None
    return [str(model.config.id2label[label]) for label in range(model.config.num_labels)]
