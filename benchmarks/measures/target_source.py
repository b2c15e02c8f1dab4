"""What a training step gains where the memory's states teach instead of a teacher that runs in the worker.

Both read one reference a text by the jobs' own stream; with targets from the memory it also fetches the text's own states.
"""

import os
from contextlib import ExitStack
from pathlib import Path

import torch

from jobs.config import RunConfig
from jobs.corpus.prepared import PreparedCorpus, prepare
from jobs.memory.fill import fill_memory
from jobs.memory.store import running_store
from jobs.run.session import ray_session
from measures.distilling import BATCH, TOKENS, training_config
from measures.engine_blocks import STEP_NOTE, EngineBlocks, alone, engine_blocks, single_worker_stream
from measures.goals import Part, Rows, median_ratio
from measures.ingest import bert_base
from refbert.teacher import Teacher, load_teacher
from vector_store.server.process import embedded_server

TEACHER, MEMORY = "teacher", "memory"

NOTE = (
    f"One engine, micro-batches of {BATCH} texts of {TOKENS} tokens, one reference each, read live by a student of the default "
    f"shape. {STEP_NOTE} Speed-up: median over rounds of the ratio of the blocks' times. Relative error: mean square of what "
    "float16 takes from the states that are learned, over their variance. BERT-base: random weights."
)


def measure(quick: bool, folder: Path) -> Part:
    """Measure the packaged teacher, and one of BERT-base's size."""
    os.environ["REFBERT_HOME"] = str(folder)
    folder.mkdir(parents=True)
    num_texts, rounds = (100, 2) if quick else (800, 10)
    teachers = {"MiniLM": [], "BERT-base": [f"teacher.model={bert_base(folder / 'bert-base')}"]}
    prepared = {}
    with ray_session():
        for name, options in teachers.items():
            options = [*options, f"corpus.max_texts={num_texts}", f"store.collection={name}"]
            config = training_config(folder, name, 12, options)
            corpus, teacher = prepare(config), load_teacher(config.teacher)
            with running_store(config) as url:
                fill_memory(config, url, corpus, teacher)
            prepared[name] = config, corpus, teacher
    rows: Rows = []
    with alone():
        for name, (config, corpus, teacher) in prepared.items():
            timed, error = in_blocks(config, corpus, teacher, rounds)
            rows += [{"teacher": name, "targets": source, **timed.row(source)} for source in (TEACHER, MEMORY)]
            speed_up = median_ratio(timed.blocks[TEACHER], timed.blocks[MEMORY])
            rows[-1] |= {"speed_up": speed_up, "relative_error": error}
    return Part(rows, [], NOTE, {name: config.model_dump(mode="json") for name, (config, _, _) in prepared.items()})


def in_blocks(
    config: RunConfig, corpus: PreparedCorpus, teacher: Teacher, rounds: int, steps: int = 2
) -> tuple[EngineBlocks, float]:
    """Train blocks in turns after one of each to warm up; also the relative error of the stored states of one batch."""
    stored = config.model_copy(update={"train": config.train.model_copy(update={"targets": "memory"})})
    with embedded_server(config.store_directory) as url, ExitStack() as stack:
        streams = {
            TEACHER: stack.enter_context(single_worker_stream(config, url, corpus, teacher)),
            MEMORY: stack.enter_context(single_worker_stream(stored, url, corpus, teacher)),
        }
        timed = engine_blocks(config, teacher, (TEACHER, MEMORY))
        feeds = {name: lambda first, stream=stream: stream for name, stream in streams.items()}
        timed.run(feeds, steps, 1)
        timed.run(feeds, steps, rounds)
        batch, learned = streams[MEMORY].make(0)
        assert learned is not None
        wanted = teacher.encode(batch.input_ids, batch.mask).states[batch.mask.bool()]
        found = learned.layers[-1][batch.mask.bool()]
        error = torch.mean((found - wanted).square()) / wanted.var()
    return timed, float(error)
