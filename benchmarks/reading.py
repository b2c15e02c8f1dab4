"""What a student gains from reading what its teacher said of near texts.

    python benchmarks/reading.py --students runs/a/student,runs/b/student [--intents DIR] [--wikipedia FILE]

The students are of the packaged teacher at 32 tokens, trained on the snippets without references, one for each seed.
`--intents` holds banking77_train.csv, banking77_test.csv and clinc150_full.json; `--wikipedia` is text with a paragraph a line.
"""

import sys
from functools import partial
from pathlib import Path

from measures import reading_quality
from measures.goals import arguments, measure_parts

from jobs.run.worker import quiet_libraries

OPTIONS = {
    "--students": "students' folders, one for each seed, with commas between them",
    "--intents": "folder with banking77_train.csv, banking77_test.csv and clinc150_full.json",
    "--wikipedia": "file of text with one paragraph a line",
}


def main() -> None:
    """Measure the parts that are asked for."""
    given = arguments(__doc__ or "", ["quality"], OPTIONS)
    if not given.students:
        sys.exit("error: no student; train one (jobs/distill.py) and give --students=runs/NAME/student")
    quiet_libraries()
    quality = partial(
        reading_quality.measure,
        students=[Path(folder) for folder in given.students.split(",")],
        intents=given.intents and Path(given.intents),
        wikipedia=given.wikipedia and Path(given.wikipedia),
    )
    measure_parts("reading: what near texts add", given, {"quality": quality})


if __name__ == "__main__":
    main()
