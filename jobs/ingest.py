"""Fill the reference memory: stream the corpus through the teacher, and store each text's states where it is not yet stored.

    python jobs/ingest.py                                   the quickstart's corpus into the embedded store
    python jobs/ingest.py RUN.yaml store.url=http://qdrant:6334
    ray job submit -- python jobs/ingest.py RUN.yaml ingest.num_encoders=8 ingest.gpus_per_encoder=1

A row is done only when the store has acknowledged it; what the memory already holds is never encoded again, so a killed
job is continued by starting it again.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from jobs.config import RunConfig
from jobs.launch import launch
from jobs.memory import MemoryAddress, connect_store, manifest_of, reference_texts, running_store
from jobs.prepared import PreparedCorpus, prepare
from jobs.progress import progress
from jobs.worker import per_node, set_up_worker
from refbert.corpus import reference_id
from refbert.teacher import Teacher, load_teacher
from vector_store.errors import InvalidPoint
from vector_store.schema import Point
from vector_store.store import Store

log = logging.getLogger(__name__)

OUTCOMES = ("read", "skipped", "duplicate", "written", "rejected")


class EncodeAndStore:
    """Ray Data stage: passages in, counts out. Looks up, encodes and stores in one call, so that states never travel."""

    def __init__(self, config: RunConfig, address: MemoryAddress, corpus: PreparedCorpus) -> None:
        device = set_up_worker(per_node(config.ingest.num_encoders), config.ingest.gpus_per_encoder)
        self.teacher = load_teacher(config.teacher, device)
        self.texts = reference_texts(self.teacher, address.manifest, config.references)
        self.store = Store(connect_store(config, address.url), config.store)
        self.table = corpus.table("train")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Store the passages whose row numbers are in the batch; return the count of each outcome."""
        rows = self.table.take(pa.array(batch["id"])).to_pylist()
        counts = Counter(read=len(rows))
        by_id = {reference_id(self.teacher.fingerprint, row["text"]): row for row in rows}
        counts["duplicate"] = len(rows) - len(by_id)
        stored = self.store.existing(list(by_id))
        counts["skipped"] = len(stored)
        new = {identifier: row for identifier, row in by_id.items() if identifier not in stored}
        encoded = self.teacher.encode_texts([row["text"] for row in new.values()])
        points = [
            self.texts.point(row, identifier, token_ids, states)
            for (identifier, row), (token_ids, states) in zip(new.items(), encoded, strict=True)
        ]
        counts["written"], counts["rejected"] = self._store(points)
        return {name: np.array([counts[name]]) for name in OUTCOMES}

    def _store(self, points: list[Point]) -> tuple[int, int]:
        """Store the points; where the store refuses a batch, one by one, so that a bad one does not take others along."""
        try:
            return self.store.upsert(points), 0
        except InvalidPoint as error:
            if len(points) == 1:
                log.warning("skipped %r: %s", points[0].text[:60], error)
                return 0, 1
            outcomes = [self._store([point]) for point in points]
            return sum(written for written, _ in outcomes), sum(rejected for _, rejected in outcomes)


def run(config: RunConfig) -> None:
    """Prepare the corpus, start the store and fill it."""
    with running_store(config) as url:
        fill_memory(config, url)


def fill_memory(
    config: RunConfig, url: str, corpus: PreparedCorpus | None = None, teacher: Teacher | None = None
) -> dict[str, int]:
    """Store every training passage that the memory lacks; return the count of each outcome, which add up.

    read = skipped + duplicate + written + rejected. Raises CollectionMismatch where another teacher wrote the collection.
    """
    corpus = corpus or prepare(config)
    teacher = teacher or load_teacher(config.teacher)
    address = MemoryAddress(url, manifest_of(teacher, config.references))
    counts = Counter(dict.fromkeys(OUTCOMES, 0))
    with connect_store(config, url) as client:
        store = Store(client, config.store)
        store.ensure(address.manifest)
        with progress("ingest", corpus.counts.train, "text") as update:
            for done in stored_batches(config, address, corpus):
                counts.update(done)
                update(done["read"], written=counts["written"], skipped=counts["skipped"])
        log.info("memory holds %d references (%s)", store.count(), ", ".join(f"{k} {counts[k]}" for k in OUTCOMES))
    return dict(counts)


def stored_batches(config: RunConfig, address: MemoryAddress, corpus: PreparedCorpus) -> Iterator[dict[str, int]]:
    """Stream the corpus through the encoders; yields the count of each outcome whenever some batches are stored."""
    total = corpus.counts.train
    stage = ray.data.range(total, override_num_blocks=max(1, total // (4 * config.ingest.batch))).map_batches(
        EncodeAndStore,
        fn_constructor_args=(config, address, corpus),
        batch_size=config.ingest.batch,
        compute=ray.data.ActorPoolStrategy(size=config.ingest.num_encoders),
        num_cpus=0 if config.ingest.gpus_per_encoder else 1,
        num_gpus=config.ingest.gpus_per_encoder,
    )
    for outcome in stage.iter_batches(batch_size=None):
        yield {name: int(outcome[name].sum()) for name in OUTCOMES}


if __name__ == "__main__":
    launch("jobs.ingest")
