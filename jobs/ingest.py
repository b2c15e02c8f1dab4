"""Fill the reference memory: stream the corpus through the teacher, and store what it says of each text not stored yet.

    python jobs/ingest.py                                   the quickstart's corpus into the embedded store
    python jobs/ingest.py RUN.yaml --show                   bytes per reference and in all; writes nothing
    python jobs/ingest.py RUN.yaml store.url=http://qdrant:6334
    ray job submit -- python jobs/ingest.py RUN.yaml ingest.num_encoders=8 ingest.gpus_per_encoder=1

A killed job is continued by starting it again. A row is done only when the store has acknowledged it; what the memory already
holds is never encoded again, and what a killed job had finished is not even read again, but for chunks with a rejected row, or
where points were deleted or ingest.batch changed. An encoder waits for a store that is slower, with at most
store.upserts_in_flight upserts on their way, and takes no rows meanwhile. Held-out texts are not stored. Every training passage
and every unreadable row is accounted for: read = skipped + duplicate + written + rejected. Rejected rows are in
runs/<name>/rejected.jsonl, with the reason.
"""

if __name__ == "__main__":
    import checkout  # noqa: F401  # the checkout is on the path from here on

    from jobs.launch import launch

    launch("jobs.ingest", __doc__)  # before what follows is imported, which takes seconds

from jobs.config import RunConfig
from jobs.memory.fill import fill_memory
from jobs.memory.store import running_store
from refbert.pooling import pooling_of


def check(config: RunConfig) -> None:
    """Raise InputError where the teacher's vector is none that a student learns; before Ray is started."""
    pooling_of(config.teacher)


def run(config: RunConfig) -> None:
    """Prepare the corpus, start the store and fill it."""
    with running_store(config) as url:
        fill_memory(config, url)
