"""Recall at 1 of dense look-ups against exact search, where an HNSW index answers.

Asked through the retriever, with its filters; the truth is a matrix product here. A neighbour counts where its score is
the best there is, so that one of two equal texts is not a miss.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from measures.collection import fill, opened
from measures.goals import Goal, Part, Rows
from measures.lookups import require_live
from measures.points import Synthetic, in_batches, load_snippets
from vector_store.codec import unit
from vector_store.retriever import Retriever
from vector_store.schema import Manifest, Point, Query

TOKENS = 4
DIM = 384
EQUAL_SCORES = 1e-5
NUM_QUERIES = 1000

NOTE = (
    "Spans of snippets: real static-vector sentences of the packaged teacher (384 numbers), asked by snippets that were never "
    "stored. Snippets: the same, whole texts only. Gaussian: independent normal coordinates, where nothing is near anything: "
    "the worst case, here to show what the goal does not promise. The goal is that of the spans at 100,000 points."
)


def measure(quick: bool, folder: Path) -> Part:
    """Measure recall on real vectors and on the worst case."""
    snippets = load_snippets()
    num_points = 7500 if quick else 100_000
    manifest = snippets.manifest.model_copy(update={"tokens": TOKENS})
    heldout = snippets.heldout_queries()[:NUM_QUERIES]
    spans = recall("spans of snippets", folder / "spans", manifest, snippets.spans(num_points, TOKENS), heldout)
    rows: Rows = [spans]
    if not quick:
        whole = snippets.spans(len(snippets.stored), TOKENS)
        rows.append(recall("snippets", folder / "snippets", manifest, whole, heldout))
        worst = Synthetic(num_points, TOKENS, DIM, is_clustered=False)
        queries = worst.queries(NUM_QUERIES)
        rows.append(recall("Gaussian", folder / "gaussian", worst.manifest, worst.points(), queries))
    goals = [Goal("dense_recall_at_1", spans["recall_at_1"], 0.95, ">=")] if num_points == 100_000 else []
    return Part(rows, goals, NOTE, {"queries": NUM_QUERIES, "points": num_points})


def recall(
    name: str, folder: Path, manifest: Manifest, points: Iterable[Point], queries: Sequence[Query]
) -> dict[str, Any]:
    """Fill a collection, wait for its index, and count how often the best stored point is found."""
    vectors: list[NDArray[np.float32]] = []
    documents: list[str] = []

    def noted() -> Iterable[Point]:
        for point in points:
            assert point.sentence is not None
            vectors.append(point.sentence)
            documents.append(point.document)
            yield point

    with opened(folder, "recall") as (client, config):
        filled = fill(client, config, manifest, noted())
        if not filled.has_hnsw:
            raise RuntimeError(
                f"only {filled.indexed_vectors} vectors of {filled.points} points are indexed: a scan has no recall"
            )
        retriever = Retriever(client, config, manifest, "dense")
        batches = in_batches(queries)
        found = np.concatenate([retriever.neighbours(batch).scores[:, 0] for batch in batches])
        require_live(retriever)
    asked = [query for batch in batches for query in batch]
    best = best_scores(np.stack(vectors), np.array(documents), asked)
    return {
        "vectors": name,
        "points": filled.points,
        "dim": manifest.dim,
        "queries": len(asked),
        "recall_at_1": float((found >= best - EQUAL_SCORES).mean()),
        "score_lost": float((best - found).mean()),
        "segments": filled.segments,
        "index_s": filled.index_s,
    }


def best_scores(
    vectors: NDArray[np.float32], documents: NDArray[np.str_], queries: Sequence[Query]
) -> NDArray[np.float32]:
    """The highest cosine of each query with any vector outside its document, of vectors rounded as the store rounds them."""
    vectors = np.stack([unit(vector) for vector in vectors])
    best = np.zeros(len(queries), np.float32)
    for row, query in enumerate(queries):
        assert query.sentence is not None
        scores = vectors @ unit(query.sentence)
        if query.document is not None:
            scores = scores[documents != query.document]
        best[row] = scores.max()
    return best
