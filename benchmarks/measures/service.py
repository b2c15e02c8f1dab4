"""Throughput and latency of the service beside the student in a bare loop, its cold start, and its memory over time.

Serves a trained run under $REFBERT_HOME. The clients are a process apart, on the same machine.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.config import RunConfig
from jobs.corpus.prepared import prepare, texts_in
from jobs.memory.student_memory import memory_of, open_reader, student_run
from jobs.run.session import ray_session
from jobs.run.worker import set_up_worker
from jobs.serve import served
from measures.goals import Goal, Part, Rows
from refbert.passages import Text, normalise

BATCH = 32
CLIENTS = (1, 8, 64)
MOST_TEXTS = 4096
BARE = "student and look-up, bare loop"

DEADLINE_S = 60.0
"""Deadline of a request: 64 clients with 32 texts each wait longer for each other than the default allows."""

NOTE = (
    "Held-out texts of the run, each client without a pause; clients, service, store and, in turn with them, the bare loop "
    f"share the machine. Bare loop: tokenize, look up and forward batches of {BATCH} one after the other in this process, its "
    "own cache warm as the service's is, with all cores and with one less: a ratio takes the better of both in its turn. "
    "Contenders take turns; rates and latencies over all turns, a ratio is the median over turns. Saturation: the better of 8 "
    "and 64 clients."
)


def measure(config: RunConfig, quick: bool) -> Part:
    """Measure throughput at each number of clients for single texts and batches, in turn with the bare loop."""
    seconds, turns = (2.0, 1) if quick else (10.0, 5)
    texts = list(some_texts(config))
    loads = [(clients, size) for size in (1, BATCH) for clients in CLIENTS]
    taken: dict[tuple[int, int], list[dict[str, Any]]] = {load: [] for load in loads}
    cores = os.cpu_count() or 1
    bare: dict[int, list[float]] = {threads: [] for threads in dict.fromkeys((cores, max(1, cores - 1)))}
    with running(config) as (address, start_s, bare_loop):
        for size in (1, BATCH):  # warm up caches and connections
            http_load(address, texts, 8, size, seconds)
        bare_loop(texts, seconds, cores)
        for turn in range(turns):
            for threads, rates in bare.items():
                rates.append(bare_loop(texts, seconds, threads))
            for load in loads if turn % 2 == 0 else reversed(loads):
                taken[load].append(http_load(address, texts, *load, seconds))
    rows: Rows = [
        {
            "contender": f"{BARE}, {threads} threads",
            "clients": None,
            "texts_per_request": BATCH,
            "texts_per_s": statistics.median(rates),
        }
        for threads, rates in bare.items()
    ]
    best = list(map(max, zip(*bare.values(), strict=True)))
    rows += [row("service", clients, size, taken[clients, size]) for clients, size in loads]
    ratios = {
        size: max(
            statistics.median(rate(one) * size / loop for one, loop in zip(taken[clients, size], best, strict=True))
            for clients in CLIENTS[1:]
        )
        for size in (1, BATCH)
    }
    goals = [
        Goal("serve_batches_of_32_over_bare_loop", ratios[BATCH], 0.8, ">="),
        Goal("serve_single_texts_over_bare_loop", ratios[1], 0.3, ">="),
    ]
    note = f"{NOTE} Cold start, from `serve.start` to the first answer: {start_s:.1f} s."
    options = {"run": config.name, "quick": quick, "seconds": seconds, "turns": turns, "cold_start_s": start_s}
    return Part(rows, goals, note, {**options, "serve": config.serve.model_dump()})


def soak(config: RunConfig, quick: bool) -> Part:
    """Measure resident memory of the replica and the proxy over ten minutes of steady load; the first minute is warm-up."""
    seconds, every_s = (12.0, 2.0) if quick else (600.0, 15.0)
    texts = list(some_texts(config))
    rows: Rows = []
    with running(config) as (address, _, _):
        for _ in range(round(seconds / every_s)):
            load = http_load(address, texts, 8, 8, every_s)
            rows.append({"seconds": len(rows) * every_s + every_s, **resident_mib(), "texts_per_s": 8 * rate(load)})
    sums = [line["replica_mib"] + line["proxy_mib"] for line in rows]
    warm, end = sums[len(sums) // 10 : len(sums) // 5], sums[-max(1, len(sums) // 10) :]
    growth = statistics.median(end) / statistics.median(warm or sums[:1]) - 1
    goals = [] if quick else [Goal("serve_memory_growth_10_minutes", growth, 0.05, "<=")]
    note = f"8 clients, 8 texts per request. Growth, {100 * growth:.1f} %: the last tenth's median over the second tenth's."
    return Part(rows, goals, note, {"run": config.name, "quick": quick, "seconds": seconds})


# ---------------------------------------------------------------- contenders


@contextmanager
def running(config: RunConfig) -> Iterator[tuple[str, float, Callable[[list[Text], float, int], float]]]:
    """Yield the address, the seconds of the start, and the bare loop: (texts, seconds, threads) to texts per second."""
    config = config.model_copy(update={"serve": config.serve.model_copy(update={"port": 0, "deadline_s": DEADLINE_S})})
    config, folder = student_run(config, None)
    with ray_session(), memory_of(config, folder) as url:
        reader = open_reader(config, folder, url, set_up_worker(1, 0))
        started_s = time.monotonic()
        with served(config) as address:
            http_load(address, ["a first text"], 1, 1, 0.01)
            start_s = time.monotonic() - started_s

            def bare_loop(texts: list[Text], seconds: float, threads: int) -> float:
                torch.set_num_threads(threads)
                count, began_s = 0, time.perf_counter()
                while time.perf_counter() - began_s < seconds:
                    start = count % (len(texts) - BATCH + 1)
                    batch: list[Text] = [normalise(text) for text in texts[start : start + BATCH]]
                    tokens = reader.tokenize(batch)
                    output = reader.forward(tokens, reader.look_up(batch, tokens), output_projected_states=False)
                    torch.nn.functional.normalize(output.sentence_embedding, dim=-1).numpy()
                    count += BATCH
                return count / (time.perf_counter() - began_s)

            yield address, start_s, bare_loop


def http_load(
    address: str,
    texts: Sequence[Text],
    clients: int,
    per_request: int,
    seconds: float,
    path: str = "/v1/embeddings",
    model: str = "any",
) -> dict[str, Any]:
    """Return the seconds of each request, and of all of them."""
    load = {"address": address, "path": path, "texts": texts, "clients": clients, "per_request": per_request}
    load |= {"seconds": seconds, "model": model}
    command = [sys.executable, str(Path(__file__).with_name("http_load.py"))]
    done = subprocess.run(command, input=json.dumps(load), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the load on {address} failed: {done.stderr[-500:]}")
    return json.loads(done.stdout)


def rate(load: dict[str, Any]) -> float:
    """Return requests per second."""
    return len(load["took_s"]) / load["seconds"]


def row(contender: str, clients: int, size: int, loads: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one line of the table, over all turns."""
    took_ms = 1000 * np.concatenate([load["took_s"] for load in loads])
    requests_per_s = statistics.median(map(rate, loads))
    return {
        "contender": contender,
        "clients": clients,
        "texts_per_request": size,
        "texts_per_s": requests_per_s * size,
        "requests_per_s": requests_per_s,
        **{f"p{share}_ms": float(np.percentile(took_ms, share)) for share in (50, 95, 99)},
    }


def some_texts(config: RunConfig) -> Iterator[Text]:
    """Yield held-out texts of the run's corpus, then stored ones, up to MOST_TEXTS."""
    corpus = prepare(config)
    count = 0
    for name in ("heldout", "train"):
        for text in texts_in(corpus.table(name)):
            if count < MOST_TEXTS:
                count += 1
                yield text


def resident_mib() -> dict[str, float]:
    """Return the resident memory of the service's processes, by role."""
    found = {"replica_mib": 0.0, "proxy_mib": 0.0}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            pages = int((process / "statm").read_text().split()[1])
        except OSError:
            continue
        for role, name in (("replica_mib", b"ray::ServeReplica"), ("proxy_mib", b"ray::ProxyActor")):
            if command.startswith(name):
                found[role] += pages * 4096 / 2**20
    return found
