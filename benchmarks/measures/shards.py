"""Look-ups over shards: whether rank depends on their number, and what several cost where a call between nodes takes a while.

The cluster is the tests' (tests/qdrant_cluster.py), as a process of its own: nodes with shards of an embedded server's engine.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from measures.collection import fill, store_config, wait_closed
from measures.goals import Goal, Part, Rows, in_turns, median_ratio
from measures.lookups import CRITERIA, require_live
from measures.points import BATCH, Synthetic, in_batches
from vector_store.client import connect
from vector_store.retriever import Retriever
from vector_store.schema import Choice, Criterion
from vector_store.term_statistics import publish_term_statistics

TOKENS, DIM = 1, 128
COUNT = 16
NODES, HOP_MS = 4, 1.0
SHARDS = (1, 3, 4)
RANKED, TIMED = 4, 3
"""Numbers of shards whose rank, and whose latency, are compared with those of one shard."""

REPOSITORY = Path(__file__).parents[2]

NOTE = (
    f"Made-up references as in `scaling`, vectors of {DIM}, the same in each number of shards; {COUNT} neighbours of each "
    f"query, in batches of {BATCH}, one in flight. Recall: of the {COUNT} that an exact search of one shard finds, which "
    "leaves out no frequent token. As one shard: share of queries with the same best reference, and of all that are the same. "
    f"A cluster of {NODES} nodes, {HOP_MS:g} ms from one to another each way; the node that is asked has the only shard, or "
    "the first. All nodes are one Python process in front of one embedded server: shards are searched one after another on its "
    "interpreter, where a real cluster's are searched at once, so several shards cost more here than the hop."
)


def measure(quick: bool, folder: Path) -> Part:
    """Fill a collection for each number of shards, rank the same queries in each, then ask them in turns."""
    rounds = 30 if quick else 200
    points = Synthetic(8_000 if quick else 20_000, TOKENS, DIM, is_clustered=True)
    batches = in_batches(points.queries(BATCH * rounds))
    rows: Rows = []
    ratios: dict[str, float] = {}
    with cluster(folder) as url, connect(store_config(url, "any"), url) as client:
        configs = {
            shards: store_config(url, f"shards-{shards}").model_copy(update={"shard_number": shards})
            for shards in SHARDS
        }
        filled = {shards: fill(client, config, points.manifest, points.points()) for shards, config in configs.items()}
        for config in configs.values():
            publish_term_statistics(client, config)
        for criterion in CRITERIA:

            def retriever(shards: int, exact: bool = False, criterion: Criterion = criterion) -> Retriever:
                return Retriever(client, configs[shards], points.manifest, criterion, exact=exact, count=COUNT)

            asked = batches[:30]
            truth = chosen(retriever(1, exact=True), asked)
            ranked = {shards: chosen(retriever(shards), asked) for shards in SHARDS}
            timed = {shards: retriever(shards) for shards in SHARDS}
            contenders = {
                shards: lambda turn, asking=asking: asking.neighbours(batches[turn]) for shards, asking in timed.items()
            }
            for contender in contenders.values():
                contender(0)
            taken = in_turns(contenders, rounds)
            for asking in timed.values():
                require_live(asking)
            found: Rows = [
                {
                    "criterion": criterion,
                    "shards": shards,
                    "points": filled[shards].points,
                    "hnsw": "yes" if filled[shards].has_hnsw else "no",
                    f"recall_at_{COUNT}": shared(truth, ranked[shards]),
                    "best_as_one_shard": shared([one[:1] for one in ranked[1]], [one[:1] for one in ranked[shards]]),
                    f"{COUNT}_as_one_shard": shared(ranked[1], ranked[shards]),
                    "largest_score_difference": score_difference(ranked[1], ranked[shards]),
                    "p50_ms": 1000 * float(np.median(taken[shards])),
                    "p50_over_one_shard": median_ratio(taken[shards], taken[1]),
                }
                for shards in SHARDS
            ]
            rows += found
            one, timed_row, ranked_row = (found[SHARDS.index(shards)] for shards in (1, TIMED, RANKED))
            recall = f"recall_at_{COUNT}"
            ratios |= {
                f"{criterion}_best_same_in_1_and_{RANKED}_shards": ranked_row["best_as_one_shard"],
                f"{criterion}_{recall}_{RANKED}_shards_over_1": ranked_row[recall] / one[recall],
                f"{criterion}_latency_{TIMED}_shards_over_1": timed_row["p50_over_one_shard"],
            }
    goals = [
        Goal(name, value, 1.5, "<=") if "latency" in name else Goal(name, value, 0.99, ">=")
        for name, value in ratios.items()
    ]
    return Part(rows, goals, NOTE, {"points": points.num, "dim": DIM, "rounds": rounds, "hop_ms": HOP_MS})


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """Start the nodes; yields their address: the first is asked."""
    command = [
        sys.executable,
        "-m",
        "tests.qdrant_cluster",
        str(folder),
        "--nodes",
        str(NODES),
        "--hop-ms",
        str(HOP_MS),
    ]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            urls = process.stdout.readline().strip()
            if not urls:
                raise RuntimeError(f"{' '.join(command)} ended with {process.wait()}")
            yield urls.partition(",")[0]
        finally:
            process.terminate()  # SIGINT is ignored by what a shell has started in the background
    wait_closed(folder)


def chosen(retriever: Retriever, batches: Sequence[Any]) -> list[list[Choice]]:
    """The choices of every query."""
    return [choices for batch in batches for choices in retriever.choices(batch)]


def shared(wanted: Sequence[Sequence[Choice]], found: Sequence[Sequence[Choice]]) -> float:
    """Share of the wanted points that were found, over all queries."""
    hits = sum(
        len({choice.id for choice in one} & {choice.id for choice in other})
        for one, other in zip(wanted, found, strict=True)
    )
    return hits / sum(map(len, wanted))


def score_difference(one: Sequence[Sequence[Choice]], other: Sequence[Sequence[Choice]]) -> float:
    """Largest difference, relative to the score, of a point that both have chosen for a query."""
    largest = 0.0
    for mine, theirs in zip(one, other, strict=True):
        scores = {choice.id: choice.score for choice in theirs}
        differences = [abs(scores[each.id] / each.score - 1) for each in mine if each.id in scores]
        largest = max([largest, *differences])
    return largest
