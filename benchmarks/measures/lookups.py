"""Look-ups over gRPC against the engine in this process, and against qdrant-client's local mode.

All sides search with the same filters (local mode also without) for the same candidates, fetch the chosen points and end in
the same padded numpy arrays. Each look-up fetches: caches are off.
"""

import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as engine
from qdrant_client import QdrantClient, models

from measures.collection import fill, opened, process_cpu_s, server_pid, wait_closed
from measures.goals import Goal, Part, Rows, in_turns, median_ratio
from measures.points import BATCH, in_batches, load_snippets
from vector_store import codec
from vector_store.codec import DOCUMENT, STATES, TOKEN_IDS, as_bytes, empty_neighbours, encode, unit, unpack_states
from vector_store.config import Datatype
from vector_store.pipeline import pipelined
from vector_store.retriever import SEARCHED, TIES, Retriever
from vector_store.schema import KEYWORDS, SENTENCE, Criterion, Manifest, Neighbours, Point, Query, StoredPoint
from vector_store.term_statistics import TermStatistics, publish_term_statistics

IN_FLIGHT = (1, 2, 4)
GOAL_IN_FLIGHT = 2
BATCHES_PER_TURN = 8
LOCAL_UPLOAD = 1000

ROUNDING = 1e-5
"""Scores of the same vectors differ by less, relatively: float32 sums in another order."""

Lookup = Callable[[Sequence[Query]], Neighbours]
CRITERIA: tuple[Criterion, ...] = ("keywords", "dense")

NOTE = (
    f"Batches of {BATCH}. Engine: a copy of the server's shard, opened by the measuring process. In flight: threads that "
    "share one retriever, or one shard (which never releases the interpreter's lock). Contenders take turns in blocks of "
    f"{BATCHES_PER_TURN} batches; a ratio is the median over turns of a contender's rate over the engine's in the same turn, "
    "with the number of threads that is the engine's best. CPU: processor time per batch here and in the server; batches in "
    "flight can overlap these two. "
    f"The goal is the criterion `keywords` on float16 states with {GOAL_IN_FLIGHT} batches in flight. "
    "Local mode: one batch in flight on both sides; it holds the vectors that the server stores, and both are asked with the "
    "same weights."
)


def measure(quick: bool, folder: Path) -> Part:
    """Measure both comparisons."""
    rows, ratio = against_engine(quick, folder / "float16", "float16")
    if not quick:
        rows += against_engine(quick, folder / "int8", "int8")[0]
    goals = [Goal(f"lookups_grpc_over_engine_batch_{BATCH}", ratio, 0.8, ">=")]
    num_points = 1000 if quick else 100_000
    local_rows, ratios = against_local_mode(num_points, folder / "local")
    if num_points == 100_000:
        goals.append(Goal("lookups_dense_over_local_mode_100k", ratios["dense"], 20.0, ">="))
    return Part(rows + local_rows, goals, NOTE, {"quick": quick, "local_points": num_points})


# ---------------------------------------------------------------- the engine


def against_engine(quick: bool, folder: Path, datatype: Datatype) -> tuple[Rows, float]:
    """Real snippets, 32 tokens of 384; returns the rows, and the ratio that the goal is on for float16."""
    snippets = load_snippets(7500 if quick else None)
    manifest = snippets.manifest.model_copy(update={"datatype": datatype})
    with opened(folder, "snippets") as (client, config):
        filled = fill(client, config, manifest, snippets.points())
    wait_closed(folder)
    (original,) = folder.glob("collections/*snippets/shard-*")
    copy = shutil.copytree(original, folder / "engine")
    shard = engine.EdgeShard.load(str(copy))
    batches = in_batches(snippets.queries())
    rows: Rows = []
    goal = 0.0
    with opened(folder, "snippets") as (client, config):
        for criterion in CRITERIA:
            retriever = Retriever(client, config, manifest, criterion)
            in_process = engine_lookup(shard, manifest, criterion)
            require_same(retriever.neighbours(batches[0]), in_process(batches[0]))
            found = compared(retriever.neighbours, in_process, batches, server_pid(folder), rounds=4 if quick else 40)
            require_live(retriever)
            rows += [{"points": filled.points, "states": datatype, "criterion": criterion, **row} for row in found]
            if criterion == "keywords":
                (goal,) = (
                    row["over_engine"] for row in found if row["contender"] == f"gRPC, {GOAL_IN_FLIGHT} in flight"
                )
    shard.close()
    return rows, goal


def compared(over_grpc: Lookup, in_process: Lookup, batches: list[list[Query]], server: int, rounds: int) -> Rows:
    """Rates of both at each number of batches in flight; each turn's blocks are the same queries."""
    contenders: dict[str, Callable[[int], Any]] = {}
    cpu_s: dict[str, list[tuple[float, float]]] = {}

    def add(name: str, lookup: Lookup, in_flight: int) -> None:
        cpu_s[name] = []

        def block(turn: int) -> None:
            chosen = [batches[(turn * BATCHES_PER_TURN + i) % len(batches)] for i in range(BATCHES_PER_TURN)]
            here, there = time.process_time(), process_cpu_s(server)
            for _ in pipelined(lookup, chosen, in_flight):
                pass
            cpu_s[name].append((time.process_time() - here, process_cpu_s(server) - there))

        contenders[name] = block

    for in_flight in IN_FLIGHT:
        add(f"gRPC, {in_flight} in flight", over_grpc, in_flight)
        add(f"engine, {in_flight} in flight", in_process, in_flight)
    for block in contenders.values():  # connections and page caches
        block(0)
    taken = in_turns(contenders, rounds)
    best = min((name for name in taken if name.startswith("engine")), key=lambda name: statistics.median(taken[name]))
    cpu_ms = {name: 1000 * np.mean(seconds, axis=0) / BATCHES_PER_TURN for name, seconds in cpu_s.items()}
    return [
        {
            "contender": name,
            "lookups_per_s": BATCHES_PER_TURN * BATCH / float(np.median(seconds)),
            "ms_per_batch": 1000 * float(np.median(seconds)) / BATCHES_PER_TURN,
            "client_cpu_ms": float(cpu_ms[name][0]),
            "server_cpu_ms": float(cpu_ms[name][1]),
            "over_engine": median_ratio(taken[best], seconds),
        }
        for name, seconds in taken.items()
    ]


def engine_lookup(shard: engine.EdgeShard, manifest: Manifest, criterion: Criterion) -> Lookup:
    """The same look-up without a server: one batch of searches, one fetch, padded arrays."""
    fields = engine.PayloadSelector.Include([STATES, TOKEN_IDS])
    as_searched = engine.SearchParams(hnsw_ef=SEARCHED, quantization=engine.QuantizationSearchParams(rescore=True))

    def search(query: Query) -> engine.QueryRequest:
        if criterion == "keywords":
            vector: Any = engine.SparseVector(query.keywords.indices.tolist(), query.keywords.values.tolist())
        else:
            assert query.sentence is not None
            vector = query.sentence.tolist()
        forbidden: list[Any] = [engine.HasIdCondition({query.id})]
        if query.document is not None:
            forbidden.append(engine.FieldCondition(DOCUMENT, match=engine.MatchValue(query.document)))
        return engine.QueryRequest(
            limit=TIES,
            query=engine.Query.Nearest(vector, using=KEYWORDS if criterion == "keywords" else SENTENCE),
            filter=engine.Filter(must_not=forbidden),
            with_payload=False,
            with_vector=False,
            params=None if criterion == "keywords" else as_searched,
        )

    def look_up(queries: Sequence[Query]) -> Neighbours:
        answers = shard.query_batch(engine.QueryBatchRequest([search(query) for query in queries]))
        return fetched(answers, lambda ids: shard.retrieve(ids, fields, False), manifest)

    return look_up


def fetched(answers: Sequence[Any], retrieve: Callable[[list[Any]], Any], manifest: Manifest) -> Neighbours:
    """The best candidate of each answer, fetched once each and decoded into padded arrays."""
    best = [min(((-point.score, str(point.id)) for point in answer), default=None) for answer in answers]
    payloads = {str(record.id): record.payload for record in retrieve(sorted({c[1] for c in best if c}))}
    found = empty_neighbours(len(answers), manifest)
    for row, chosen in enumerate(best):
        if chosen:
            decode_row(found, row, chosen[1], -chosen[0], payloads[chosen[1]], manifest)
    return found


def decode_row(found: Neighbours, row: int, identifier: str, score: float, payload: Any, manifest: Manifest) -> None:
    """Decode one point's base64 payload into a row of padded arrays, as the retriever does from protobuf."""
    states = unpack_states(as_bytes(payload[STATES]), found.states.shape[2], manifest.datatype)
    packed = np.frombuffer(as_bytes(payload[TOKEN_IDS]), f"<u{manifest.token_bytes}")
    token_ids = packed.astype(np.int32)
    codec.fill(found, {row: [StoredPoint(identifier, states, token_ids, None)]}, {row: [score]})
    found.rungs[row] = "live"


def require_same(one: Neighbours, other: Neighbours) -> None:
    """Both sides must have found neighbours of the same score (equal scores may name different points), states included."""
    same = [row for row in range(BATCH) if one.ids[row] == other.ids[row]]
    agree = np.allclose(one.scores, other.scores, rtol=1e-4) and len(same) > BATCH / 2
    if not agree or not all(np.array_equal(one.states[row], other.states[row]) for row in same):
        raise RuntimeError("the contenders found different neighbours: their speeds cannot be compared")


def require_live(retriever: Retriever) -> None:
    """A look-up that was not answered live is not a measurement."""
    if retriever.counts["cached"] or retriever.counts["null"]:
        raise RuntimeError(f"look-ups degraded while they were measured: {retriever.counts}")


# ---------------------------------------------------------------- local mode


def against_local_mode(num_points: int, folder: Path) -> tuple[Rows, dict[str, float]]:
    """Spans of real snippets with 4 states each; returns the rows and, by criterion, gRPC's rate over local mode's."""
    snippets = load_snippets()
    tokens = 4
    manifest = snippets.manifest.model_copy(update={"tokens": tokens})
    batches = in_batches(snippets.queries())
    rows: Rows = []
    ratios: dict[str, float] = {}
    with opened(folder / "server", "spans") as (client, config):
        filled = fill(client, config, manifest, snippets.spans(num_points, tokens))
        statistics = publish_term_statistics(client, config)
        local = local_mode(folder / "local", manifest, snippets.spans(num_points, tokens))
        for criterion in CRITERIA:
            rounds = 3 if criterion == "dense" else 1  # local mode takes minutes for more
            retriever = Retriever(client, config, manifest, criterion)
            in_local_mode = local_lookup(local, manifest, criterion, statistics, with_filter=True)
            contenders = {
                "gRPC": lambda turn, lookup=retriever.neighbours: [
                    lookup(batch) for batch in batches[10 * turn :][:10]
                ],
                "local mode": lambda turn, lookup=in_local_mode: lookup(batches[turn]),
            }
            over_grpc = retriever.neighbours(batches[0])
            if (in_local_mode(batches[0]).scores * (1 + ROUNDING) < over_grpc.scores).any():
                raise RuntimeError("local mode, which is exact, missed a neighbour: the contenders differ")
            if criterion == "dense":
                unfiltered = local_lookup(local, manifest, criterion, statistics, with_filter=False)
                contenders["local mode without filters"] = lambda turn, lookup=unfiltered: lookup(batches[turn])
            taken = in_turns(contenders, rounds)
            require_live(retriever)
            taken["gRPC"] = [seconds / 10 for seconds in taken["gRPC"]]
            ratios[criterion] = median_ratio(taken["local mode"], taken["gRPC"])
            rows += [
                {
                    "points": filled.points,
                    "states": manifest.datatype,
                    "criterion": criterion,
                    "contender": name,
                    "lookups_per_s": BATCH / float(np.median(seconds)),
                    "ms_per_batch": 1000 * float(np.median(seconds)),
                    "grpc_over_this": median_ratio(seconds, taken["gRPC"]),
                }
                for name, seconds in taken.items()
            ]
        local.close()
    return rows, ratios


def local_mode(folder: Path, manifest: Manifest, points: Any) -> QdrantClient:
    """A local-mode collection with the same vectors and payloads, and without an IDF of its own, as the store's."""
    warnings.filterwarnings("ignore", message=".*[Ll]ocal mode.*")
    client = QdrantClient(path=str(folder))
    client.create_collection(
        "spans",
        vectors_config={SENTENCE: models.VectorParams(size=manifest.words_dim, distance=models.Distance.DOT)},
        sparse_vectors_config={KEYWORDS: models.SparseVectorParams()},
    )
    client.upload_points("spans", (local_point(point, manifest) for point in points), batch_size=LOCAL_UPLOAD)
    return client


def local_point(point: Point, manifest: Manifest) -> models.PointStruct:
    """A point with the vectors and the payload that the server stores."""
    assert point.sentence is not None
    return models.PointStruct(
        id=point.id,
        vector={
            SENTENCE: unit(point.sentence).tolist(),
            KEYWORDS: models.SparseVector(
                indices=point.keywords.indices.tolist(), values=point.keywords.values.tolist()
            ),
        },
        payload={key: value.string_value for key, value in encode(point, manifest).payload.items()},
    )


def local_lookup(
    client: QdrantClient, manifest: Manifest, criterion: Criterion, statistics: TermStatistics, with_filter: bool
) -> Lookup:
    """The same look-up in local mode."""

    def search(query: Query) -> models.QueryRequest:
        forbidden: list[Any] = [models.HasIdCondition(has_id=[query.id])]
        if query.document is not None:
            forbidden.append(models.FieldCondition(key=DOCUMENT, match=models.MatchValue(value=query.document)))
        if criterion == "keywords":
            weighted = statistics.weighted(query.keywords)
            vector: Any = models.SparseVector(indices=weighted.indices.tolist(), values=weighted.values.tolist())
        else:
            assert query.sentence is not None
            vector = unit(query.sentence).tolist()
        return models.QueryRequest(
            query=vector,
            using=KEYWORDS if criterion == "keywords" else SENTENCE,
            filter=models.Filter(must_not=forbidden) if with_filter else None,
            limit=TIES,
            with_payload=False,
        )

    def look_up(queries: Sequence[Query]) -> Neighbours:
        answers = client.query_batch_points("spans", [search(query) for query in queries])
        return fetched([answer.points for answer in answers], lambda ids: client.retrieve("spans", ids), manifest)

    return look_up
