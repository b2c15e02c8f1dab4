"""Fill the reference memory: stream the corpus through the teacher, and store each text's states where it is not yet stored.

    python jobs/ingest.py                                   the quickstart's corpus into the embedded store
    python jobs/ingest.py RUN.yaml --show                   bytes per reference and in all; writes nothing
    python jobs/ingest.py RUN.yaml store.url=http://qdrant:6334
    ray job submit -- python jobs/ingest.py RUN.yaml ingest.num_encoders=8 ingest.gpus_per_encoder=1

A row is done only when the store has acknowledged it; what the memory already holds is never encoded again, so a killed
job is continued by starting it again. Every row is accounted for: read = skipped + duplicate + written + rejected. Rejected
rows are in runs/<name>/rejected.jsonl, with the reason.
"""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from jobs.config import RunConfig
from jobs.gauges import INGEST, RunGauges
from jobs.launch import launch
from jobs.memory import MemoryAddress, connect_store, manifest_of, reference_texts, running_store
from jobs.prepared import REJECTED, PreparedCorpus, prepare, texts_in
from jobs.progress import progress
from jobs.worker import per_node, set_up_worker
from refbert.corpus import text_of
from refbert.projection import Projection, fit_projection
from refbert.teacher import Teacher, load_teacher
from vector_store.schema import Manifest
from vector_store.store import Store
from vector_store.term_statistics import publish_term_statistics
from vector_store.writer import Rejection

log = logging.getLogger(__name__)

OUTCOMES = ("read", "skipped", "duplicate", "written", "rejected")
PROJECTION = "projection_matrix"
LOAD = "load"
"""Names under which a collection keeps the projection of its states, and how far its last load came."""

PROJECTION_SAMPLE = 4096
"""Texts whose states the projection is fitted on."""


class EncodeAndStore:
    """Ray Data stage: passages in, counts out. Looks up, encodes and stores in one call, so that states never travel."""

    def __init__(self, config: RunConfig, address: MemoryAddress, corpus: PreparedCorpus) -> None:
        device = set_up_worker(per_node(config.ingest.num_encoders), config.ingest.gpus_per_encoder)
        self.teacher = load_teacher(config.teacher, device)
        self.texts = reference_texts(self.teacher, address.manifest, config.references)
        self.store = Store(connect_store(config, address.url), config.store)
        self.writer = self.store.writer()  # for the actor's life: each new thread would take a malloc arena of its own
        self.projection = stored_projection(self.store, self.teacher)
        self.table = corpus.table("train")
        self.distinct = corpus.distinct_rows()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Store the passages whose places in the distinct rows are in the batch; return each outcome's count.

        `rejections` holds the batch's rejected rows as JSON lines.
        """
        rows = self.table.take(pa.array(self.distinct[batch["id"]])).to_pylist()
        by_id = {self.texts.identifier(text_of(row)): row for row in rows}
        stored = self.store.existing(list(by_id))
        new = [(identifier, row) for identifier, row in by_id.items() if identifier not in stored]
        # Upserts go out while the next texts are encoded.
        for index, token_ids, states in self.teacher.encode_one_by_one([text_of(row) for _, row in new]):
            identifier, row = new[index]
            kept = states if self.projection is None else self.projection.apply(states)
            self.writer.submit([self.texts.point(row, identifier, token_ids, kept)])
        written, rejected = self.writer.finish()
        counts = {"read": len(rows), "skipped": len(stored), "written": written, "rejected": len(rejected)}
        return {
            **{name: np.array([counts.get(name, 0)]) for name in OUTCOMES},
            "rejections": np.array(["".join(map(_as_line, rejected))], dtype=object),
        }


def _as_line(rejection: Rejection) -> str:
    point = rejection.point
    return json.dumps({"source": point.source, "text": point.text, "reason": rejection.reason}) + "\n"


def run(config: RunConfig) -> None:
    """Prepare the corpus, start the store and fill it."""
    with running_store(config) as url:
        fill_memory(config, url)


def fill_memory(
    config: RunConfig, url: str, corpus: PreparedCorpus | None = None, teacher: Teacher | None = None
) -> dict[str, int]:
    """Store every training passage that the memory lacks; return the count of each outcome, which add up.

    read = skipped + duplicate + written + rejected, unreadable rows included. Raises CollectionMismatch where another
    teacher wrote the collection.
    """
    corpus = corpus or prepare(config)
    teacher = teacher or load_teacher(config.teacher)
    unread = corpus.counts.rejected
    duplicates = corpus.counts.train - corpus.counts.distinct
    counts = Counter(dict.fromkeys(OUTCOMES, 0))
    counts.update(read=unread + duplicates, rejected=unread, duplicate=duplicates)
    with connect_store(config, url) as client:
        store = Store(client, config.store)
        address = MemoryAddress(url, open_collection(config, store, corpus, teacher))
        store.attach(LOAD, _load_state(corpus, "loading", counts, store.count()))
        rejections = config.run_directory / REJECTED
        rejections.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(corpus.rejected(), rejections)
        with (
            store.bulk_load() if config.store.bulk_load else nullcontext(),
            open(rejections, "a", encoding="utf-8") as dead_letters,
            RunGauges(INGEST, config.name, counts),
            progress("ingest", corpus.counts.distinct, "text") as update,
        ):
            for done, lines in stored_batches(config, address, corpus):
                counts.update(done)
                dead_letters.write(lines)
                update(done["read"], written=counts["written"], skipped=counts["skipped"], rejected=counts["rejected"])
        publish_term_statistics(client, config.store)
        held = store.count()
        store.attach(LOAD, _load_state(corpus, "complete", counts, held))
    log.info("memory holds %d references (%s)", held, ", ".join(f"{name} {counts[name]}" for name in OUTCOMES))
    if counts["rejected"]:
        log.warning("%d rows rejected, with their reasons in %s", counts["rejected"], rejections)
    return dict(counts)


def open_collection(config: RunConfig, store: Store, corpus: PreparedCorpus, teacher: Teacher) -> Manifest:
    """Create the run's collection, or see that it is this run's; returns its manifest.

    Where states are to be projected, the first ingest fits the projection and stores it with the collection.
    """
    wanted = manifest_of(teacher, config.references)
    if wanted.dim == wanted.encoder_dim or store.exists():
        return store.ensure(wanted)
    projection = sampled_projection(config, corpus, teacher, wanted.dim)
    return store.ensure(
        manifest_of(teacher, config.references, projection.fingerprint), {PROJECTION: projection.to_bytes()}
    )


def sampled_projection(config: RunConfig, corpus: PreparedCorpus, teacher: Teacher, dim: int) -> Projection:
    """Fit a projection to the states of some training texts, drawn by the run's seed."""
    rows = corpus.distinct_rows()
    drawn = np.random.default_rng(config.seed).permutation(rows)[:PROJECTION_SAMPLE]
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


def is_filled(store: Store, corpus: PreparedCorpus) -> bool:
    """Whether the collection's last load was of this corpus, came to its end, and nothing was added or deleted since."""
    content = store.attachment(LOAD)
    state = json.loads(content) if content else {}
    return (state.get("corpus"), state.get("state"), state.get("points")) == (
        corpus.directory.name, "complete", store.count(),
    )  # fmt: skip


def stored_batches(
    config: RunConfig, address: MemoryAddress, corpus: PreparedCorpus
) -> Iterator[tuple[dict[str, int], str]]:
    """Stream the corpus through the encoders; yields each outcome's count and the rejected rows whenever some are stored."""
    total = corpus.counts.distinct
    stage = ray.data.range(total, override_num_blocks=max(1, total // (4 * config.ingest.batch))).map_batches(
        EncodeAndStore,
        fn_constructor_args=(config, address, corpus),
        batch_size=config.ingest.batch,
        compute=ray.data.ActorPoolStrategy(size=config.ingest.num_encoders),
        num_cpus=0 if config.ingest.gpus_per_encoder else 1,
        num_gpus=config.ingest.gpus_per_encoder,
    )
    for outcome in stage.iter_batches(batch_size=None):
        yield {name: int(outcome[name].sum()) for name in OUTCOMES}, "".join(outcome["rejections"])


def _load_state(corpus: PreparedCorpus, state: str, counts: Counter[str], points: int) -> bytes:
    return json.dumps({"corpus": corpus.directory.name, "state": state, "points": points, **counts}).encode()


if __name__ == "__main__":
    launch("jobs.ingest")
