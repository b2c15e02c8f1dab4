"""Ingest throughput as a fraction of the bare teacher's, on this machine, in one run.

    python benchmarks/ingest.py [--quick] [--out DIR]

The bare teacher encodes the same passages in a plain loop, before and after the pipeline, so that a machine whose speed drifts
is seen. The pipeline is `jobs/ingest.py`'s whole stage: row numbers through Ray Data, look-up of what exists, encoding, upsert
over gRPC into an embedded store that is empty at first. It runs on a quarter of the corpus and on all of it, and the rate is
that of the difference, so that the start of Ray Data and of the encoder actor, which does not grow, is left out.
"""

import argparse
import datetime
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cluster.session import ray_session
from jobs.config import RunConfig, load_config
from jobs.ingest import fill_memory
from jobs.memory import running_store
from jobs.prepared import prepare
from jobs.provenance import hardware, provenance
from jobs.worker import quiet_libraries
from refbert.teacher import load_teacher

GOAL = 0.8


def main() -> None:
    """Measure, print a table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer texts; ends within 3 minutes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    given = parser.parse_args()
    quiet_libraries()
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as home, ray_session():
        os.environ["REFBERT_HOME"] = home
        config = load_config(overrides=[f"corpus.max_texts={4000 if given.quick else 16000}"])
        rows = measure(config)
    write(rows, config, {"hardware": hardware(), **provenance(started_s)}, given.out)


def measure(config: RunConfig) -> dict[str, float]:
    """Return texts per second of the bare teacher (twice) and of the pipeline."""
    texts = prepare(config).table("train")["text"].to_pylist()[: 8 * config.ingest.batch]
    before = bare_teacher(config, texts)
    with running_store(config) as url:
        pipeline = pipeline_rate(config, url)
    after = bare_teacher(config, texts)
    return {"bare_teacher_before": before, "ingest": pipeline, "bare_teacher_after": after}


def bare_teacher(config: RunConfig, texts: list[str]) -> float:
    """Encode in batches of the same size as the pipeline's, with all cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    teacher = load_teacher(config.teacher)
    batch = config.ingest.batch
    teacher.encode_texts(texts[:batch])
    started_s = time.perf_counter()
    for start in range(0, len(texts), batch):
        teacher.encode_texts(texts[start : start + batch])
    return len(texts) / (time.perf_counter() - started_s)


def pipeline_rate(config: RunConfig, url: str) -> float:
    """Fill two empty memories, one with a quarter of the corpus; texts per second of what the larger has more."""
    texts_max = config.corpus.max_texts
    assert texts_max is not None
    taken: list[tuple[float, int]] = []
    for share, name in ((4, "quarter"), (1, "whole")):
        part = load_config(overrides=[f"corpus.max_texts={texts_max // share}", f"store.collection={name}"])
        corpus, teacher = prepare(part), load_teacher(part.teacher)
        started_s = time.perf_counter()
        counts = fill_memory(part, url, corpus, teacher)
        taken.append((time.perf_counter() - started_s, counts["written"]))
    (few_s, few), (many_s, many) = taken
    return (many - few) / (many_s - few_s)


def write(rows: dict[str, float], config: RunConfig, run: dict[str, Any], folder: Path) -> None:
    """Write json and Markdown, named by hardware and day."""
    bare = (rows["bare_teacher_before"] + rows["bare_teacher_after"]) / 2
    value = rows["ingest"] / bare
    goals = [
        {
            "name": "ingest_over_bare_teacher_minilm_32",
            "value": value,
            "goal": GOAL,
            "direction": ">=",
            "met": value >= GOAL,
        }
    ]
    result = {**run, "config": config.model_dump(mode="json"), "rows": rows, "goals": goals}
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"ingest_{os.cpu_count()}cpu_{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    (folder / f"{stem}.json").write_text(json.dumps(result, indent=2))
    lines = ["| | texts/s |", "|---|---|", *(f"| {name} | {rate:.1f} |" for name, rate in rows.items())]
    lines += ["", f"ingest / bare teacher = {value:.3f}, goal >= {GOAL}: {'met' if value >= GOAL else 'not met'}"]
    lines += ["", f"{run['hardware']}, commit {run['commit']}"]
    (folder / f"{stem}.md").write_text("# Ingest against the bare teacher\n\n" + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
