"""A distillation without Ray Train and DeepSpeed: the loop that one would write in plain PyTorch, run as a program.

    python benchmarks/measures/plain_loop.py RUN.yaml

Prints seconds per step as JSON, the mean of each window but the first. Same student, teacher, losses, optimizer and
threads as `jobs/distill.py`, reading no references; the texts in plain random order, not in batches of like length.
"""

import json
import os
import sys
import time

import torch

from jobs.config import RunConfig, load_config
from jobs.corpus.prepared import already_prepared
from jobs.run.worker import quiet_libraries
from jobs.training.loop import teacher_targets
from jobs.training.stream import DistillStream
from refbert.distillation import Distiller, new_student
from refbert.memory.manifest import manifest_of
from refbert.memory.texts import reference_texts
from refbert.optimisation import adamw, warmup_decay
from refbert.sampler import ShuffleSampler
from refbert.teacher import load_teacher


def train(config: RunConfig) -> list[float]:
    """Train, and return the mean seconds per step of each window."""
    options = config.train
    torch.set_num_threads(options.threads_per_worker or os.cpu_count() or 1)
    teacher = load_teacher(config.teacher)
    distiller = Distiller(new_student(config.student, teacher, config.seed), config.loss).train()
    optimizer = adamw(distiller, options.learning_rate, options.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_decay(step, options.steps, options.warmup_fraction)
    )
    corpus = already_prepared(config)
    assert corpus is not None  # the benchmark has prepared it
    texts = reference_texts(teacher, manifest_of(teacher, config.references), config.references)
    passages = corpus.table("train")
    order = ShuffleSampler(passages.num_rows, options.micro_batch, config.seed)
    stream = DistillStream(
        passages, order, texts, None, None, rank=0, world_size=1, prefetch=options.prefetch, dropout=0.0
    )
    windows: list[float] = []
    started_s = time.perf_counter()
    for step in range(options.steps):
        batch, _ = next(stream)
        loss, _ = distiller(batch, teacher_targets(teacher, batch, config.loss, config.student.num_hidden_layers))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(distiller.parameters(), options.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % options.log_every == 0:
            windows.append((time.perf_counter() - started_s) / options.log_every)
            started_s = time.perf_counter()
    stream.close()
    return windows[1:]


if __name__ == "__main__":
    quiet_libraries()
    print(json.dumps(train(load_config(sys.argv[1]))))
