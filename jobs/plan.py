"""What a run would make, computed before anything starts: `--show`.

How many references there will be is exact where the corpus has been prepared, else estimated from the start of its files; on
the Hub it is not known without corpus.max_texts. No model is loaded where the teacher's files tell its size
(refbert/teacher_outline.py): torch, transformers and Ray are not even imported.
"""

import math
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from jobs.config import RunConfig
from jobs.corpus.parts import row_passages
from jobs.corpus.prepared import PassageRows, already_prepared
from jobs.memory.shard_plan import shard_plan
from refbert.config import TeacherConfig
from refbert.corpus import corpus_files, estimated_rows, read_rows
from refbert.errors import InputError
from refbert.memory.manifest import manifest_of
from refbert.memory.points import reference_id, reference_point
from refbert.passages import text_of
from refbert.pooling import pooling_of
from refbert.student_size import student_size
from refbert.teacher_outline import TeacherOutline, outline_in_files
from vector_store.codec import encode, payload_of
from vector_store.schema import Manifest, Parts, parts

SAMPLE_ROWS = 1000
"""Rows that are read to see how many references there will be."""

SAMPLE_POINTS = 400
"""Passages of them whose points are made, with states of zero, to see what a reference takes: a millisecond each."""


class CorpusSample(NamedTuple):
    """Some passages of a corpus, how many references all of it gives (None: unknown), and how that is known."""

    passages: list[dict[str, Any]]
    references: int | None
    known_by: str


class ReferenceSample(NamedTuple):
    """What a reference takes in the mean of a sample: stored, and what a look-up fetches of it; and how many there are."""

    stored_bytes: float
    fetched_bytes: float
    references: int | None
    known_by: str


VECTORS = {"mean": "the mean of its tokens' states", "cls": "its first token's state"}


def plan(config: RunConfig) -> dict[str, str]:
    """Return the figures of a run by name: sizes, compression, bytes of memory, steps and batches."""
    teacher = teacher_outline(config.teacher)
    manifest = manifest_of(teacher, config.references)
    sample = reference_sample(config, teacher, manifest)
    student = student_size(
        config.student, teacher.vocabulary, teacher.dim, manifest.dim, teacher.labels, teacher.embedding_dim
    )
    train = config.train
    return {
        "teacher": f"{config.teacher.model}, {teacher.num_parameters / 1e6:.2f} M parameters; a text's vector is "
        + VECTORS[pooling_of(config.teacher)],
        "student": f"{student.numbers / 1e6:.2f} M parameters, {teacher.num_parameters / student.numbers:.2f}x fewer; "
        f"{student.bytes / 1e6:.1f} MB, {4 * teacher.num_parameters / student.bytes:.2f}x smaller",
        "memory": memory_plan(sample, manifest) + ("" if config.needs_memory else "; training reads none of it"),
        "store": shard_plan(config.store, manifest, sample.stored_bytes, sample.references),
        "look-up": lookup_plan(config, sample),
        "training": f"{train.steps} steps x {train.global_batch} examples = {train.steps * train.global_batch} examples; "
        f"{train.num_workers} workers x {train.accumulation(train.num_workers)} micro-batches of {train.micro_batch}",
        "files": str(config.run_directory),
    }


def teacher_outline(config: TeacherConfig) -> TeacherOutline:
    """Read a teacher's outline from its files; load one whose files do not tell it, which takes seconds.

    Raises InputError where it cannot be loaded.
    """
    if outline := outline_in_files(config):
        return outline
    from jobs.run.worker import quiet_libraries
    from refbert.teacher import load_teacher

    quiet_libraries()
    teacher = load_teacher(config)
    return TeacherOutline(
        config,
        dim=teacher.dim,
        embedding_dim=teacher.embedding_dim,
        num_layers=teacher.num_layers,
        vocabulary=teacher.model.config.vocab_size,
        labels=None if config.head == "none" else teacher.model.config.num_labels,
        num_parameters=teacher.num_parameters,
        tokenizer=teacher.tokenizer,
    )


def reference_sample(config: RunConfig, teacher: TeacherOutline, manifest: Manifest) -> ReferenceSample:
    """Make the points of some passages of the corpus, as an ingest would."""
    sample = corpus_sample(config, teacher)
    special_ids = sorted(teacher.tokenizer.all_special_ids)
    vector = np.ones(manifest.encoder_dim, np.float32)
    sentence = np.ones(manifest.words_dim, np.float32) if manifest.dense_index else None
    stored, fetched = [], []
    every = math.ceil(len(sample.passages) / SAMPLE_POINTS)  # spread over all of them: files are sorted
    for passage in sample.passages[::every]:
        text = text_of(passage)
        ids = teacher.tokenizer(*parts(text), truncation="longest_first", max_length=config.teacher.tokens)["input_ids"]
        point = reference_point(
            passage, reference_id(manifest.fingerprint, text), np.array(ids or [0], np.int32), vector, sentence,
            np.zeros((max(1, len(ids)), manifest.dim), np.float16), special_ids, manifest, config.references,
        )  # fmt: skip
        message = encode(point, manifest)
        stored.append(message.ByteSize())
        read = payload_of(Parts(states=manifest.tokens > 0))
        fetched.append(sum(message.payload[field].ByteSize() for field in read))
    return ReferenceSample(float(np.mean(stored)), float(np.mean(fetched)), sample.references, sample.known_by)


def memory_plan(sample: ReferenceSample, manifest: Manifest) -> str:
    """Say what a reference takes, at most and in the mean of a sample, and all references of the corpus together."""
    each = (
        f"{sample.stored_bytes / 1e3:.1f} kB per reference in the mean, at most {manifest.bytes_per_point() / 1e3:.1f} kB "
        f"({_stored(manifest)})"
    )
    if sample.references is None:
        return f"{each}; {sample.stored_bytes / 1e3:.1f} GB per million"
    in_all = sample.stored_bytes * sample.references / 1e9
    return f"{each}; {sample.references} references ({sample.known_by}), {in_all:.3g} GB in all"


def _stored(manifest: Manifest) -> str:
    vector = f"a vector of {manifest.encoder_dim} {manifest.vector_datatype}"
    return f"{vector}, {manifest.tokens} tokens x {manifest.dim} {manifest.datatype}" if manifest.tokens else vector


def lookup_plan(config: RunConfig, sample: ReferenceSample) -> str:
    """Say what one text's references take on the wire, where none of them is kept from before, and a micro-batch's."""
    if not config.reads_references:
        return "none: the student reads no references"
    count, batch = config.references.count, config.train.micro_batch
    each, text = sample.fetched_bytes / 1e3, sample.fetched_bytes * count / 1e3
    return (
        f"{count} of {each:.1f} kB = {text:.1f} kB per text, {text * batch / 1e3:.2g} MB per micro-batch of {batch}; fewer "
        "where texts share references, or these are kept from before"
    )


def corpus_sample(config: RunConfig, teacher: TeacherOutline) -> CorpusSample:
    """Take passages from the prepared corpus, else from the start of its first file, the rest then extrapolated by rows."""
    if corpus := already_prepared(config):
        rows = corpus.distinct_rows()[:SAMPLE_ROWS]
        return CorpusSample(PassageRows(corpus.table("train")).at(rows), corpus.counts.distinct, "counted")
    files = corpus_files(config.corpus)
    read = list(islice(read_rows(files[0], config.corpus), SAMPLE_ROWS))
    passages = [
        passage
        for row in read
        for passage in row_passages(row, config.corpus, teacher.tokenizer, config.teacher.tokens)
        if passage.get("split") == "train"
    ]
    if not passages:
        raise InputError(f"the first {len(read)} rows of {files[0]} give no training passage; give other texts")
    rows_in_all = estimated_rows(config.corpus, files)
    references = None if rows_in_all is None else round(rows_in_all * len(passages) / len(read))
    if config.corpus.max_texts:
        most = round(config.corpus.max_texts * (1 - config.corpus.heldout_fraction))
        references = most if references is None else min(references, most)
    return CorpusSample(passages, references, f"estimated from the first {len(read)} rows")
