"""What a memory of references costs as it grows: disk, memory of its server, and time of a look-up of as many as a student
reads.

References as an adapted student reads them: real sentences, their words and keywords, with made-up vectors and residuals of as
many bytes as a teacher's, so that no teacher is asked.
"""

import random
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import refbert
from jobs.corpus.prepared import chunked
from measures.collection import fill, opened, server_pid
from measures.goals import Goal, Part, Rows, in_turns
from measures.lookups import require_live
from measures.memory import held_and_total
from measures.points import noise
from measures.reading_quality import ASKED, wikipedia_sentences
from measures.reading_speed import BATCH, disk_bytes
from refbert.correction import Correction
from refbert.folder import load_correction
from refbert.memory.opening import texts_of_folder
from refbert.memory.reader import Reader
from refbert.memory.texts import ReferenceTexts
from refbert.memory.version import memory_it_is_of, publish_version
from refbert.passages import normalise
from refbert.teacher import load_tokenizer
from vector_store.schema import Point
from vector_store.server.files import folder_bytes
from vector_store.store import Store

SIZES, QUICK_SIZES = (20_000, 100_000, 1_000_000), (1_000, 4_000)
ROUNDS, QUICK_ROUNDS = 50, 5
FEWEST_WORDS = 4
TOKENIZED = 1_000

NOTE = (
    f"References: sentences of Wikipedia and, where these do not suffice, spans of them; look-ups of {BATCH} other sentences, "
    "one after the other, each size on an embedded server of its own, in turns. Disk: blocks of the collection's folder, with "
    "indexes and logs; `log` is the engine's, which does not grow beyond two files of 32 MiB. Memory: what the server holds "
    "after the look-ups and the kernel cannot drop (anonymous and shared pages); `mapped` are pages of files, which it can. "
    "Load includes making the points."
)


def measure(quick: bool, folder: Path, adapted: Path, wikipedia: Path, most: int) -> Part:
    """Fill a memory of each size, then look up in all of them in turns."""
    sizes = [size for size in (QUICK_SIZES if quick else SIZES) if size <= most]
    rounds = QUICK_ROUNDS if quick else ROUNDS
    sentences = wikipedia_sentences(wikipedia)
    asked = list(chunked(sentences[:ASKED], BATCH))
    correction = load_correction(adapted)
    if correction is None:
        sys.exit(f"error: {adapted} was adapted to no memory; run jobs/adapt.py on it first")
    rows: Rows = []
    with ExitStack() as stack:
        readers: dict[int, Reader] = {}
        for size in sizes:
            place = folder / str(size)
            row = filled(stack, place, adapted, correction, islice(spans(sentences[ASKED:]), size))
            readers[size] = stack.enter_context(refbert.load(adapted, place, batch=BATCH))
            rows.append({"references": size, **row})
            print(rows[-1], flush=True)

        def look_up(size: int, turn: int) -> None:
            texts = asked[turn % len(asked)]
            readers[size].look_up(texts, readers[size].tokenize(texts))

        contenders = {size: lambda turn, size=size: look_up(size, turn) for size in sizes}
        for call in contenders.values():
            call(rounds)
        taken = in_turns(contenders, rounds)
        for row, (size, seconds) in zip(rows, taken.items(), strict=True):
            require_live(readers[size].source)
            held, total = held_and_total(server_pid(folder / str(size)))
            row |= {"held_mb": held / 1e6, "mapped_mb": (total - held) / 1e6}
            row |= {"look_up_ms": 1000 * statistics.median(seconds), "p99_ms": 1000 * float(np.quantile(seconds, 0.99))}
    return Part(rows, list(goals({row["references"]: row for row in rows})), NOTE, {"rounds": rounds, "batch": BATCH})


def filled(
    stack: ExitStack, place: Path, adapted: Path, correction: Correction, texts: Iterable[str]
) -> dict[str, Any]:
    """Store texts under the student's current version on a server that runs until the stack is closed."""
    name, manifest, references = memory_it_is_of(correction)
    side = texts_of_folder(adapted, manifest, load_tokenizer(str(adapted)), references)
    client, config = stack.enter_context(opened(place, name))
    load = fill(client, config, manifest, points(side, correction.reader, texts))
    memory = Store(client, config)
    publish_version(memory, correction)
    time.sleep(1)  # the server removes the shard without an index once it has said that the index is there
    log = sum(folder_bytes(wal) for wal in place.glob(f"collections/c{name}/shard-*/wal"))
    return {
        "disk_bytes_each": disk_bytes(memory, str(place)),
        "of_these_log": log / load.points,
        "hnsw": "yes" if load.has_hnsw else "no",
        "load_per_s": load.points_per_s,
        "index_s": load.index_s,
    }


def points(side: ReferenceTexts, reader: str, texts: Iterable[str]) -> Iterator[Point]:
    """Yield a point for each text, with a made-up vector and residual."""
    made_up = noise(side.manifest.encoder_dim).astype(np.float32)
    number = 0
    for some in chunked(texts, TOKENIZED):
        tokenized = side.tokenizer(some, truncation=True, max_length=side.manifest.text_tokens)["input_ids"]
        for text, ids in zip(some, tokenized, strict=True):
            row = {"text": text, "source": "wikipedia", "document": f"{number // 8}", "split": "train"}
            vector, residual = made_up[number % len(made_up)], made_up[-1 - number % len(made_up)]
            point = side.point(row, side.identifier(text), np.array(ids, np.int32), vector, None)
            yield replace(point, residuals={reader: 0.1 * residual})
            number += 1


def spans(sentences: list[str]) -> Iterator[str]:
    """Yield every sentence, then distinct spans of them of a few words or more, without an end: texts of ids of their own."""
    distinct = dict.fromkeys(map(normalise, sentences))
    yield from distinct
    drawn, seen = random.Random(0), set(distinct)
    while True:
        for sentence in sentences:
            words = sentence.split()
            if len(words) > FEWEST_WORDS:
                length = drawn.randint(FEWEST_WORDS, len(words) - 1)
                first = drawn.randint(0, len(words) - length)
                span = normalise(" ".join(words[first : first + length]))
                if span not in seen:
                    seen.add(span)
                    yield span


def goals(rows: dict[int, dict[str, Any]]) -> Iterator[Goal]:
    """Yield the goals on the sizes that were measured."""
    for size in (20_000, 100_000):
        if size in rows:
            yield Goal(f"reading_disk_bytes_per_reference_{size // 1000}k", rows[size]["disk_bytes_each"], 4000.0, "<=")
    if 1_000_000 in rows:
        yield Goal("reading_memory_gb_of_1m_references", rows[1_000_000]["held_mb"] / 1000, 3.0, "<=")
        if 100_000 in rows:
            grown = rows[1_000_000]["look_up_ms"] / rows[100_000]["look_up_ms"]
            yield Goal("reading_look_up_growth_100k_1m", grown, 1.6, "<=")
