"""Bytes per reference against fidelity lost: ways to store a teacher's token states, on real states.

    python benchmarks/codec.py [--quick] [--out DIR]

The states are all-MiniLM-L6-v2's of the demo's snippets, cut at 32 tokens, in float32 as the teacher gave them. Each way
stores them and gives them back; compared is what comes back. Principal components are fitted on texts of their own.

Payload ways are packed bytes as base64. Engine ways are multivectors of the real engine, in process: no gRPC, which would
carry float32 whatever the storage. Token ids, keywords and text are the same for all and left out.
"""

import binascii
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as engine
from measures.goals import Part, Rows, arguments, in_turns, write_results
from measures.points import BATCH, snippet_rows
from numpy.typing import NDArray

from jobs.run.worker import quiet_libraries
from refbert.config import TeacherConfig
from refbert.projection import Projection, fit_projection
from refbert.teacher import load_teacher, tokenize
from vector_store.codec import pack_states, unpack_states
from vector_store.config import Datatype

BUDGETS = (16, 8)
DATATYPES: tuple[Datatype, ...] = ("float16", "int8")
DIMS = (256, 192, 128, 96)
ROUNDS = 20

NOTE = (
    "Raw and stored: mean bytes of the states of one reference, packed and as base64 in the payload. On disk: what the "
    "engine's files take per reference that holds nothing else. Error: squared error of the tokens that are stored over the "
    "variance of token states, projections turned back into the teacher's space. Kept: share of tokens that are stored at "
    "all. Sentence cosine: mean vector of what came back against that of all states, mean over texts and the worst "
    "hundredth. Encode and decode: median ms for 32 references between numpy and what the payload or the engine takes; "
    "decode ends in one padded float16 array of the stored width."
)

States = list[NDArray[np.float32]]
"""One (tokens, dim) array per text."""


@dataclass
class Fidelity:
    """What came back, summed over references."""

    total_bytes: int = 0
    stored_bytes: int = 0
    squared_error: float = 0.0
    kept_tokens: int = 0
    cosines: list[float] = field(default_factory=list)


def main() -> None:
    """Measure every way, print the table and write the results."""
    given = arguments(__doc__ or "")
    quiet_libraries()
    started_s = time.monotonic()
    num_texts = 500 if given.quick else 2000
    states = teacher_states(2 * num_texts)
    fitted_on, evaluated = states[:num_texts], states[num_texts:]
    rows = payload_rows(evaluated, fitted_on) + engine_rows(evaluated)
    config = {"teacher": TeacherConfig().model_dump(mode="json"), "texts_evaluated": len(evaluated)}
    config |= {"texts_fitted_on": len(fitted_on), "tokens_fitted_on": sum(map(len, fitted_on)), "batch": BATCH}
    part = Part(rows, [], NOTE, config)
    write_results("codec: bytes per reference against fidelity lost", given, started_s, {"states": part}, ["states"])


def teacher_states(num_texts: int) -> States:
    """Last-layer states of the first snippets, float32."""
    texts = [row.text for row in snippet_rows()[:num_texts]]
    teacher = load_teacher(TeacherConfig())
    found: States = []
    for start in range(0, len(texts), BATCH):
        ids, mask, _ = tokenize(teacher.tokenizer, texts[start : start + BATCH], teacher.config.tokens)
        states = teacher.encode(ids, mask).states.numpy()
        found += [row[:length].copy() for row, length in zip(states, mask.sum(1).tolist(), strict=True)]
    return found


# ---------------------------------------------------------------- packed in the payload


def payload_rows(evaluated: States, fitted_on: States) -> Rows:
    """One line for each datatype, width and token budget."""
    full = max(len(states) for states in evaluated)
    teacher_dim = evaluated[0].shape[1]
    ways: list[tuple[Datatype, int, int]] = [
        (datatype, dim, full) for dim in (teacher_dim, *DIMS) for datatype in DATATYPES
    ]
    ways += [(datatype, teacher_dim, budget) for budget in BUDGETS for datatype in DATATYPES]
    ways += [("int8", dim, budget) for budget in BUDGETS for dim in (192, 128)]
    tokens = np.concatenate(fitted_on).astype(np.float16)
    projections = {dim: fit_projection(tokens, dim) for dim in DIMS}
    return [payload_row(evaluated, datatype, projections.get(dim), budget) for datatype, dim, budget in ways]


def payload_row(evaluated: States, datatype: Datatype, projection: Projection | None, budget: int) -> dict[str, Any]:
    """Store the first `budget` states of all texts in the payload this way and compare what comes back."""
    dim = projection.dim if projection else evaluated[0].shape[1]
    given = [states.astype(np.float16) for states in evaluated]

    def encode(states: NDArray[np.float16]) -> str:
        kept = projection.apply(states[:budget]) if projection else states[:budget]
        return binascii.b2a_base64(pack_states(kept, datatype), newline=False).decode("ascii")

    def decode(text: str) -> NDArray[np.float16]:
        return unpack_states(binascii.a2b_base64(text), dim, datatype)

    fidelity = Fidelity()
    for states, given_states in zip(evaluated, given, strict=True):
        text = encode(given_states)
        stored = decode(text)
        compare(fidelity, states, projection.restore(stored) if projection else stored.astype(np.float32))
        fidelity.stored_bytes += len(text)
        fidelity.total_bytes += len(binascii.a2b_base64(text))

    batch = given[:BATCH]
    texts = [encode(states) for states in batch]

    def decode_batch(_: int) -> None:
        padded = np.zeros((BATCH, budget, dim), np.float16)
        for row, text in enumerate(texts):
            states = decode(text)
            padded[row, : len(states)] = states

    taken = in_turns({"encode": lambda _: [encode(states) for states in batch], "decode": decode_batch}, ROUNDS)
    # The engine wants some vector to be declared; no point has it.
    config = engine.EdgeConfig(sparse_vectors={"keywords": engine.EdgeSparseVectorParams()}, on_disk_payload=True)
    with tempfile.TemporaryDirectory() as folder:
        shard = engine.EdgeShard.create(folder, config)
        points = [engine.Point(point_id(row), {}, {"states": encode(states)}) for row, states in enumerate(given)]
        disk_bytes = written_bytes(shard, Path(folder), points) / len(evaluated)
    means = {"raw_bytes": fidelity.total_bytes / len(evaluated), "stored_bytes": fidelity.stored_bytes / len(evaluated)}
    return {
        "where": "payload",
        "type": datatype,
        "dim": dim,
        "tokens": budget,
        **means,
        "disk_bytes": disk_bytes,
    } | described(fidelity, evaluated, taken)


def compare(fidelity: Fidelity, states: NDArray[np.float32], back: NDArray[np.float32]) -> None:
    """Add one reference's loss; `back` may have fewer tokens."""
    fidelity.squared_error += float(((states[: len(back)] - back) ** 2).sum())
    fidelity.kept_tokens += len(back)
    mean, mean_back = states.mean(0), back.mean(0)
    fidelity.cosines.append(float(mean @ mean_back / (np.linalg.norm(mean) * np.linalg.norm(mean_back))))


def described(fidelity: Fidelity, evaluated: States, taken: dict[str, list[float]]) -> dict[str, Any]:
    """The columns that all ways share. Error and variance are both means over tokens."""
    tokens = np.concatenate(evaluated)
    variance = float(((tokens - tokens.mean(0)) ** 2).sum(1).mean())
    return {
        "error_over_variance": fidelity.squared_error / fidelity.kept_tokens / variance,
        "kept": fidelity.kept_tokens / len(tokens),
        "sentence_cosine": float(np.mean(fidelity.cosines)),
        "worst_hundredth": float(np.quantile(fidelity.cosines, 0.01)),
        "encode_ms": 1000 * float(np.median(taken["encode"])),
        "decode_ms": 1000 * float(np.median(taken["decode"])),
    }


# ---------------------------------------------------------------- multivectors of the engine


def engine_rows(evaluated: States) -> Rows:
    """One line for each datatype that the engine offers for a multivector."""
    kinds: Any = engine.VectorStorageDatatype  # Turbo4 is not in its stub
    return [engine_row(evaluated, kind) for kind in (kinds.Float16, kinds.Turbo16, kinds.Turbo8, kinds.Turbo4)]


def engine_row(evaluated: States, datatype: engine.VectorStorageDatatype) -> dict[str, Any]:
    """Store all states as multivectors and compare what `retrieve` gives back."""
    dim = evaluated[0].shape[1]
    budget = max(len(states) for states in evaluated)
    config = engine.EdgeConfig(
        vectors={
            "states": engine.EdgeVectorParams(
                size=dim,
                distance=engine.Distance.Dot,
                on_disk=True,
                multivector_config=engine.MultiVectorConfig(engine.MultiVectorComparator.MaxSim),
                datatype=datatype,
                hnsw_config=engine.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
            )
        }
    )

    def point(row: int) -> engine.Point:
        return engine.Point(point_id(row), {"states": evaluated[row].tolist()}, {})

    fidelity = Fidelity()
    with tempfile.TemporaryDirectory() as folder:
        shard = engine.EdgeShard.create(folder, config)
        disk_bytes = written_bytes(shard, Path(folder), [point(row) for row in range(len(evaluated))]) / len(evaluated)
        shard = engine.EdgeShard.load(folder)

        def vectors(rows: Sequence[int]) -> list[NDArray[np.float32]]:
            records = shard.retrieve([point_id(row) for row in rows], with_payload=False, with_vector=["states"])
            by_id: dict[str, Any] = {str(record.id): record.vector for record in records}
            return [np.array(by_id[point_id(row)]["states"], np.float32) for row in rows]

        for start in range(0, len(evaluated), BATCH):
            rows = range(start, min(start + BATCH, len(evaluated)))
            for row, back in zip(rows, vectors(rows), strict=True):
                compare(fidelity, evaluated[row], back)

        def decode_batch(_: int) -> None:
            padded = np.zeros((BATCH, budget, dim), np.float16)
            for row, back in enumerate(vectors(range(BATCH))):
                padded[row, : len(back)] = back

        taken = in_turns({"encode": lambda _: [point(row) for row in range(BATCH)], "decode": decode_batch}, ROUNDS)
        shard.close()
    name = str(datatype).rpartition(".")[2]
    means = {"raw_bytes": None, "stored_bytes": None, "disk_bytes": disk_bytes}
    return {"where": "engine", "type": name, "dim": dim, "tokens": budget, **means} | described(
        fidelity, evaluated, taken
    )


def point_id(row: int) -> str:
    """A UUID for a row."""
    return str(uuid.UUID(int=row))


def written_bytes(shard: engine.EdgeShard, folder: Path, points: list[engine.Point]) -> int:
    """Write points and close; bytes that the files then take more than the empty shard's, the write-ahead log left out."""
    shard.flush()
    empty = disk_bytes(folder)
    for start in range(0, len(points), 100):
        shard.update(engine.UpdateOperation.upsert_points(points[start : start + 100]))
    shard.flush()
    shard.close()
    return disk_bytes(folder) - empty


def disk_bytes(folder: Path) -> int:
    """Blocks that are allocated: the engine makes sparse files of whole pages."""
    files = (path for path in folder.rglob("*") if path.is_file() and "wal" not in path.relative_to(folder).parts)
    return sum(512 * file.stat().st_blocks for file in files)


if __name__ == "__main__":
    main()
