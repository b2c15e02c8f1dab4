"""Fill a memory: create its collection, and stream a prepared corpus through the teacher into it.

A text is done only when the store has acknowledged its point. A text that is stored already is never encoded again. The chunks
that a killed job had finished are mostly not even read again: a file beside the corpus says which are done (see
`load_progress`). Every training passage and every unreadable row is accounted for: read = skipped (stored before, or deleted) +
duplicate (repeats another row's text) + written + rejected (unreadable, refused by the store, or of a chunk that kept killing
its process). Term statistics are published at the end.

Given the folder of a student that the memory corrects (as jobs/adapt.py does), each new text gets its residual, too: what the
teacher says of it less what student and maps say. No correction is fitted here; the first load of a memory whose states are
narrowed fits their projection.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from jobs.config import RunConfig
from jobs.corpus.prepared import REJECTED, PassageRows, PreparedCorpus, chunked, prepare, texts_in
from jobs.memory.corrected import corrected_student
from jobs.memory.load_progress import LOAD, is_filled, load_progress
from jobs.memory.store import MemoryAddress
from jobs.run.attempts import DEATHS, Attempts, SetAside
from jobs.run.telemetry import INGEST, RunGauges, StageMetrics
from jobs.run.worker import per_node, set_up_worker
from refbert.config import ReferenceConfig
from refbert.memory.accounting import letter, letter_of, row_account, say_deleted
from refbert.memory.encoding import encode_ahead
from refbert.memory.manifest import manifest_of
from refbert.memory.progress import progress
from refbert.memory.reader import said_without_references
from refbert.memory.texts import reference_id, reference_texts
from refbert.passages import text_of
from refbert.projection import Projection, fit_projection
from refbert.teacher import Teacher, load_teacher
from vector_store.client import connect
from vector_store.schema import Manifest
from vector_store.store import Store
from vector_store.term_statistics import publish_term_statistics

log = logging.getLogger(__name__)

OUTCOMES = tuple(INGEST)
"""What becomes of rows: read is the sum of the others."""

FIGURES = ("tokens", "bytes", "look_up_s", "encode_s", "store_wait_s", "set_aside")
"""Of a chunk: tokens encoded, bytes sent, seconds of asking what is stored, of encoding, of waiting for the store; rows set
aside because their process died."""

PROJECTION = "projection_matrix"
"""Name under which a collection keeps the projection of its states."""

CHUNKS_PER_BLOCK = 4
MOST_BLOCKS = 20_000
"""Tasks of a load: beyond 80,000 chunks a task has more of them."""

PROJECTION_SAMPLE = 4096
"""Texts whose states the projection is fitted on."""


class EncodeAndStore:
    """Ray Data stage: chunks in, counts out. Looks up, encodes and stores in one call, so that states never travel.

    New texts get residuals of the `corrected` student: what the memory's version says of them without them.
    """

    def __init__(
        self,
        config: RunConfig,
        address: MemoryAddress,
        corpus: PreparedCorpus,
        pending: NDArray[np.int64],
        corrected: Path | None,
        attempts: Attempts,
    ) -> None:
        self.attempts = attempts
        with attempts.at_start("an encoder"):
            device = set_up_worker(per_node(config.ingest.most_encoders), config.ingest.gpus_per_encoder)
            config = config.model_copy(update={"store": address.of(config.store)})
            self.teacher = load_teacher(config.teacher, device)
            self.texts = reference_texts(self.teacher, address.manifest, config.references)
            self.client = connect(config.store, address.url)
            self.store = Store(self.client, config.store)
            # For the actor's life: each new thread would take a malloc arena of its own.
            self.writer = self.store.writer()
            self.projection = stored_projection(self.store, self.teacher)
            self.student = corrected_student(config, corrected, self.client, device) if corrected else None
            self.passages = PassageRows(corpus.table("train"))
            self.distinct = corpus.distinct_rows()
            self.pending, self.chunk_texts = pending, config.ingest.batch
            self.encoding, self.storing = StageMetrics("encode"), StageMetrics("store")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Store the chunk whose place among those to do is in the batch; return its number, outcomes and figures.

        `rejections` holds its rejected rows as JSON lines. A chunk at which too many processes have died is only counted.
        """
        (chunk,) = self.pending[batch["id"]]
        places = self.distinct[chunk * self.chunk_texts : (chunk + 1) * self.chunk_texts]
        with self.attempts.at(f"chunk-{chunk}") as died:
            return set_aside(chunk, places) if died >= DEATHS else self._store(chunk, places)

    def _store(self, chunk: int, places: NDArray[np.int64]) -> dict[str, Any]:
        rows = self.passages.at(np.asarray(places))
        by_id = {self.texts.identifier(text_of(row)): row for row in rows}
        started_s, waited_s, sent_bytes = time.monotonic(), self.writer.wait_s, self.writer.sent_bytes
        known = self.store.known(list(by_id))
        looked_up_s = time.monotonic() - started_s
        new = [(identifier, by_id[identifier]) for identifier in known.new]
        tokens = 0
        texts = [text_of(row) for _, row in new]
        said = said_without_references(self.student, texts) if self.student else None
        # Upserts go out while the next texts are encoded.
        for index, token_ids, states in encode_ahead(self.teacher, texts):
            identifier, row = new[index]
            kept = states if self.projection is None else self.projection.apply(states)
            vector = self.teacher.vector(states)
            point = self.texts.point(row, identifier, token_ids, vector, kept)
            if self.student and self.student.correction and said is not None:
                point = replace(point, residuals={self.student.correction.reader: vector - said[index]})
            self.writer.submit([point])
            tokens += len(token_ids)
        written, rejected = self.writer.finish()
        wait_s = self.writer.wait_s - waited_s
        figures = {
            "tokens": tokens,
            "bytes": self.writer.sent_bytes - sent_bytes,
            "look_up_s": looked_up_s,
            "encode_s": time.monotonic() - started_s - looked_up_s - wait_s,
            "store_wait_s": wait_s,
        }
        self.encoding.count(rows=len(new), tokens=tokens, busy_s=figures["encode_s"], wait_s=looked_up_s)
        self.storing.count(rows=written, bytes=figures["bytes"], wait_s=wait_s)
        counts = {"read": len(rows), "skipped": len(by_id) - len(new), "written": written, "rejected": len(rejected)}
        return _as_block(chunk, counts, figures, "".join(map(letter_of, rejected)))


def set_aside(chunk: int, places: NDArray[np.int64]) -> dict[str, Any]:
    """Return what becomes of a chunk that kills its process: its rows, which are not looked at, are rejected by number."""
    reason = f"{DEATHS} processes died at the {len(places)} rows that this one is of"
    lines = [letter(reason, source=f"train.arrow row {row}") for row in places.tolist()]
    return _as_block(chunk, {"read": len(places), "rejected": len(places)}, {"set_aside": len(places)}, "".join(lines))


def _as_block(chunk: int, counts: dict[str, int], figures: dict[str, float], rejections: str) -> dict[str, Any]:
    return {
        "chunk": np.array([chunk]),
        **{name: np.array([counts.get(name, 0)]) for name in OUTCOMES},
        **{name: np.array([float(figures.get(name, 0))]) for name in FIGURES},
        "rejections": np.array([rejections], dtype=object),
    }


def fill_memory(
    config: RunConfig,
    url: str,
    corpus: PreparedCorpus | None = None,
    teacher: Teacher | None = None,
    corrected: Path | None = None,
) -> dict[str, int]:
    """Store every training passage that the memory lacks; return the count of each outcome, which add up.

    Where the memory corrects the student in the folder `corrected`, new texts get residuals of its current version.

    read = skipped + duplicate + written + rejected, unreadable rows included. Raises CollectionMismatch where another
    teacher wrote the collection.
    """
    corpus = corpus or prepare(config)
    teacher = teacher or load_teacher(config.teacher)
    unread = corpus.counts.rejected
    duplicates = corpus.counts.train - corpus.counts.distinct
    figures: dict[str, float] = dict.fromkeys(FIGURES, 0)
    with connect(config.store, url) as client:
        store = Store(client, config.store)
        manifest = open_collection(store, config.references, corpus, teacher, config.seed)
        address = MemoryAddress(url, manifest, store.config.collection)
        say_deleted(store)
        load = load_progress(store, corpus, config.ingest.batch)
        with (
            row_account(OUTCOMES, config.run_directory / REJECTED, corpus.rejected()) as account,
            store.bulk_load() if config.store.bulk_load else nullcontext(),
            RunGauges(INGEST, config.name, account.counts),
            progress("ingest", corpus.counts.distinct, "text") as update,
        ):
            account.add({"read": unread + duplicates, "rejected": unread, "duplicate": duplicates})
            account.add({"read": load.done_texts, "skipped": load.done_texts})
            store.attach(LOAD, load.state("loading", store.count(), account.counts))
            update(load.done_texts)
            aside = SetAside(
                "an encoder", "Lower ingest.batch, ingest.num_encoders or teacher.tokens", load.done_texts > 0
            )
            for done in stored_chunks(config, address, corpus, load.pending, corrected):
                account.add(done.counts, done.rejections)
                figures = {name: figures[name] + done.figures[name] for name in FIGURES}
                if done.figures["set_aside"]:
                    rows = corpus.distinct_rows()[done.chunk * config.ingest.batch :][: config.ingest.batch]
                    aside.add(f"rows {rows[0]} to {rows[-1]} of {corpus.directory.name}/train.arrow")
                else:
                    aside.finished()
                if not done.counts["rejected"]:  # else its rows are to be in the next job's dead letters too
                    load.finish(done.chunk, done.counts["written"])
                shown = ("written", "skipped", "rejected")
                update(
                    done.counts["read"],
                    **{name: account.counts[name] for name in shown},
                    store_wait_s=figures["store_wait_s"],
                )
            aside.judge()
        publish_term_statistics(client, store.config)
        held = store.count()
        store.attach(LOAD, load.state("complete", held, account.counts))
        load.forget()
    log.info("memory holds %d references (%s)", held, account)
    log.info(
        "encoders: %d tokens in %.1f s, %.1f s of asking what is stored; store: %.1f MB, waited for %.1f s",
        figures["tokens"], figures["encode_s"], figures["look_up_s"], figures["bytes"] / 1e6, figures["store_wait_s"],
    )  # fmt: skip
    return dict(account.counts)


def open_collection(
    store: Store, references: ReferenceConfig, corpus: PreparedCorpus, teacher: Teacher, seed: int
) -> Manifest:
    """Create the run's collection, or see that it is this run's; returns its manifest.

    Where states are to be projected, the first ingest fits the projection, on texts drawn by the seed, and stores it with the
    collection.
    """
    wanted = manifest_of(teacher, references)
    if wanted.dim == wanted.encoder_dim or store.exists():
        return store.ensure(wanted)
    projection = sampled_projection(corpus, teacher, wanted.dim, seed)
    return store.ensure(manifest_of(teacher, references, projection.fingerprint), {PROJECTION: projection.to_bytes()})


def sampled_projection(corpus: PreparedCorpus, teacher: Teacher, dim: int, seed: int) -> Projection:
    """Fit a projection to the states of some training texts, drawn by the seed."""
    rows = corpus.distinct_rows()
    drawn = np.random.default_rng(seed).permutation(rows)[:PROJECTION_SAMPLE]
    texts = list(texts_in(corpus.table("train"), np.sort(drawn)))
    with progress("sample", len(texts), "text") as update:
        states = []
        for _, _, of_text in teacher.encode_one_by_one(texts):
            states.append(of_text)
            update(1)
    return fit_projection(np.concatenate(states), dim)


def stored_projection(store: Store, teacher: Teacher) -> Projection | None:
    """Read the projection that a collection's states went through, None where they are the teacher's own."""
    content = store.attachment(PROJECTION)
    return None if content is None else Projection.from_bytes(content, teacher.dim)


class StoredChunk(NamedTuple):
    """What became of one chunk: its number, outcomes, figures, and rejected rows as JSON lines."""

    chunk: int
    counts: dict[str, int]
    figures: dict[str, float]
    rejections: str


def stored_chunks(
    config: RunConfig,
    address: MemoryAddress,
    corpus: PreparedCorpus,
    pending: NDArray[np.int64],
    corrected: Path | None = None,
) -> Iterator[StoredChunk]:
    """Stream the chunks to do through the encoders; yields each once the store has acknowledged it."""
    if not len(pending):
        return
    ingest = config.ingest
    attempts = Attempts.of_run(config.run_directory)
    stage = ray.data.range(
        len(pending), override_num_blocks=max(1, min(len(pending) // CHUNKS_PER_BLOCK, MOST_BLOCKS))
    ).map_batches(
        EncodeAndStore,
        fn_constructor_args=(config, address, corpus, pending, corrected, attempts),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=ingest.num_encoders, max_size=ingest.most_encoders),
        num_cpus=0 if ingest.gpus_per_encoder else 1,
        num_gpus=ingest.gpus_per_encoder,
    )
    for block in stage.iter_batches(batch_size=None):
        yield from chunks_of(block)
    attempts.close()


def chunks_of(block: dict[str, Any]) -> Iterator[StoredChunk]:
    """Yield the chunks of which `EncodeAndStore` has made a block."""
    for row, chunk in enumerate(block["chunk"].tolist()):
        counts = {name: int(block[name][row]) for name in OUTCOMES}
        figures = {name: float(block[name][row]) for name in FIGURES}
        yield StoredChunk(chunk, counts, figures, block["rejections"][row])


IDS_PER_CHECK = 1024


def filled_memory(config: RunConfig, url: str, corpus: PreparedCorpus, teacher: Teacher) -> MemoryAddress:
    """Ingest where the memory lacks any passage of the corpus; returns the memory, of one version.

    Another teacher's memory is refused.
    """
    wanted = manifest_of(teacher, config.references)
    with connect(config.store, url) as client:
        store = Store(client, config.store)
        if lacks_any(store, wanted, corpus):
            log.info("the memory lacks some of the corpus: filling it first")
            fill_memory(config.model_copy(update={"store": store.config}), url, corpus, teacher)
        return MemoryAddress(url, store.require(wanted), store.config.collection)


def lacks_any(store: Store, wanted: Manifest, corpus: PreparedCorpus) -> bool:
    """Whether the memory lacks any passage of the corpus."""
    if not store.exists():
        return True
    store.require(wanted)
    if is_filled(store, corpus):
        return False
    texts = texts_in(corpus.table("train"), corpus.distinct_rows())
    ids = (reference_id(wanted.fingerprint, text) for text in texts)
    return any(store.known(some).new for some in chunked(ids, IDS_PER_CHECK))
