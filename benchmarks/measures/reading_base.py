"""A 4 x 312 student that reads, beside BERT-base: whole calls on texts of 128 tokens, references and their look-up included.

Weights, maps, vectors and residuals are made up, of a trained student's shapes and bytes: what a call costs does not depend on
them. Texts, their words and keywords are real.
"""

import statistics
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import torch
from torch.nn import functional as F

from jobs.corpus.prepared import chunked
from measures.goals import Goal, Part, Rows, median_ratio
from measures.ingest import LONG_TOKENS, bert_base
from measures.reading_memory import filled
from measures.reading_quality import NEIGHBOURS, wikipedia_sentences
from measures.reading_speed import BATCH, GLOBAL, READS, REPLICA, SPREAD, TEACHER, opened, student_files, timed
from refbert.config import AdaptConfig, StudentConfig, TeacherConfig
from refbert.correction import Correction
from refbert.distillation import new_student
from refbert.folder import fingerprint, save_correction, save_student
from refbert.global_part import GlobalPart
from refbert.memory.manifest import manifest_of
from refbert.teacher import Teacher, load_teacher

STORED, ROUNDS = 20_000, 5
QUICK_STORED, QUICK_ROUNDS = 500, 1
SENTENCES = 7
"""Joined into one text, which then has more than LONG_TOKENS tokens, nearly always."""

WORDS_DIM, LANDMARKS = 192, 1_000
COLLECTION = "made-up"

NOTE = (
    f"Texts of {LONG_TOKENS} tokens, batches of {BATCH}, as many at once as there are cores; the teacher is BERT-base; all "
    "contenders in one process, in turns, float32 in torch; the embedded store's server runs beside it on the same cores. "
    "Ratios are over BERT-base in the form that is faster. Bytes are those of the files that inference needs, beside 4 for "
    "each of its parameters."
)


def measure(quick: bool, folder: Path, wikipedia: Path) -> Part:
    """Make student and memory, then let all take turns."""
    stored, rounds = (QUICK_STORED, QUICK_ROUNDS) if quick else (STORED, ROUNDS)
    folder.mkdir(parents=True)
    teacher = load_teacher(TeacherConfig(model=str(bert_base(folder / "bert-base")), tokens=LONG_TOKENS, batch=BATCH))
    size = BATCH * torch.get_num_threads()
    texts = [" ".join(some) for some in chunked(wikipedia_sentences(wikipedia), SENTENCES)]
    asked, memory = texts[: size * (rounds + 1)], texts[size * (rounds + 1) :]
    correction = made_up_student(folder / "student", teacher)
    with ExitStack() as stack:
        filled(stack, folder / "store", folder / "student", correction, islice(memory, stored))
        readers = stack.enter_context(opened(folder / "student", str(folder / "store")))
        taken = timed(teacher, readers, asked, size, rounds)
        rungs = dict(readers[READS].source.counts)
    base = min(taken[TEACHER], taken[SPREAD], key=statistics.median)
    files = student_files(folder / "student")
    over = {name: median_ratio(base, seconds) for name, seconds in taken.items()}
    rows: Rows = [
        {
            "contender": name,
            "ms per 32": 1000 * statistics.median(seconds) * BATCH / size,
            "over BERT-base": over[name],
        }
        for name, seconds in taken.items()
    ]
    goals = [
        Goal("reading_base_throughput_over_bert_base_with_references", over[READS], 15.0, ">="),
        Goal("reading_base_bytes_fewer_than_bert_base", 4 * teacher.num_parameters / sum(files.values()), 7.0, ">="),
    ]
    more = {"replica": over[REPLICA], "global part": over[GLOBAL]}
    config = {"files": files, "rungs": rungs, "stored": stored, "rounds": rounds, "tokens": LONG_TOKENS, **more}
    return Part(rows, goals, NOTE, config)


def made_up_student(folder: Path, teacher: Teacher) -> Correction:
    """Save a student of TinyBERT-4's shape that a memory corrects, with random weights and maps; return its correction.

    Its token embeddings are the frozen words that find references, as in the configs that are shipped.
    """
    asked = AdaptConfig().references.model_copy(update={"words_dim": WORDS_DIM})
    manifest = manifest_of(teacher, asked)
    shape = StudentConfig(token_embeddings="words", embedding_size=WORDS_DIM, reference_mode="none")
    save_student(folder, new_student(shape, teacher, seed=0), teacher.tokenizer, text_tokens=LONG_TOKENS)
    part = GlobalPart(teacher.dim, WORDS_DIM, LANDMARKS, 0.4)
    for buffer in part.buffers():
        buffer.copy_(torch.randn_like(buffer) / max(1, buffer.shape[0] if buffer.dim() else 1))
    part.student_norm.fill_(1.0)
    part.teacher_norm.fill_(1.0)
    part.landmarks.copy_(F.normalize(torch.randn_like(part.landmarks), dim=1))
    reading = {
        "memory": manifest.model_dump(mode="json"),
        "collection": COLLECTION,
        "references": asked.model_dump(mode="json"),
    }
    correction = Correction(fingerprint(folder), "made-up", part, 0.4, 0.1, NEIGHBOURS, reading)
    save_correction(folder, correction)
    return correction
