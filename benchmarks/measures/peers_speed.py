"""What peers and an adapted student cost: time of whole calls, and bytes of every file that inference needs.

All take the same texts on the same cores, in turns. Each round asks texts that none before asked.
"""

import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from measures.goals import Rows, in_turns, median_ratio
from measures.peers import BATCH, CACHE, TEACHER, TOKENIZER, Peer, semantic_cache
from measures.points import load_snippets
from measures.reading_speed import (
    BATCHES,
    GLOBAL,
    QUICK_ROUNDS,
    READS,
    REPLICA,
    ROUNDS,
    disk_bytes,
    memory_of,
    opened,
    student_files,
)
from refbert.folder import CORRECTION
from refbert.teacher import Teacher

NOTE = (
    "Texts are snippets of 32 tokens at most, none of them stored. All run in one process on the same cores, in turns, "
    "several batches at once where an encoder can; the embedded store's server runs beside it, on the same cores too. ms: "
    "of a batch of 32, tokenizing and look-up counted, median over rounds. Over the teacher: median over rounds of the "
    "teacher's time over this one's in the same round. MB: weights, tokenizer, word table, correction. Memory MB: what a "
    "store or a cache holds beside them. The student was adapted to {references} references."
)


class Cost(NamedTuple):
    """What an encoder costs: seconds of each round, and bytes. `memory_bytes` are None where there is no memory here."""

    seconds: list[float]
    num_bytes: int
    memory_bytes: float | None


def measure_cost(
    quick: bool, teacher: Teacher, peers: Mapping[str, Peer], adapted: Path | None, store: str
) -> tuple[dict[str, Cost], int]:
    """Time every peer and, where one is given, an adapted student; return costs, and how many references it has."""
    snippets = load_snippets()
    texts = [one.row.text for one in (*snippets.heldout, *snippets.stored)]
    rounds, size = QUICK_ROUNDS if quick else ROUNDS, BATCH * BATCHES
    encoders: dict[str, Callable[..., Any]] = {name: peer.encode for name, peer in peers.items()}
    held: dict[str, tuple[int, float | None]] = {name: (peer.num_bytes, None) for name, peer in peers.items()}
    references = 0
    with ExitStack() as stack:
        if adapted:
            readers = stack.enter_context(opened(adapted, store))
            replica = readers[REPLICA]
            references = len(replica.source)
            encoders |= {name: reader.encode for name, reader in readers.items()}
            encoders[CACHE] = semantic_cache(replica, teacher)
            files = student_files(adapted) | {TOKENIZER: (adapted / TOKENIZER).stat().st_size}
            whole, disk = sum(files.values()), disk_bytes(memory_of(readers[READS]), store)
            of_store = disk and disk * references
            held |= dict.fromkeys(readers, (whole - files.get(CORRECTION, 0), None))
            held[GLOBAL] = whole, None
            held |= dict.fromkeys((READS, REPLICA), (whole, of_store))
            words = replica.words
            assert words is not None
            table = words.rows.numel() + 2 * words.scales.numel()
            # A vector of its words, and the teacher's vector, of each stored text in 16 bits.
            held[CACHE] = table + files[TOKENIZER], 2 * references * (words.dim + teacher.dim)
        contenders = {
            name: (lambda turn, encode=encode: encode(texts[turn * size : (turn + 1) * size]))
            for name, encode in encoders.items()
        }
        for call in contenders.values():
            call(rounds)
        taken = in_turns(contenders, rounds)
    return {name: Cost(seconds, *held[name]) for name, seconds in taken.items()}, references


def speed_up(costs: Mapping[str, Cost], name: str) -> float:
    """The teacher's time over an encoder's."""
    return median_ratio(costs[TEACHER].seconds, costs[name].seconds)


def rows(costs: Mapping[str, Cost], absent: Mapping[str, str]) -> Rows:
    """The table: an encoder a line, and those that are absent."""
    found: Rows = [
        {
            "encoder": name,
            f"ms per {BATCH}": 1000 * statistics.median(cost.seconds) / BATCHES,
            "over the teacher": speed_up(costs, name),
            "MB": cost.num_bytes / 1e6,
            "memory MB": cost.memory_bytes and cost.memory_bytes / 1e6,
        }
        for name, cost in costs.items()
    ]
    return found + [{"encoder": f"{name}: absent, {reason}"} for name, reason in absent.items()]
