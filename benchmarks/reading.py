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

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from measures.goals import Part, arguments, measure_parts

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

NEEDS = {
    "quality": ("--students",),
    "growth": ("--students", "--wikipedia"),
    "speed": ("--adapted", "--store"),
    "service": ("--adapted", "--store"),
    "adapting": ("--adapted", "--wikipedia"),
    "memory": ("--adapted", "--wikipedia"),
    "base": ("--wikipedia",),
    "similarity": ("--adapted", "--sts-b"),
}
"""The parts, and the options that each is measured with."""


def main() -> None:
    """Measure the parts that are asked for."""
    given = arguments(__doc__ or "", list(NEEDS), OPTIONS, numbers=["--most"])
    for part in given.only:
        if lacks := [option for option in NEEDS[part] if not vars(given)[option.strip("-").replace("-", "_")]]:
            sys.exit(f"error: the part {part!r} needs {' and '.join(lacks)}; see --help, and choose parts by --only")
    quiet_libraries()
    measure_parts("reading: what near texts add", given, parts_of(given))


def parts_of(given: argparse.Namespace) -> Mapping[str, Callable[[bool, Path], Part]]:
    """Return how each part is measured with the options that are given; of those that a part needs none is missing."""
    from measures import (  # their imports take seconds, which a wrong option should not cost
        reading_adapting,
        reading_base,
        reading_growth,
        reading_memory,
        reading_quality,
        reading_service,
        reading_similarity,
        reading_speed,
    )

    def students() -> list[Path]:
        return [Path(folder) for folder in given.students.split(",")]

    def optional(file: str | None) -> Path | None:
        return Path(file) if file else None

    most = given.most or 10**9
    return {
        "quality": lambda quick, folder: reading_quality.measure(
            quick, folder, students(), optional(given.intents), optional(given.wikipedia)
        ),
        "growth": lambda quick, folder: reading_growth.measure(
            quick, folder, students(), Path(given.wikipedia), most, given.precision or "fp32", optional(given.kept)
        ),
        "speed": lambda quick, folder: reading_speed.measure(quick, folder, Path(given.adapted), given.store),
        "service": lambda quick, folder: reading_service.measure(quick, folder, Path(given.adapted), given.store),
        "adapting": lambda quick, folder: reading_adapting.measure(
            quick, folder, Path(given.adapted), Path(given.wikipedia)
        ),
        "memory": lambda quick, folder: reading_memory.measure(
            quick, folder, Path(given.adapted), Path(given.wikipedia), most
        ),
        "base": lambda quick, folder: reading_base.measure(quick, folder, Path(given.wikipedia)),
        "similarity": lambda quick, folder: reading_similarity.measure(
            quick, folder, Path(given.adapted), given.store, Path(given.sts_b)
        ),
    }


if __name__ == "__main__":
    main()
