"""Ingest and distillation at 10 million and a billion references on 8, 64 and 512 GPUs: time, cost, network, disk, RAM.

    python benchmarks/scale.py [--quick] [--out DIR] [--only PART ...] [--rates RESULTS.json] [--assume NAME=VALUE,...]

A simulation. Parts: rates, measured here stage by stage (or read from an earlier result); check, what the rates predict of a
small real ingest and distillation on this machine over what these then reach; cluster, the estimates, with every assumption
as a line. `--assume gpu_usd_per_h=2,passes=3` changes assumptions.
"""

import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import matplotlib
from measures.distilling import BATCH, give_equal_priority, run_job, training_config
from measures.goals import Part, Rows, arguments, write_results
from measures.ingest import ingest_rate
from measures.simulation import Assumptions, Estimate, distil, ingest
from measures.stage_rates import Rates, measure_rates

from jobs.config import RunConfig
from jobs.corpus.prepared import prepare
from jobs.memory.fill import fill_memory
from jobs.memory.store import running_store
from jobs.run.session import ray_session
from jobs.run.worker import quiet_libraries
from refbert.teacher import load_teacher

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PARTS = ("rates", "check", "cluster")
REFERENCES = (1e7, 1e9)
GPUS = (8, 64, 512)

RATES_NOTE = (
    "Per text of 128 tokens: core_s, seconds of one core; machine_s, of all cores together; bytes; FLOP. Teacher "
    "all-MiniLM-L6-v2, student 4 x 312."
)
CHECK_NOTE = (
    "Texts per second on this machine: predicted from the rates alone, and reached by jobs/ingest.py's stages (what many texts "
    "take more than few) and by jobs/distill.py (median of windows of steps), with Ray, DeepSpeed and the embedded store."
)
CLUSTER_NOTE = (
    "Simulated, not measured. Stages overlap; the narrowest resource decides. Network: bytes that leave a node, copies "
    "included. Disk and RAM: the store's, all copies. Assumptions (see benchmarks/measures/simulation.py for the reasons): "
)


def main() -> None:
    """Measure, check, simulate, draw."""
    given = arguments(
        __doc__ or "",
        PARTS,
        {"--rates": "json of an earlier run, whose rates are taken", "--assume": "assumptions to change"},
    )
    quiet_libraries()
    give_equal_priority()
    assumptions = assumed(given.assume)
    started_s = time.monotonic()
    parts: dict[str, Part] = {}
    estimates: list[Estimate] = []
    with tempfile.TemporaryDirectory() as folder:
        rates, config = read_or_measure(given, Path(folder) / "scale")
        if "rates" in given.only:
            rows = [{"rate": name, "value": value} for name, value in rates.as_dict().items()]
            parts["rates"] = Part(rows, [], RATES_NOTE, config.model_dump(mode="json"))
        if "check" in given.only:
            parts["check"] = check(rates, config, given.quick, Path(folder) / "scale")
            print(f"check: done after {time.monotonic() - started_s:.0f} s", file=sys.stderr)
    if "cluster" in given.only:
        estimates = [
            job(rates, assumptions, num, gpus) for job in (ingest, distil) for num in REFERENCES for gpus in GPUS
        ]
        note = CLUSTER_NOTE + ", ".join(f"{name} {value:g}" for name, value in assumptions.as_dict().items()) + "."
        parts["cluster"] = Part([estimate.row() for estimate in estimates], [], note, assumptions.as_dict())
    stem = write_results("scale: a simulation from measured rates", given, started_s, parts, PARTS)
    if estimates:
        draw(estimates, stem.with_name(f"{stem.name}.png"))


def assumed(changes: str | None) -> Assumptions:
    """The assumptions with these changes; exits with the known names for one that is not there."""
    found: dict[str, Any] = {}
    for change in (changes or "").split(","):
        name, _, value = change.partition("=")
        if not name:
            continue
        if name not in Assumptions().as_dict():
            sys.exit(f"--assume {name}: no such assumption; known are {', '.join(Assumptions().as_dict())}")
        found[name] = float(value)
    return dataclasses.replace(Assumptions(), **found)


def read_or_measure(given: Namespace, folder: Path) -> tuple[Rates, RunConfig]:
    """The rates of an earlier result, or of this machine; and the config of the small runs."""
    config = training_config(
        folder, "scale", 16 if given.quick else 48, [f"corpus.max_texts={256 if given.quick else 2000}"]
    )
    if given.rates:
        found = json.loads(Path(given.rates).read_text())["rows"]["rates"]
        return Rates(**{row["rate"]: row["value"] for row in found}), config
    os.environ["REFBERT_HOME"] = str(folder)
    with ray_session():
        corpus = prepare(config)
    return measure_rates(config, corpus, load_teacher(config.teacher), folder, 128 if given.quick else 1024), config


def check(rates: Rates, config: RunConfig, quick: bool, folder: Path) -> Part:
    """Run both jobs small, and compare with what the rates say."""
    sizes = (64, 256) if quick else (256, 2000)
    few, many = (
        config.model_copy(
            update={
                "corpus": config.corpus.model_copy(update={"max_texts": size}),
                "store": config.store.model_copy(update={"collection": f"scale-{size}"}),
                "ingest": config.ingest.model_copy(update={"batch": BATCH}),
            }
        )
        for size in sizes
    )
    teacher = load_teacher(config.teacher)
    os.environ["REFBERT_HOME"] = str(folder)
    with ray_session(), running_store(config) as url:
        ingested = ingest_rate(few, many, url, teacher)
        fill_memory(config, url, prepare(config), teacher)
    trained = BATCH / statistics.median(run_job(config, folder).seconds)
    rows: Rows = [
        {"job": job, "predicted": predicted, "measured": measured, "predicted_over_measured": predicted / measured}
        for job, predicted, measured in (
            ("ingest", rates.ingest_texts_per_s, ingested),
            ("distil", rates.distil_texts_per_s, trained),
        )
    ]
    return Part(rows, [], CHECK_NOTE, {"texts": sizes, "steps": config.train.steps})


def draw(estimates: list[Estimate], path: Path) -> None:
    """Hours and cost over GPUs, a line per job and size."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, value, label in zip(axes, ("hours", "usd"), ("hours", "US dollars"), strict=True):
        for job in ("ingest", "distil"):
            for references in REFERENCES:
                line = [each for each in estimates if (each.job, each.references) == (job, references)]
                axis.plot(
                    [each.gpus for each in line],
                    [getattr(each, value) for each in line],
                    marker="o",
                    linestyle="-" if job == "ingest" else "--",
                    label=f"{job}, {references / 1e6:g} M",
                )
        axis.set(xscale="log", yscale="log", xlabel="GPUs", ylabel=label, xticks=GPUS, xticklabels=GPUS)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"drawn: {path}")


if __name__ == "__main__":
    main()
