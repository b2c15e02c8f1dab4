"""The service of an adapted student with references beside the same student's without: rate under load, and latency.

One service after the other within each turn, so that none takes the machine from another.
"""

import shutil
import statistics
import urllib.request
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from jobs.config import load_config
from jobs.run.session import ray_session
from jobs.serve import served
from measures.goals import Goal, Part, Rows, in_turns
from measures.points import load_snippets
from measures.service import BATCH, CLIENTS, DEADLINE_S, http_load, rate
from refbert.folder import CORRECTION
from vector_store.server.process import embedded_server

WITHOUT, STORE, REPLICA = "the student alone", "with references of a store", "with references of a replica"
TURNS, SECONDS = 3, 8.0
QUICK_SECONDS = 2.0
SATURATED = CLIENTS[1:]

NOTE = (
    f"Snippets, none of them stored; batches of {BATCH}, and single texts of one client. Clients, service and store share the "
    "machine's cores. Alone: the student's folder without its correction. Rates and latencies are medians over turns, a ratio "
    "is the median over turns; saturation is the better of 8 and 64 clients. Each service is warmed up before it is measured."
)


def measure(quick: bool, folder: Path, adapted: Path, store: str) -> Part:
    """Serve a student in its three forms, in turns, and load each."""
    turns, seconds = (1, QUICK_SECONDS) if quick else (TURNS, SECONDS)
    alone = folder / "alone"
    shutil.copytree(adapted, alone, ignore=shutil.ignore_patterns(CORRECTION))
    texts = [one.row.text for one in load_snippets().heldout]
    found: dict[str, list[dict[str, Any]]] = {WITHOUT: [], STORE: [], REPLICA: []}
    rungs: dict[str, Counter[str]] = {name: Counter() for name in found}
    with ray_session(), embedded_server(Path(store)) as url:
        config = load_config(overrides=[f"store.url={url}", "name=measured"])
        services: dict[str, dict[str, Any]] = {
            WITHOUT: {"student": str(alone)},
            STORE: {"student": str(adapted)},
            REPLICA: {"student": str(adapted), "replica_rows": 10**9},
        }

        def serve_and_load(name: str, turn: int) -> None:
            options = services[name] | {"port": 0, "deadline_s": DEADLINE_S}
            with served(config.model_copy(update={"serve": config.serve.model_copy(update=options)})) as address:
                found[name].append(loaded(address, texts, seconds))
                rungs[name].update(answered(address))
            print(turn, name, found[name][-1], dict(rungs[name]), flush=True)

        in_turns({name: partial(serve_and_load, name) for name in found}, turns)
    rows: Rows = [
        {
            "contender": name,
            **{column: statistics.median(one[column] for one in some) for column in some[0]},
            "rate of alone": ratio(found, name, "texts_per_s"),
            "p99 of alone": ratio(found, name, "p99_ms"),
        }
        for name, some in found.items()
    ]
    goals = [
        Goal("reading_service_rate_by_replica_over_alone", ratio(found, REPLICA, "texts_per_s"), 0.85, ">="),
        Goal("reading_service_rate_by_store_over_alone", ratio(found, STORE, "texts_per_s"), 0.55, ">="),
        Goal("reading_service_p99_by_replica_over_alone", ratio(found, REPLICA, "p99_ms"), 1.2, "<="),
    ]
    return Part(rows, goals, NOTE, {"turns": turns, "seconds": seconds, "rungs": rungs})


def loaded(address: str, texts: list[str], seconds: float) -> dict[str, float]:
    """Load a service with batches by many clients, then with single texts by one."""
    http_load(address, texts, CLIENTS[1], BATCH, seconds)
    rates = [BATCH * rate(http_load(address, texts, clients, BATCH, seconds)) for clients in SATURATED]
    single = 1000 * np.array(http_load(address, texts, 1, 1, seconds)["took_s"])
    return {
        "texts_per_s": max(rates),
        "p50_ms": float(np.median(single)),
        "p99_ms": float(np.percentile(single, 99)),
    }


def answered(address: str) -> Counter[str]:
    """How many texts each rung of the ladder has answered."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=DEADLINE_S) as response:
        families = {family.name: family for family in text_string_to_metric_families(response.read().decode())}
    found: Counter[str] = Counter()
    for sample in families["refbert_references"].samples:
        if sample.name.endswith("_total"):
            found[sample.labels["rung"]] += int(sample.value)
    return found


def ratio(found: Mapping[str, list[dict[str, Any]]], name: str, column: str) -> float:
    """Median over turns of a service's figure over that of the student alone."""
    return statistics.median(
        one[column] / other[column] for one, other in zip(found[name], found[WITHOUT], strict=True)
    )
