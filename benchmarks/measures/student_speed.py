"""Forwards of BERT-base, TinyBERT-4 and our students, without and with references, and with the look-up that brings them.

Within a backend all contenders take turns on the same batches, on the same threads. Look-ups go over gRPC to an embedded
server in a process of its own, one after the other with the forward, nothing cached: the whole of what a text costs but its
tokenization, which is the same for all.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray

from measures.collection import fill, opened
from measures.forwards import (
    BACKENDS,
    BERT_BASE,
    COMPILED,
    Forward,
    encoder,
    missing,
    no_reference,
    read_references,
    text_arrays,
)
from measures.goals import Goal, Part, Rows, in_turns, median_ratio
from measures.lookups import require_live
from measures.points import Synthetic
from vector_store.retriever import Retriever

BATCHES, LENGTHS = (1, 8, 32, 128), (32, 128)
GOAL_SIZE = (32, 128)
TINYBERT = "TinyBERT-4"
WITHOUT, GIVEN, LOOKED_UP = "null reference", "reference given", "with look-up"
QUERIES = 2000

NOTE = (
    "No text is padded. References are `whole`: as long as the texts, 768 wide; or the memory keeps less of them: 192 "
    "principal components of a state (references.dim), or the first 32 states (references.tokens). Null reference: what a "
    "student reads without a memory. Reference given: the same forward with states at hand. With look-up: a live search and "
    "fetch, then the forward. Over BERT-base: median over rounds of BERT-base's time over this one's in the same round, "
    "backend and threads. Over TinyBERT-4: the same with the student's own shape without any reference path, minus one: what "
    "references cost. Int8: dynamic quantisation. torch.compile makes a graph for each shape, so only the goals' size is "
    "measured. Goals take, for each student, with and without look-up, the backend that gains most over BERT-base; the cost "
    "of the reference path is on the one with look-up."
)


class Student(NamedTuple):
    """A form of the student: the layers that read, and what the memory keeps of a reference (None: all of its tokens)."""

    layers: str
    kept: str
    dim: int
    ref_tokens: int | None

    @property
    def name(self) -> str:
        """As the table says it."""
        return f"student, {self.layers}, {self.kept}"

    @property
    def options(self) -> dict[str, Any]:
        """Of its config; students of equal options share a forward."""
        return {"reference_layers": self.layers, "reference_dim": self.dim}


STUDENTS = [
    Student(layers, kept, dim, ref_tokens)
    for layers in ("first", "all")
    for kept, dim, ref_tokens in (("whole", 768, None), ("192 wide", 192, None), ("32 tokens", 768, 32))
]

LookUp = Callable[[int, int], dict[str, NDArray[Any]]]
"""Batch and turn to the inputs of that batch's references."""


def measure(quick: bool, folder: Path) -> Part:
    """Measure every backend that can run here."""
    sizes = [(1, 32), GOAL_SIZE] if quick else [(batch, tokens) for tokens in LENGTHS for batch in BATCHES]
    num_points, rounds = (300, 2) if quick else (20_000, 9)
    rows: Rows = []
    with ExitStack() as stack:

        @cache
        def memory(tokens: int, ref_tokens: int, dim: int) -> LookUp:
            place = folder / f"{tokens}-{ref_tokens}x{dim}"
            return stack.enter_context(opened_memory(place, num_points, tokens, ref_tokens, dim))

        for backend, build in BACKENDS.items():
            if reason := missing(backend):
                rows.append({"backend": backend, "contender": f"skipped: {reason}"})
                continue
            torch.manual_seed(0)
            rivals = {BERT_BASE: build(encoder(BERT_BASE)), TINYBERT: build(encoder(TINYBERT, reference_mode="none"))}
            built = {(one.layers, one.dim): build(encoder(one.name, **one.options)) for one in STUDENTS}
            for batch, tokens in [GOAL_SIZE] if backend == COMPILED else sizes:
                students = {
                    one: (built[one.layers, one.dim], memory(tokens, one.ref_tokens or tokens, one.dim))
                    for one in STUDENTS
                    if one.ref_tokens is None or one.ref_tokens < tokens
                }
                found = compared(rivals, students, batch, tokens, max(2, min(rounds, 384 // batch)))
                rows += [{"backend": backend, "batch": batch, "tokens": tokens, **row} for row in found]
                print(f"speed: {backend}, {batch} x {tokens}", file=sys.stderr)
    described = {one.name: one.options | {"ref_tokens": one.ref_tokens} for one in STUDENTS}
    config = {"points": num_points, "rounds": rounds, "threads": torch.get_num_threads(), "students": described}
    return Part(rows, goals(rows), NOTE, config)


@contextmanager
def opened_memory(folder: Path, num_points: int, tokens: int, ref_tokens: int, dim: int) -> Iterator[LookUp]:
    """Fill a collection with what is kept of made-up references, and look them up while the context lasts."""
    source = Synthetic(num_points, ref_tokens, dim, is_clustered=False, text_tokens=tokens, has_sentences=False)
    queries = source.queries(QUERIES)
    with opened(folder, "references") as (client, config):
        fill(client, config, source.manifest, source.points())
        retriever = Retriever(client, config, source.manifest, "keywords")

        def look_up(batch: int, turn: int) -> dict[str, NDArray[Any]]:
            first = turn * batch % (len(queries) - batch + 1)
            found = retriever.neighbours(queries[first : first + batch])
            return read_references(found.states, found.mask)

        yield look_up
        require_live(retriever)


def compared(
    rivals: dict[str, Forward], students: dict[Student, tuple[Forward, LookUp]], batch: int, tokens: int, rounds: int
) -> Rows:
    """Time every contender in turns on one batch of texts."""
    texts = text_arrays(batch, tokens)
    contenders: dict[tuple[str, str | None], Callable[[int], Any]] = {
        (name, None): partial(_forward, forward, texts) for name, forward in rivals.items()
    }
    for one, (forward, look_up) in students.items():
        if one.ref_tokens is None:  # else the same as that of whole references
            contenders[one.name, WITHOUT] = partial(_forward, forward, texts | no_reference(batch, one.dim))
        contenders[one.name, GIVEN] = partial(_forward, forward, texts | look_up(batch, 0))
        contenders[one.name, LOOKED_UP] = partial(_look_up_and_forward, forward, texts, look_up)
    for call in contenders.values():  # page caches, compilation, allocation
        call(0)
    taken = in_turns(contenders, rounds)
    bert, tiny = taken[BERT_BASE, None], taken[TINYBERT, None]
    return [
        {
            "contender": name,
            "reads": reads,
            "ms": 1000 * statistics.median(seconds),
            "texts_per_s": batch / statistics.median(seconds),
            "over_bert_base": median_ratio(bert, seconds),
            "over_tinybert_4": median_ratio(seconds, tiny) - 1 if reads else None,
        }
        for (name, reads), seconds in taken.items()
    ]


def goals(rows: Rows) -> list[Goal]:
    """The issue's goals at their size."""
    batch, tokens = GOAL_SIZE
    size = f"batch_{batch}_length_{tokens}"
    found: list[Goal] = []
    for one in STUDENTS:
        here = [
            row for row in rows if (row.get("batch"), row.get("tokens"), row["contender"]) == (*GOAL_SIZE, one.name)
        ]
        form = f"{one.layers}_{one.kept.replace(' ', '_')}_{size}"
        most = 0.05 if one.layers == "first" else 0.15
        best = _best(here, LOOKED_UP)
        (given,) = (row for row in here if (row["backend"], row["reads"]) == (best["backend"], GIVEN))
        found.append(Goal(f"throughput_over_bert_base_with_lookup_{form}", best["over_bert_base"], 9.5, ">="))
        if one.ref_tokens is None:
            without = _best(here, WITHOUT)["over_bert_base"]
            found.append(Goal(f"throughput_over_bert_base_without_{form}", without, 13.0, ">="))
        found.append(Goal(f"reference_path_cost_{form}", given["over_tinybert_4"], most, "<="))
    return found


def _best(rows: Rows, reads: str) -> dict[str, Any]:
    return max((row for row in rows if row["reads"] == reads), key=lambda row: row["over_bert_base"])


def _forward(forward: Forward, arrays: dict[str, NDArray[Any]], _: int) -> Any:
    return forward(arrays)


def _look_up_and_forward(forward: Forward, texts: dict[str, NDArray[Any]], look_up: LookUp, turn: int) -> Any:
    return forward(texts | look_up(len(texts["input_ids"]), turn))
