"""Jobs without Ray's processes, for tests of what is computed, not of who computes it: each process imports for 15 seconds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.train import ScalingConfig

from jobs.corpus import parts, prepared
from jobs.evaluation import scored_parts
from jobs.memory import fill
from jobs.memory.store import CLUSTER_STORE
from jobs.run.attempts import DEATHS, Attempts
from jobs.training import loop


def compute_in_process(patch: pytest.MonkeyPatch) -> None:
    """Fill memories, score files and, with the fixture `process_group`, train in the tests' own process."""
    patch.setattr(fill, "stored_chunks", stored_chunks)
    patch.setattr(scored_parts, "scored", scored)
    patch.setattr(loop, "scaling_config", lambda train: ScalingConfig(num_workers=0))  # Ray Train's local mode
    patch.setattr(torch.distributed, "destroy_process_group", lambda: None)  # which that ends with
    patch.setenv("LOCAL_RANK", "0")


def without_ray(patch: pytest.MonkeyPatch, store_url: str) -> None:
    """Read corpora in the tests' own process, too, and have a store that is running already: nothing asks for Ray then."""
    patch.setattr(prepared, "_read_parts", read_parts)
    for room in (fill, scored_parts):
        patch.setattr(room, "per_node", lambda workers: workers)
    patch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    patch.setenv(CLUSTER_STORE, store_url)


def read_parts(corpus: Any, teacher: Any, files: list[str], folder: Path) -> list[parts.CorpusPart]:
    stage = parts.ReadAndSplit(folder, corpus, teacher.model, teacher.tokens)
    rows = stage({"number": np.arange(len(files)), "file": np.array(files)})
    return [parts.CorpusPart.named(Path(path)) for row in rows for path in row["path"]]


def stored_chunks(
    config: Any, address: Any, corpus: Any, pending: Any, corrected: Any = None
) -> Iterator[fill.StoredChunk]:
    stage = fill.EncodeAndStore(config, address, corpus, pending, corrected, Attempts.of_run(config.run_directory))
    try:
        for place in range(len(pending)):
            yield from fill.chunks_of(stage({"id": np.array([place])}))
    finally:
        stage.client.close()


def scored(
    scoring: scored_parts.ScoringJob, files: list[str], done: frozenset[str]
) -> Iterator[scored_parts.ScoredPart]:
    attempts = Attempts.of_run(scoring.config.run_directory)
    stage = scored_parts.ScoreAndWrite(scoring, attempts)
    batch = {"number": np.arange(len(files)), "file": np.array(files)}
    for part in scored_parts.row_ranges(batch, scoring.corpus, scoring.config.predict.part_rows, done, attempts):
        yield from scored_parts.parts_of(stage(part))


def die_at(attempts: Attempts, work: str) -> None:
    """Leave what processes leave that are killed at a batch as often as it is tried."""
    attempts.folder.mkdir(parents=True, exist_ok=True)
    (attempts.folder / work).write_text(f"{attempts.job}\n" * DEATHS)
