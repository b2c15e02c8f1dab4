"""The reference memory: what it costs to fill, to ask, and to let grow.

    python benchmarks/store.py [--quick] [--out DIR] [--only PART ...]

Parts: ingest against the bare teacher; look-ups over gRPC against the engine in process and against local mode, and with
answers that are gzipped; recall of the dense index; latency from ten thousand to a million references; peak memory of ingest on
ten times the corpus; disk of a memory whose texts are replaced all the time; rank and latency over several shards.
A goal that names a size is left out of a run that does not reach it, such as a quick one. Everything lies in a temporary
folder; the full run writes about 5 GB there.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from measures import compressed_answers, ingest, lookups, memory, recall, scaling, shards, turnover
from measures.goals import Part, arguments, measure_parts

from jobs.run.worker import quiet_libraries

PARTS: dict[str, Callable[[bool, Path], Part]] = {
    "ingest": ingest.measure,
    "lookups": lookups.measure,
    "compressed": compressed_answers.measure,
    "recall": recall.measure,
    "scaling": scaling.measure,
    "memory": memory.measure,
    "turnover": turnover.measure,
    "turnover_vectors": partial(turnover.measure, has_states=False),
    "shards": shards.measure,
}


def main() -> None:
    """Measure the parts that are asked for."""
    given = arguments(__doc__ or "", list(PARTS))
    quiet_libraries()
    measure_parts("store: the reference memory", given, PARTS)


if __name__ == "__main__":
    main()
