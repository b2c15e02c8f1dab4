"""What a student gains from reading what its teacher said of near texts.

    python benchmarks/reading.py --only quality --students runs/a/student,runs/b/student [--intents DIR] [--wikipedia FILE]
    python benchmarks/reading.py --only growth --students runs/a/student,runs/b/student --wikipedia FILE [--most 100000]
    python benchmarks/reading.py --only speed --adapted runs/a/student --store store
    python benchmarks/reading.py --only service --adapted runs/a/student --store store
    python benchmarks/reading.py --only adapting --adapted runs/a/student --wikipedia FILE
    python benchmarks/reading.py --only memory --adapted runs/a/student --wikipedia FILE [--most 100000]
    python benchmarks/reading.py --only base --wikipedia FILE
    python benchmarks/reading.py --only similarity --adapted runs/a/student --sts-b DIR [--store store]

The students are of the packaged teacher at 32 tokens, trained on the snippets without references, one for each seed.
`--intents` holds banking77_train.csv, banking77_test.csv and clinc150_full.json; `--wikipedia` is text with a paragraph a line.
"""

import sys
from functools import partial
from pathlib import Path

from measures import (
    reading_adapting,
    reading_base,
    reading_growth,
    reading_memory,
    reading_quality,
    reading_service,
    reading_similarity,
    reading_speed,
)
from measures.goals import arguments, measure_parts

from jobs.run.worker import quiet_libraries

OPTIONS = {
    "--students": "students' folders, one for each seed, with commas between them",
    "--intents": "folder with banking77_train.csv, banking77_test.csv and clinc150_full.json",
    "--wikipedia": "file of text with one paragraph a line",
    "--most": "references to store at most, for growth and memory; by default all there are, and a million",
    "--precision": "of the teacher, for growth: fp32, or bf16, which is several times as fast where the CPU has it",
    "--kept": "folder for what the teacher says, for growth: a run that was ended goes on there",
    "--adapted": "folder of a student that was adapted to a memory",
    "--store": "directory or URL of that memory's store",
    "--sts-b": "folder with STS-B's train.tsv and dev.tsv, in GLUE's form",
}


def main() -> None:
    """Measure the parts that are asked for."""
    given = arguments(
        __doc__ or "", ["quality", "growth", "speed", "service", "adapting", "memory", "base", "similarity"], OPTIONS
    )
    quiet_libraries()
    parts = {}
    if given.adapted and given.store:
        parts["speed"] = partial(reading_speed.measure, adapted=Path(given.adapted), store=given.store)
        parts["service"] = partial(reading_service.measure, adapted=Path(given.adapted), store=given.store)
    if given.adapted and given.wikipedia:
        parts["adapting"] = partial(
            reading_adapting.measure, adapted=Path(given.adapted), wikipedia=Path(given.wikipedia)
        )
        parts["memory"] = partial(
            reading_memory.measure,
            adapted=Path(given.adapted),
            wikipedia=Path(given.wikipedia),
            most=int(given.most or 10**9),
        )
    if given.wikipedia:
        parts["base"] = partial(reading_base.measure, wikipedia=Path(given.wikipedia))
    if given.adapted and given.sts_b:
        parts["similarity"] = partial(
            reading_similarity.measure, adapted=Path(given.adapted), store=given.store, sts_b=Path(given.sts_b)
        )
    if given.students:
        parts["quality"] = partial(
            reading_quality.measure,
            students=[Path(folder) for folder in given.students.split(",")],
            intents=given.intents and Path(given.intents),
            wikipedia=given.wikipedia and Path(given.wikipedia),
        )
        if given.wikipedia:
            parts["growth"] = partial(
                reading_growth.measure,
                students=[Path(folder) for folder in given.students.split(",")],
                wikipedia=Path(given.wikipedia),
                most=int(given.most or 10**9),
                precision=given.precision or "fp32",
                kept=Path(given.kept) if given.kept else None,
            )
    if missing := [part for part in given.only or ["quality"] if part not in parts]:
        sys.exit(
            f"error: nothing to measure {missing[0]} with; train a student (jobs/distill.py) and give "
            "--students=runs/NAME/student, or adapt it (jobs/adapt.py) and give --adapted=runs/NAME/student --store=store"
        )
    measure_parts("reading: what near texts add", given, parts)


if __name__ == "__main__":
    main()
