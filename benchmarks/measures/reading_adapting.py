"""How long adapting takes beside the bare teacher's time over the same texts.

`jobs/adapt.py`'s whole work: the corpus through the teacher into an empty memory, maps, residuals, index, and what was gained
on held-out texts. On few texts and on many: the rate is that of the difference, so that the start of Ray's processes, which
does not grow, is left out; the whole is in the table.
"""

import os
import shutil
import statistics
import time
from pathlib import Path

import torch

from jobs.adapt import adapted_to_texts
from jobs.config import load_config
from jobs.run.session import ray_session
from measures.goals import Goal, Part, Rows
from measures.reading_quality import wikipedia_sentences
from measures.reading_speed import encode
from refbert.teacher import Teacher, load_teacher

FEW, MANY, QUICK = 1_000, 11_000, (300, 900)
ROUNDS = 2

NOTE = (
    "Sentences of Wikipedia; a twentieth is held out and measured. Teacher: batches of like length, one at a time on all cores "
    "or one on each, whichever is faster on the smaller corpus, over as many texts as the larger one has more; the mean of "
    "before and after. `adapting`: the larger corpus less the smaller. `with start`: the larger corpus as a user waits for it, "
    "but for Ray's own start, over the teacher's time over all of its texts."
)


def measure(quick: bool, folder: Path, adapted: Path, wikipedia: Path) -> Part:
    """Adapt to few and to many texts in turns with the bare teacher."""
    few, many = QUICK if quick else (FEW, MANY)
    sentences = wikipedia_sentences(wikipedia)
    folder.mkdir(parents=True)
    os.environ["REFBERT_HOME"] = str(folder)
    teacher = load_teacher(load_config().teacher)
    rows: Rows = []
    with ray_session():
        for number in range(1 if quick else ROUNDS):
            start = number * (few + many)
            small, large = sentences[start : start + few], sentences[start + few : start + few + many]
            tried = {workers: bare_s(teacher, small, workers) for workers in (1, torch.get_num_threads())}
            workers = min(tried, key=lambda form: tried[form])
            before = bare_s(teacher, large[: many - few], workers)
            few_s, many_s = (adapting_s(folder, adapted, some, f"{number}-{len(some)}") for some in (small, large))
            bare = statistics.fmean((before, bare_s(teacher, large[: many - few], workers)))
            rows.append(
                {
                    "texts": many - few,
                    "teacher_s": bare,
                    "adapting_s": many_s - few_s,
                    "over_teacher": (many_s - few_s) / bare,
                    "with_start_over_teacher": many_s / (bare * many / (many - few)),
                }
            )
            print(rows[-1], flush=True)
    over = statistics.median(row["over_teacher"] for row in rows)
    goals = [] if quick else [Goal("reading_adapting_10k_over_bare_teacher", over, 1.6, "<=")]
    return Part(rows, goals, NOTE, {"few": few, "many": many})


def adapting_s(folder: Path, adapted: Path, texts: list[str], name: str) -> float:
    """Adapt a copy of the student to texts in a new memory, and return the seconds."""
    student, corpus = folder / f"student-{name}", folder / f"{name}.txt"
    shutil.copytree(adapted, student)
    corpus.write_text("\n".join(texts))
    options = [f"name={name}", f"corpus.path={corpus}", f"adapt.student={student}", f"adapt.collection=memory-{name}"]
    config = load_config(overrides=options)
    started_s = time.perf_counter()
    adapted_to_texts(config)
    return time.perf_counter() - started_s


def bare_s(teacher: Teacher, texts: list[str], workers: int) -> float:
    """Seconds of the bare teacher over texts, so many batches at once."""
    started_s = time.perf_counter()
    encode(teacher, texts, workers)
    return time.perf_counter() - started_s
