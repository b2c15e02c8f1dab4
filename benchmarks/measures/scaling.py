"""Latency of a look-up as the memory grows: collections of growing sizes, asked in turns.

Made-up references with small states, so that a million fit a small machine: what grows is the search.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from measures.collection import Filled, fill, opened
from measures.goals import Goal, Part, Rows, in_turns
from measures.lookups import CRITERIA, require_live
from measures.points import BATCH, Synthetic, in_batches
from vector_store.client import connect
from vector_store.retriever import Retriever
from vector_store.term_statistics import publish_term_statistics

TOKENS, DIM = 4, 32
SIZES = {"10k": 10_000, "100k": 100_000, "1m": 1_000_000}
QUICK_SIZES = {"2k": 2000, "8k": 8000}
LARGEST_GROWTH = {"dense": 2.0, "keywords": 4.0}

NOTE = (
    f"Batches of {BATCH}, one in flight, over gRPC, states included ({TOKENS} tokens of {DIM}). Keywords are about 20 distinct "
    "of 30,000 tokens by Zipf's law; tokens in more points than `store.max_document_frequency` are cut from queries, once the "
    "collection's term statistics are published. Sentence vectors are clustered; an HNSW index is built where the server's "
    "threshold asks for one, else they are scanned. Growth: p50 over the p50 of the size before. Load includes making "
    "the points."
)


def measure(quick: bool, folder: Path) -> Part:
    """Fill a collection of each size, then ask all of them in turns."""
    sizes = QUICK_SIZES if quick else SIZES
    rounds = 40 if quick else 300
    made = {name: Synthetic(num, TOKENS, DIM, is_clustered=True) for name, num in sizes.items()}
    filled: dict[str, Filled] = {}
    retrievers: dict[tuple[str, str], Retriever] = {}
    batches: dict[str, list[Any]] = {}
    with ExitStack() as stack:
        for name, points in made.items():
            client, config = stack.enter_context(opened(folder / "store", f"size-{name}"))
            filled[name] = fill(client, config, points.manifest, points.points())
            publish_term_statistics(client, config)
            own_client = stack.enter_context(connect(config, config.url))
            for criterion in CRITERIA:
                retrievers[name, criterion] = Retriever(own_client, config, points.manifest, criterion)
            batches[name] = in_batches(points.queries(BATCH * rounds))
        contenders = {
            key: lambda turn, key=key, retriever=retriever: retriever.neighbours(batches[key[0]][turn])
            for key, retriever in retrievers.items()
        }
        for contender in contenders.values():
            contender(0)
        taken = in_turns(contenders, rounds)
        for retriever in retrievers.values():
            require_live(retriever)
    rows = latency_rows(sizes, filled, taken)
    goals = [
        Goal(
            f"{row['criterion']}_latency_growth_{row['grown']}",
            row["growth_p50"],
            LARGEST_GROWTH[row["criterion"]],
            "<=",
        )
        for row in rows
        if not quick and row["growth_p50"] is not None
    ]
    return Part(rows, goals, NOTE, {"tokens": TOKENS, "dim": DIM, "rounds": rounds})


def latency_rows(sizes: dict[str, int], filled: dict[str, Filled], taken: dict[Any, list[float]]) -> Rows:
    """One line for each criterion and size, smallest first."""
    rows: Rows = []
    for criterion in CRITERIA:
        before: tuple[str, float, float] | None = None
        for name in sizes:
            milliseconds = 1000 * np.array(taken[name, criterion])
            p50, p99 = float(np.quantile(milliseconds, 0.5)), float(np.quantile(milliseconds, 0.99))
            rows.append(
                {
                    "criterion": criterion,
                    "points": filled[name].points,
                    "p50_ms": p50,
                    "p99_ms": p99,
                    "grown": f"{before[0]}_{name}" if before else None,
                    "growth_p50": p50 / before[1] if before else None,
                    "growth_p99": p99 / before[2] if before else None,
                    "hnsw": "yes" if filled[name].has_hnsw else "no",
                    "segments": filled[name].segments,
                    "load_points_per_s": filled[name].points_per_s,
                    "index_s": filled[name].index_s,
                }
            )
            before = (name, p50, p99)
    return rows
