"""The reference memory: what it costs to fill, to ask, and to let grow.

    python benchmarks/store.py [--quick] [--out DIR] [--only PART ...]

Parts: ingest against the bare teacher; look-ups over gRPC against the engine in process and against local mode; recall of
the dense index; latency from ten thousand to a million references; peak memory of ingest on ten times the corpus.
A goal that names a size is left out of a run that does not reach it, such as a quick one. Everything lies in a temporary
folder; the full run writes about 5 GB there.
"""

import sys
import tempfile
import time
from pathlib import Path

from measures import ingest, lookups, memory, recall, scaling
from measures.goals import Part, arguments, write_results

from jobs.worker import quiet_libraries

PARTS = {
    "ingest": ingest.measure,
    "lookups": lookups.measure,
    "recall": recall.measure,
    "scaling": scaling.measure,
    "memory": memory.measure,
}


def main() -> None:
    """Measure the parts that are asked for; what was measured before a failure is written too."""
    given = arguments(__doc__ or "", list(PARTS))
    quiet_libraries()
    started_s = time.monotonic()
    parts: dict[str, Part] = {}
    try:
        for name in given.only:
            with tempfile.TemporaryDirectory() as folder:
                parts[name] = PARTS[name](given.quick, Path(folder) / name)
            print(f"{name}: done after {time.monotonic() - started_s:.0f} s", file=sys.stderr)
    finally:
        if parts:
            write_results("store: the reference memory", given, started_s, parts, list(PARTS))


if __name__ == "__main__":
    main()
