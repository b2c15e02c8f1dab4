"""Distil a student while it reads references from the memory.

    python jobs/distill.py                                    the quickstart, on this machine
    python jobs/distill.py RUN.yaml train.steps=2000 train.num_workers=2
    ray job submit -- python jobs/distill.py RUN.yaml         the same on a running cluster

Fills the memory first where it lacks the corpus. Writes the run's directory: config.yaml, metrics.jsonl, TensorBoard
events, checkpoints/, student/ and, last, manifest.json. Submitted again it resumes from the newest checkpoint, on as many
workers and with the ZeRO stage that this submission asks for, or says that the run is complete.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution import context as ray_train_context
from safetensors.numpy import save_file

from jobs.checkpoint import Checkpoint, consolidated, make_moments, write_checkpoint
from jobs.config import RunConfig
from jobs.ingest import fill_memory
from jobs.launch import launch
from jobs.load_progress import is_filled
from jobs.memory import (
    SENTENCE_TABLE,
    MemoryAddress,
    ReferenceTexts,
    connect_store,
    manifest_of,
    open_retriever,
    patient_store,
    reference_id,
    reference_texts,
    running_store,
)
from jobs.meter import METRICS, Meter, Progress, followed_metrics
from jobs.neighbour_plan import NeighbourPlan, neighbour_plan
from jobs.prepared import PreparedCorpus, chunked, prepare, texts_in
from jobs.run_directory import claim_directory, is_complete, sole_training, write_manifest
from jobs.stream import DistillStream, Order
from jobs.worker import set_up_worker
from refbert.attention import QKV
from refbert.distillation import DistillBatch, Distiller, Targets, check_losses, new_student
from refbert.errors import InputError
from refbert.optimisation import adamw, warmup_decay
from refbert.teacher import Teacher, load_teacher
from vector_store.schema import Manifest
from vector_store.store import Store

log = logging.getLogger(__name__)

IDS_PER_CHECK = 1024


@dataclass(frozen=True)
class DistillJob:
    """What every worker of one training needs."""

    config: RunConfig
    address: MemoryAddress | None
    corpus: PreparedCorpus
    plan: Path | None
    run_directory: Path


def run(config: RunConfig) -> None:
    """Fill the memory where needed, and train."""
    if is_complete(config):
        log.info("run %r is complete: %s; give another name=... to train anew", config.name, config.run_directory)
        return
    with ExitStack() as stack:
        corpus = prepare(config)
        teacher = load_teacher(config.teacher)
        check_losses(config.loss, config.student, teacher)
        address = plan = None
        if needs_memory(config):
            url = stack.enter_context(running_store(config))
            address = MemoryAddress(url, filled_memory(config, url, corpus, teacher))
            if config.references.plan and reads_references(config):
                texts = reference_texts(teacher, address.manifest, config.references)
                plan = neighbour_plan(config, address, corpus, texts)
        distil(config, corpus, address, plan)


def reads_references(config: RunConfig) -> bool:
    """Whether the student reads any reference."""
    return config.references.criterion != "none" and config.student.reference_mode != "none"


def needs_memory(config: RunConfig) -> bool:
    """Whether training reads anything from the store."""
    return reads_references(config) or config.train.targets == "memory"


def filled_memory(config: RunConfig, url: str, corpus: PreparedCorpus, teacher: Teacher) -> Manifest:
    """Ingest where the memory lacks any passage of the corpus; returns the memory's manifest.

    Another teacher's memory is refused.
    """
    wanted = manifest_of(teacher, config.references)
    with connect_store(config, url) as client:
        store = Store(client, config.store)
        if lacks_any(store, wanted, corpus):
            log.info("the memory lacks some of the corpus: filling it first")
            fill_memory(config, url, corpus, teacher)
        return store.require(wanted)


def lacks_any(store: Store, wanted: Manifest, corpus: PreparedCorpus) -> bool:
    """Whether the memory lacks any passage of the corpus."""
    if not store.exists():
        return True
    store.require(wanted)
    if is_filled(store, corpus):
        return False
    texts = texts_in(corpus.table("train"), corpus.distinct_rows())
    ids = (reference_id(wanted.fingerprint, text) for text in texts)
    return any(len(store.existing(some)) < len(some) for some in chunked(ids, IDS_PER_CHECK))


def distil(config: RunConfig, corpus: PreparedCorpus, address: MemoryAddress | None, plan: Path | None) -> None:
    """Train on Ray, from the newest checkpoint if there is one, and leave a complete run directory."""
    directory = config.run_directory
    claim_directory(config)
    train = config.train
    # Apart, because mypy sees the RunConfig of Train V1, which does not know it.
    options: dict[str, Any] = {"logging_config": LoggingConfig(log_level="ERROR")}
    storage = ray.train.RunConfig(
        name="checkpoints",
        storage_path=str(directory),
        checkpoint_config=CheckpointConfig(num_to_keep=train.keep_checkpoints),
        failure_config=FailureConfig(max_failures=0),
        **options,
    )
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": DistillJob(config, address, corpus, plan, directory)},
        scaling_config=ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=train.gpus_per_worker > 0,
            resources_per_worker={"GPU": train.gpus_per_worker} if train.gpus_per_worker else {"CPU": 1},
        ),
        torch_config=TorchConfig(backend="nccl" if train.gpus_per_worker else "gloo"),
        run_config=storage,
    )
    have = ray.cluster_resources()
    if have.get("CPU", 0) < train.num_workers or have.get("GPU", 0) < train.num_workers * train.gpus_per_worker:
        log.warning(
            "training waits: %d workers x (1 CPU or %g GPU) wanted, the cluster has %g CPU and %g GPU",
            train.num_workers, train.gpus_per_worker, have.get("CPU", 0), have.get("GPU", 0),
        )  # fmt: skip
    with sole_training(directory), followed_metrics(directory / METRICS, train.steps):
        result = trainer.fit()
    assert result.metrics is not None  # the last step reports, always
    write_manifest(config, result.metrics)


def train_worker(loop_config: dict[str, Any]) -> None:
    """Run one worker of the training: its share of every step, until the last."""
    job: DistillJob = loop_config["job"]
    config, train = job.config, job.config.train
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = set_up_worker(context.get_local_world_size(), train.gpus_per_worker, train.threads_per_worker)
    ray_train_context.logger.setLevel(logging.WARNING)  # one line per report, whatever the logging config says

    with ExitStack() as stack:
        teacher: Teacher | None = load_teacher(config.teacher, device)
        assert teacher is not None
        reference_dim = job.address.manifest.dim if job.address else None
        student = new_student(config.student, teacher, config.seed, reference_dim)
        distiller = Distiller(student, config.loss, autocast=train.precision == "autocast")
        stream = stack.enter_context(opened_stream(job, teacher, rank, world_size))
        if train.targets == "memory":
            teacher = None  # its weights are no longer needed
        engine, progress_made = started(distiller, stream, job)
        meter = stack.enter_context(Meter(train, job.run_directory, progress_made, rank, device))
        micro_batches = train.global_batch // train.micro_batch

        while meter.step < train.steps:
            for index in range(train.accumulation):
                number = meter.step * micro_batches + index * world_size + rank
                batch = next(stream).to(device)
                targets = targets_of(batch, teacher, config)
                torch.manual_seed(config.seed * 1_000_003 + number)  # dropout too is the same on any number of workers
                loss, parts = engine(batch, targets)
                engine.backward(loss)
                engine.step()  # updates weights at the accumulation boundary
                meter.add(loss, parts, stream)
            meter.finish_step(engine)
            if meter.step % train.save_every == 0 and meter.step < train.steps:
                save(engine, stream, meter, job.corpus)
        write_student(engine, stream.texts, job, rank)
        save(engine, stream, meter, job.corpus)


@contextmanager
def opened_stream(job: DistillJob, teacher: Teacher, rank: int, world_size: int) -> Iterator[DistillStream]:
    """Open this worker's stream, with its own client of the store."""
    config = job.config
    with ExitStack() as stack:
        manifest = job.address.manifest if job.address else manifest_of(teacher, config.references)
        texts = reference_texts(teacher, manifest, config.references)
        source = targets = None
        if job.address:
            client = stack.enter_context(connect_store(config, job.address.url, rank))
            criterion = config.references.criterion if reads_references(config) else "none"
            source = open_retriever(client, patient_store(config), texts, criterion)
            targets = Store(client, config.store) if config.train.targets == "memory" else None
        passages = job.corpus.table("train")
        stream = DistillStream(
            passages,
            Order(passages.num_rows, config.train.micro_batch, config.seed),
            texts,
            source,
            targets,
            NeighbourPlan(job.plan) if job.plan else None,
            rank=rank,
            world_size=world_size,
            prefetch=config.train.prefetch,
            dropout=config.references.dropout,
        )
        stack.callback(stream.close)
        yield stream


def targets_of(batch: DistillBatch, teacher: Teacher | None, config: RunConfig) -> Targets:
    """Take the teacher's states from the batch where the memory brought them, else ask the teacher."""
    if batch.target_states is not None:
        return batch.stored_targets()
    assert teacher is not None
    loss = config.loss
    encoding = teacher.encode(
        batch.input_ids,
        batch.mask,
        loss.needs_every_layer,
        batch.token_type_ids,
        score_layers=loss.teacher_layers(config.student.layers, teacher.num_layers) if loss.attention else (),
        qkv_layer=(loss.relation_layer or teacher.num_layers) if loss.relates_qkv else None,
    )
    # inference_mode tensors cannot be saved for backward; a clone is an ordinary one
    return Targets(
        layers=tuple(layer.clone() for layer in encoding.layers),
        mask=batch.mask,
        logits=None if encoding.logits is None else encoding.logits.clone(),
        attention_scores=encoding.attention_scores and tuple(scores.clone() for scores in encoding.attention_scores),
        qkv=encoding.qkv and QKV(*(x.clone() for x in encoding.qkv)),
    )


def build_engine(distiller: Distiller, config: RunConfig, step: int = 0) -> Any:
    """Wrap the model in DeepSpeed: AdamW, linear warm-up and linear decay, ZeRO stage and precision of the config.

    `step` steps have been made already.
    """
    if not config.train.gpus_per_worker:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read at DeepSpeed's import
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # Its start-up would compile a shared-memory all-reduce for CPUs; gloo needs none, and no C++ compiler is asked for.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    train = config.train
    optimizer = adamw(distiller, train.learning_rate, train.weight_decay)
    engine, *_ = deepspeed.initialize(
        model=distiller,
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda later: warmup_decay(step + later, train.steps, train.warmup_fraction)
        ),
        config={
            "train_micro_batch_size_per_gpu": train.micro_batch,
            "gradient_accumulation_steps": train.accumulation,
            "gradient_clipping": train.clip,
            "zero_optimization": {"stage": train.zero_stage},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": train.precision == "bf16"},
            "steps_per_print": 10**9,
        },
    )
    make_moments(engine, step)
    engine.train()
    return engine


def started(distiller: Distiller, stream: DistillStream, job: DistillJob) -> tuple[Any, Progress]:
    """Build the engine, and bring it and the stream to the newest checkpoint if there is one.

    However many workers wrote that. Refuses one of a corpus that has changed since.
    """
    newest = ray.train.get_checkpoint()
    if newest is None:
        return build_engine(distiller, job.config), Progress()
    with newest.as_directory() as folder:
        checkpoint = Checkpoint(Path(folder))
        state = checkpoint.state()
        if state["corpus"] != job.corpus.directory.name:
            raise InputError(
                "the corpus has changed since the checkpoint was written, so its position means nothing any more; give "
                "another name=... to train anew, or put the old files back"
            )
        made = Progress(**state["progress"])
        checkpoint.load_weights(distiller)
        engine = build_engine(distiller, job.config, made.step)
        checkpoint.load_optimizer(engine)
    stream.load_state_dict(state["stream"])
    return engine, made


def save(engine: Any, stream: DistillStream, meter: Meter, corpus: PreparedCorpus) -> None:
    """Write a checkpoint; every rank takes part, Ray Train keeps the newest few."""
    state = {
        "stream": stream.state_dict(),
        "progress": vars(meter.snapshot(stream)),
        "corpus": corpus.directory.name,
    }
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), engine, state)
        checkpoint = ray.train.Checkpoint.from_directory(folder) if meter.is_writer else None
        ray.train.report(meter.summary(stream), checkpoint=checkpoint)


def write_student(engine: Any, texts: ReferenceTexts, job: DistillJob, rank: int) -> None:
    """Write student/ with consolidated float32 weights."""
    weights = dict(consolidated(engine))  # every rank takes part
    if rank:
        return
    student = type(engine.module.student)(engine.module.student.config)
    student.load_state_dict({name: weights[f"student.{name}"] for name, _ in student.named_parameters()})
    save_student(job.run_directory / "student", student, texts, job.address.manifest if job.address else None)


def save_student(folder: Path, student: Any, texts: ReferenceTexts, manifest: Manifest | None) -> None:
    """Write a student's folder, completely or not at all: weights, tokenizer, and whose memory it reads."""
    student.config.memory = manifest.model_dump(mode="json") if manifest else None
    scratch = folder.with_name("student.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    student.save_pretrained(scratch)
    texts.tokenizer.save_pretrained(scratch)
    if texts.table is not None:  # so that a server asks a dense memory without its teacher
        save_file({"table": texts.table}, scratch / SENTENCE_TABLE)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


if __name__ == "__main__":
    launch("jobs.distill")
