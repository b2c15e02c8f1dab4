"""Forwards of BERT-base, TinyBERT-4 and our students, without and with references, and with the look-up that brings them.

Within a backend all contenders take turns on the same batches, on the same threads. Look-ups go over gRPC to an embedded
server in a process of its own, one after the other with the forward, nothing cached: the whole of what a text costs but its
tokenization, which is the same for all.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

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
DIMS = {"": 768, ", 192 wide": 192}
STUDENTS: dict[str, dict[str, Any]] = {
    f"student, {layers}{width}": {"reference_layers": layers, "reference_dim": dim}
    for layers in ("first", "all")
    for width, dim in DIMS.items()
}
RIVALS: dict[str, dict[str, Any]] = {BERT_BASE: {}, TINYBERT: {"reference_mode": "none"}}
WITHOUT, GIVEN, LOOKED_UP = "null reference", "reference given", "with look-up"
QUERIES = 2000

NOTE = (
    "References are as long as the texts; no text is padded. `192 wide`: the memory keeps 192 principal components of a "
    "state (references.dim) instead of BERT's 768. Null reference: what a student reads without a memory. Reference given: "
    "the same forward with states at hand. With look-up: a live search and fetch, then the forward. Over BERT-base: median "
    "over rounds of BERT-base's time over this one's in the same round, backend and threads. Over TinyBERT-4: the same with "
    "the student's own shape without any reference path, minus one: what references cost. Int8: dynamic quantisation. "
    "torch.compile makes a graph for each shape, so only the goals' size is measured. Goals take, for each form of the "
    "student, with and without look-up, the backend that gains most over BERT-base; the cost of the reference path is on the "
    "one with look-up."
)


LookUp = Callable[[int, int], dict[str, NDArray[Any]]]
"""Batch and turn to the inputs of that batch's references."""


def measure(quick: bool, folder: Path) -> Part:
    """Measure every backend that can run here."""
    sizes = [(1, 32), GOAL_SIZE] if quick else [(batch, tokens) for tokens in LENGTHS for batch in BATCHES]
    num_points, rounds = (300, 2) if quick else (20_000, 15)
    students = {name: options for name, options in STUDENTS.items() if not quick or options["reference_dim"] == 768}
    rows: Rows = []
    with ExitStack() as stack:
        look_ups = {
            (tokens, dim): stack.enter_context(opened_memory(folder / f"{tokens}x{dim}", num_points, tokens, dim))
            for tokens in sorted({tokens for _, tokens in sizes})
            for dim in {options["reference_dim"] for options in students.values()}
        }
        for backend, build in BACKENDS.items():
            if reason := missing(backend):
                rows.append({"backend": backend, "contender": f"skipped: {reason}"})
                continue
            torch.manual_seed(0)
            forwards = {name: build(encoder(name, **options)) for name, options in (RIVALS | students).items()}
            for batch, tokens in [GOAL_SIZE] if backend == COMPILED else sizes:
                here = {dim: look_up for (length, dim), look_up in look_ups.items() if length == tokens}
                found = compared(forwards, students, here, batch, tokens, max(2, min(rounds, 480 // batch)))
                rows += [{"backend": backend, "batch": batch, "tokens": tokens, **row} for row in found]
                print(f"speed: {backend}, {batch} x {tokens}", file=sys.stderr)
    config = {"points": num_points, "rounds": rounds, "threads": torch.get_num_threads(), "students": students}
    return Part(rows, goals(rows, students), NOTE, config)


@contextmanager
def opened_memory(folder: Path, num_points: int, tokens: int, dim: int) -> Iterator[LookUp]:
    """Fill a collection with made-up references of one length and width, and look them up while the context lasts."""
    source = Synthetic(num_points, tokens, dim, is_clustered=False, text_tokens=tokens, has_sentences=False)
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
    forwards: dict[str, Forward],
    students: dict[str, dict[str, Any]],
    look_ups: dict[int, LookUp],
    batch: int,
    tokens: int,
    rounds: int,
) -> Rows:
    """Time every contender in turns on one batch of texts."""
    texts = text_arrays(batch, tokens)
    contenders: dict[tuple[str, str | None], Callable[[int], Any]] = {
        (name, None): partial(_forward, forwards[name], texts) for name in RIVALS
    }
    for name, options in students.items():
        forward, dim = forwards[name], options["reference_dim"]
        given = look_ups[dim](batch, 0)
        contenders[name, WITHOUT] = partial(_forward, forward, texts | no_reference(batch, dim))
        contenders[name, GIVEN] = partial(_forward, forward, texts | given)
        contenders[name, LOOKED_UP] = partial(_look_up_and_forward, forward, texts, look_ups[dim])
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
            "over_tinybert_4": median_ratio(seconds, tiny) - 1 if name in students else None,
        }
        for (name, reads), seconds in taken.items()
    ]


def goals(rows: Rows, students: dict[str, dict[str, Any]]) -> list[Goal]:
    """The issue's goals at their size, for each form of the student on the backend that serves it best."""
    found: list[Goal] = []
    batch, tokens = GOAL_SIZE
    for name, options in students.items():
        here = [row for row in rows if (row.get("batch"), row.get("tokens"), row["contender"]) == (batch, tokens, name)]
        best = {
            reads: max((row for row in here if row["reads"] == reads), key=lambda row: row["over_bert_base"])
            for reads in (WITHOUT, LOOKED_UP)
        }
        backend = best[LOOKED_UP]["backend"]
        (given,) = (row for row in here if (row["backend"], row["reads"]) == (backend, GIVEN))
        form = f"{options['reference_layers']}_{options['reference_dim']}"
        size = f"batch_{batch}_length_{tokens}"
        most = 0.05 if options["reference_layers"] == "first" else 0.15
        found += [
            Goal(
                f"throughput_over_bert_base_with_lookup_{form}_{size}",
                best[LOOKED_UP]["over_bert_base"],
                9.5,
                ">=",
            ),
            Goal(f"throughput_over_bert_base_without_{form}_{size}", best[WITHOUT]["over_bert_base"], 13.0, ">="),
            Goal(f"reference_path_cost_{form}_{size}", given["over_tinybert_4"], most, "<="),
        ]
    return found


def _forward(forward: Forward, arrays: dict[str, NDArray[Any]], _: int) -> Any:
    return forward(arrays)


def _look_up_and_forward(forward: Forward, texts: dict[str, NDArray[Any]], look_up: LookUp, turn: int) -> Any:
    return forward(texts | look_up(len(texts["input_ids"]), turn))
