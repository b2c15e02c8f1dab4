"""Whether look-ups hide behind the step: the same student trained on live look-ups, and on the same references from RAM.

Live: the jobs' own stream over gRPC from an embedded server, prefetching in its threads, with the default cache. RAM:
finished micro-batches, tokens and references in tensors. No Ray runs meanwhile, but in the last row, which is a whole job.
"""

import os
import statistics
from contextlib import ExitStack
from pathlib import Path

from jobs.config import RunConfig
from jobs.corpus.prepared import PreparedCorpus, prepare
from jobs.memory.fill import fill_memory
from jobs.memory.store import running_store
from jobs.run.session import ray_session
from measures.distilling import BATCH, TOKENS, run_job, training_config
from measures.engine_blocks import STEP_NOTE, EngineBlocks, alone, engine_blocks, single_worker_stream
from measures.goals import Goal, Part, Rows, median_ratio
from refbert.teacher import Teacher, load_teacher
from vector_store.server.process import embedded_server

LIVE, RAM = "live", "RAM"

NOTE = (
    f"One engine, micro-batches of {BATCH} texts of {TOKENS} tokens, one reference each, teacher targets. {STEP_NOTE} The goal "
    "on steps takes the median over rounds of the blocks' ratio; the job's row is `jobs/distill.py`, whose own "
    "`data_wait_fraction` is the other goal."
)


def measure(quick: bool, folder: Path) -> Part:
    """Fill a memory, let both take turns, then run the whole job."""
    steps, rounds = 2, 3 if quick else 48
    os.environ["REFBERT_HOME"] = str(folder)
    options = [f"corpus.max_texts={200 if quick else 3000}"]
    config = training_config(folder, "live", 12 if quick else 60, options)
    if not config.reads_references:
        raise RuntimeError("this student reads no references: there are no look-ups to hide")
    teacher = load_teacher(config.teacher)
    with ray_session():
        corpus = prepare(config)
        with running_store(config) as url:
            fill_memory(config, url, corpus, teacher)
    timed, wait_fraction = in_blocks(config, corpus, teacher, steps, rounds)
    rows: Rows = [{"references": name, **timed.row(name)} for name in (RAM, LIVE)]
    ratio = median_ratio(timed.blocks[LIVE], timed.blocks[RAM])
    cpu_ratio = sum(timed.cpu_s[LIVE]) / sum(timed.cpu_s[RAM])
    job = run_job(config, folder)
    rows += [
        {"references": "live over RAM", "step_ms": ratio, "own_cpu_ms": cpu_ratio},
        {
            "references": "live, whole job",
            "step_ms": 1000 * statistics.median(job.seconds),
            "wait_fraction": job.wait_fraction,
        },
    ]
    rows[1]["wait_fraction"] = wait_fraction
    goals = [
        Goal("live_references_step_over_ram", ratio, 1.05, "<="),
        Goal("data_wait_fraction", job.wait_fraction, 0.02, "<="),
    ]
    return Part(rows, goals, NOTE, config.model_dump(mode="json"))


def in_blocks(
    config: RunConfig, corpus: PreparedCorpus, teacher: Teacher, steps: int, rounds: int
) -> tuple[EngineBlocks, float]:
    """Train blocks in turns after one of each to warm up; also the share of the live blocks that data was waited for."""
    with embedded_server(config.store_directory) as url, alone(), ExitStack() as stack:
        live = stack.enter_context(single_worker_stream(config, url, corpus, teacher))
        copied = stack.enter_context(single_worker_stream(config, url, corpus, teacher))
        timed = engine_blocks(config, teacher, (LIVE, RAM))
        feeds = {
            LIVE: lambda first: live,
            RAM: lambda first: iter([copied.make(number) for number in range(first, first + steps)]),
        }
        timed.run(feeds, steps, 1)
        waited_s = live.wait_s
        timed.run(feeds, steps, rounds)
        return timed, (live.wait_s - waited_s) / (steps * sum(timed.blocks[LIVE]))
