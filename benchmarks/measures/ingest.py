"""Ingest throughput as a fraction of the bare teacher's.

The bare teacher encodes passages of the same corpus in a plain loop, before and after the pipeline, so that a machine
whose speed drifts is seen. The pipeline is `jobs/ingest.py`'s whole stage: row numbers through Ray Data, look-up of what
exists, encoding, upsert over gRPC into an empty collection of an embedded store. It runs on a part of the corpus and on
all of it, and the rate is that of the difference, so that the start of Ray Data and of the encoder actor, which does not
grow, is left out.
"""

import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from jobs.config import RunConfig, load_config
from jobs.corpus.prepared import prepare
from jobs.memory.fill import fill_memory
from jobs.memory.store import running_store
from jobs.run.session import ray_session
from measures.goals import Goal, Part, Rows
from measures.points import snippet_rows
from refbert.config import TeacherConfig
from refbert.teacher import Teacher, load_teacher, load_tokenizer

LONG_TOKENS = 128
WORDS_OF_LONG = 130
"""Words of a text that surely has more than LONG_TOKENS tokens."""

NOTE = (
    "Texts per second. Each pair measures the bare teacher, ingest of a few texts and of many, and the bare teacher again; "
    "ingest's rate is that of the many less the few, its fraction is over the mean of both bare rates, and the goal takes the "
    "median of the pairs. BERT-base: 12 layers of 768 with random weights, texts of at least 128 tokens cut there."
)


def measure(quick: bool, folder: Path) -> Part:
    """Measure both teachers under one Ray."""
    rows: Rows = []
    folder.mkdir(parents=True)
    os.environ["REFBERT_HOME"] = str(folder)
    with ray_session():
        small = pairs(rows, "MiniLM, 32 tokens", [], (1, 4) if quick else (8, 48), 1 if quick else 3)
        base = bert_base(folder / "bert-base")
        texts = long_texts(folder / "long.jsonl")
        options = [f"teacher={{model: {base}, tokens: {LONG_TOKENS}, batch: 16}}", "ingest.batch=16"]
        options.append(f"corpus={{path: {texts}, long_texts: truncate}}")
        large = pairs(rows, "BERT-base, 128 tokens", options, (1, 3) if quick else (8, 40), 1 if quick else 3)
    goals = [
        Goal("ingest_over_bare_teacher_base_128", large, 0.95, ">="),
        Goal("ingest_over_bare_teacher_minilm_32", small, 0.8, ">="),
    ]
    return Part(rows, goals, NOTE, {"long_corpus": options})


def pairs(rows: Rows, name: str, options: Sequence[str], batches: tuple[int, int], num_pairs: int) -> float:
    """Measure so many pairs with so many batches, few and many; returns the median fraction."""
    fractions: list[float] = []
    for number in range(num_pairs):
        few, many = (
            load_config(
                overrides=[*options, f"corpus.max_texts={size}", f"store.collection={size}-{number}-{len(rows)}"]
            )
            for size in (round(num * load_config(overrides=list(options)).ingest.batch / 0.95) for num in batches)
        )
        teacher = load_teacher(many.teacher)
        corpus = prepare(many)
        texts = corpus.table("train")["text"].to_pylist()[-batches[0] * many.ingest.batch :]
        tokens = statistics.mean(len(token_ids) for token_ids, _ in teacher.encode_texts(texts[: many.ingest.batch]))
        before = bare_rate(teacher, many, texts)
        with running_store(many) as url:
            rate = ingest_rate(few, many, url, teacher)
        after = bare_rate(teacher, many, texts)
        fractions.append(rate / statistics.mean((before, after)))
        rows.append(
            {
                "teacher": name,
                "tokens_per_text": tokens,
                "texts": corpus.counts.train,
                "bare_before": before,
                "ingest": rate,
                "bare_after": after,
                "fraction": fractions[-1],
            }
        )
    return statistics.median(fractions)


def bare_rate(teacher: Teacher, config: RunConfig, texts: list[str]) -> float:
    """Encode in batches of the same size as the pipeline's, with all cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    batch = config.ingest.batch
    started_s = time.perf_counter()
    for start in range(0, len(texts), batch):
        teacher.encode_texts(texts[start : start + batch])
    return len(texts) / (time.perf_counter() - started_s)


def ingest_rate(few: RunConfig, many: RunConfig, url: str, teacher: Teacher) -> float:
    """Fill two empty memories; texts per second of what the larger has more."""
    taken: list[tuple[float, int]] = []
    for config in (few, many):
        corpus = prepare(config)
        started_s = time.perf_counter()
        counts = fill_memory(config, url, corpus, teacher)
        taken.append((time.perf_counter() - started_s, counts["written"]))
    (few_s, num_few), (many_s, num_many) = taken
    return (num_many - num_few) / (many_s - few_s)


def bert_base(folder: Path) -> Path:
    """A teacher of BERT-base's size with random weights and the packaged teacher's tokenizer, whose vocabulary is BERT's."""
    torch.manual_seed(0)
    BertModel(BertConfig()).save_pretrained(folder)
    load_tokenizer(TeacherConfig().model).save_pretrained(folder)
    return folder


def long_texts(file: Path) -> Path:
    """Snippets joined until each text is over the token budget, as jsonl."""
    words: list[str] = []
    with file.open("w") as lines:
        for row in snippet_rows():
            words += row.text.split()
            if len(words) >= WORDS_OF_LONG:
                lines.write(json.dumps({"text": " ".join(words)}) + "\n")
                words = []
    return file
