"""The training: workers of Ray Train, each with the student under DeepSpeed, its stream of micro-batches, and the loop.

`distil` runs in the driver, `train_worker` in each worker. Every rank takes part in what gathers or saves weights.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.train
import torch
from ray.train import LoggingConfig, UserCallback
from ray.train.torch import TorchTrainer

from jobs.config import RunConfig
from jobs.corpus.prepared import PreparedCorpus
from jobs.memory.neighbour_plan import NeighbourPlan
from jobs.memory.store import MemoryAddress, patient_store
from jobs.memory.student_memory import student_memory_options
from jobs.run.directory import claim_directory, training_lock, write_manifest
from jobs.run.failures import LostProcessError, known_cause
from jobs.run.session import wait_while_ray_answers
from jobs.run.worker import ThreadShare, set_up_worker
from jobs.sections import TrainConfig
from jobs.training.checkpoint import Checkpoint, Checkpoints, consolidated
from jobs.training.divergence import faults_of, finite_step, skip_step, weighed
from jobs.training.engine import build_engine
from jobs.training.metrics import METRICS, MetricsLogger, TrainingProgress, training_bar
from jobs.training.process_group import ProcessGroupConfig, gathered_texts, require_own
from jobs.training.recovery import Recovery, failure_config, scaling_config
from jobs.training.stream import DistillStream
from jobs.training.tracking import tracked
from refbert.attention import QKV
from refbert.batch import Batch, moved
from refbert.config import LossConfig
from refbert.distillation import Distiller, Targets, new_student
from refbert.errors import InputError
from refbert.folder import save_student, start_from
from refbert.memory.manifest import manifest_of
from refbert.memory.retrieval import open_retriever
from refbert.memory.texts import ReferenceTexts, reference_texts
from refbert.precision import autocasts, has_fast_bf16
from refbert.sampler import LengthSampler
from refbert.student import RefBertForSequenceClassification, RefBertModel
from refbert.teacher import Teacher, load_teacher
from vector_store.client import connect
from vector_store.store import Store

log = logging.getLogger(__name__)

STOP_PATIENCE_S = 60.0
"""How long an interrupted training has for its step and its checkpoint."""


@dataclass(frozen=True)
class DistillJob:
    """What every worker of one training needs."""

    config: RunConfig
    address: MemoryAddress | None
    corpus: PreparedCorpus
    plan: Path | None
    run_directory: Path

    def memory_options(self) -> dict[str, Any]:
        """Return what the student's folder says of its token budget and its memory."""
        return student_memory_options(self.config, self.address.manifest if self.address else None)


def distil(config: RunConfig, corpus: PreparedCorpus, address: MemoryAddress | None, plan: Path | None) -> None:
    """Train on Ray, from the newest checkpoint if there is one, and leave a complete run directory."""
    directory = config.run_directory
    claim_directory(config)
    train = config.train
    # Apart, because mypy sees Train V1, which does not know them. Recovery says in one line what Ray's log would in fifty.
    options: dict[str, Any] = {
        "logging_config": LoggingConfig(log_level="CRITICAL"),
        "callbacks": [Recovery(), *tune_callbacks()],
    }
    storage = ray.train.RunConfig(
        name="checkpoints",
        storage_path=str(directory),
        failure_config=failure_config(train),
        **options,
    )
    # Bound, because Ray's controller unpickles a `train_loop_config`, and would import all that only workers need.
    train_loop: Any = partial(train_worker, DistillJob(config, address, corpus, plan, directory))
    trainer = TorchTrainer(
        train_loop,
        scaling_config=scaling_config(train),
        torch_config=ProcessGroupConfig(
            backend="nccl" if train.gpus_per_worker else "gloo", timeout_s=train.collective_timeout_s
        ),
        run_config=storage,
    )
    have, fewest = ray.cluster_resources(), train.min_workers or train.num_workers
    if have.get("CPU", 0) < fewest or have.get("GPU", 0) < fewest * train.gpus_per_worker:
        log.warning(
            "training waits: %d workers x (1 CPU or %g GPU) wanted, the cluster has %g CPU and %g GPU",
            fewest, train.gpus_per_worker, have.get("CPU", 0), have.get("GPU", 0),
        )  # fmt: skip
    with (
        training_lock(directory),
        tracked(config),
        training_bar(directory / METRICS, train.steps),
        stop_request(directory) as request,
    ):
        result: Any = fit(trainer, request)
        if result.return_value is None:  # rank 0's: somebody else made the file
            raise KeyboardInterrupt
    write_manifest(config, result.return_value)


def tune_callbacks() -> list[UserCallback]:
    """Return what hands reported metrics on to Ray Tune: nothing, unless a trial of Tune runs this training."""
    from ray.tune.integration.ray_train import TuneReportCallback

    try:
        return [TuneReportCallback()]
    except RuntimeError:  # not in a trial
        return []


@contextmanager
def stop_request(directory: Path) -> Iterator[Path]:
    """Yield the file that tells workers to stop when it is there; it is not, before and after."""
    request = directory / "stop"
    request.unlink(missing_ok=True)
    try:
        yield request
    finally:
        request.unlink(missing_ok=True)


def fit(trainer: Any, request: Path) -> Any:
    """Train. An interrupt asks the workers to write a checkpoint and stop, and is raised again then; the second one at once.

    In a thread: in the main one Ray Train takes SIGINT for itself, and ends the process without a checkpoint.
    """
    done: Future[Any] = Future()

    def work() -> None:
        try:
            done.set_result(trainer.fit())
        except BaseException as error:
            done.set_exception(error)

    try:
        threading.Thread(target=work, name="training", daemon=True).start()
        while not done.done():
            wait([done], 1.0)  # a signal that another thread was given is seen when this one wakes
        return done.result()
    except KeyboardInterrupt:
        log.info("stopping at the next step, with a checkpoint; interrupt again to stop at once")
        request.touch()
        try:
            wait_while_ray_answers(done, STOP_PATIENCE_S)  # a training that waits for workers makes no step
        except Exception as error:
            known = known_cause(error)
            if known is not None and not isinstance(
                known, LostProcessError
            ):  # else the interrupt ended the workers too
                raise
        raise


def must_stop(request: Path, rank: int, device: torch.device) -> bool:
    """Whether the driver asks the workers to stop: rank 0 looks, and tells the others."""
    asked = torch.tensor(float(rank == 0 and request.exists()), device=device)
    torch.distributed.broadcast(asked, 0)
    return bool(asked)


def train_worker(job: DistillJob) -> dict[str, float] | None:
    """Run one worker of the training: its share of every step. Returns the training's figures; None where it was stopped."""
    config, train = job.config, job.config.train
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = set_up_worker(context.get_local_world_size(), train.gpus_per_worker, train.threads_per_worker)
    cores = ThreadShare(context.get_local_world_size(), train.threads_per_worker)
    accumulation = train.accumulation(world_size)
    share = accumulation * world_size / train.micro_batches  # 1 where workers divide a step's micro-batches

    with ExitStack() as stack:
        teacher: Teacher | None = load_teacher(config.teacher, device)
        assert teacher is not None
        reference_dim = job.address.manifest.dim if job.address else None
        student = starting_student(config, teacher, reference_dim)
        frozen = {name: buffer.cpu().clone() for name, buffer in student.named_buffers()}  # bf16 would round them
        if train.precision == "bf16" and not has_fast_bf16(device) and rank == 0:
            log.warning("train.precision=bf16: this CPU emulates it, a hundred times slower than fp32; set fp32")
        distiller = Distiller(student, config.loss, autocast=autocasts(train.precision, device))
        stream = stack.enter_context(open_stream(job, teacher, rank, world_size))
        if train.targets == "memory":
            teacher = None  # its weights are no longer needed
        checkpoints = stack.enter_context(
            closing(Checkpoints(job.run_directory / "checkpoints", train.keep_checkpoints))
        )
        engine, progress = restore(distiller, stream, job, agreed_checkpoint(checkpoints, rank))
        require_own()  # DeepSpeed has made groups of its own
        metrics = stack.enter_context(MetricsLogger(train, job.run_directory, progress, rank, device))
        ask_teacher = partial(
            teacher_targets, teacher, loss=config.loss, student_layers=config.student.num_hidden_layers
        )

        while metrics.step < train.steps:
            for index in range(accumulation):
                is_counted = index * world_size + rank < train.micro_batches
                if is_counted:
                    number = stream.number
                    batch, stored = next(stream)
                    batch = moved(batch, device)
                    targets = moved(stored, device) if stored else ask_teacher(batch)
                    torch.manual_seed(config.seed * 1_000_003 + number)  # dropout is the same on any number of workers
                loss, parts = engine(batch, targets)
                engine.backward(weighed(loss, share if is_counted else 0.0))
                is_finite = finite_step(engine)  # updates weights at the accumulation boundary
                if is_counted:
                    metrics.add(loss, parts, stream)
            if not is_finite:
                faults = partial(step_faults, metrics, stream, ask_teacher, train.micro_batches)
                skip_step(metrics.step + 1, metrics.skipped + 1, train, faults)
            metrics.finish_step(engine, is_finite)
            cores.follow()
            stops = must_stop(job.run_directory / "stop", rank, device)
            if (stops or metrics.step % train.save_every == 0) and metrics.step < train.steps:
                save(checkpoints, engine, stream, metrics.snapshot(stream), job.corpus)
            if stops and metrics.step < train.steps:
                checkpoints.wait()
                return None
        progress = metrics.snapshot(stream)
        write_student(engine, frozen, stream.texts, job, rank)
        save(checkpoints, engine, stream, progress, job.corpus)
        checkpoints.wait()
        return metrics.summary(progress)


def starting_student(
    config: RunConfig, teacher: Teacher, reference_dim: int | None
) -> RefBertModel | RefBertForSequenceClassification:
    """Build the student with the weights that its training starts from: new ones, or those of `train.start`."""
    if not config.train.start:
        return new_student(config.student, teacher, config.seed, reference_dim)
    shape = config.student.model_copy(update={"initial": "random"})  # which the start replaces
    student = new_student(shape, teacher, config.seed, reference_dim)
    start_from(student if isinstance(student, RefBertModel) else student.encoder, config.train.start)
    return student


def training_order(passages: pa.Table, train: TrainConfig, seed: int) -> LengthSampler:
    """Return which rows of the passages each micro-batch has."""
    lengths = sum(
        pc.fill_null(pc.utf8_length(passages[name].cast(pa.string())), 0).to_numpy()
        for name in ("text", "text_pair")
        if name in passages.column_names
    )
    return LengthSampler(lengths, train.micro_batch, train.micro_batches, seed)


@contextmanager
def open_stream(job: DistillJob, teacher: Teacher, rank: int, world_size: int) -> Iterator[DistillStream]:
    """Open this worker's stream, with its own client of the store."""
    config = job.config
    with ExitStack() as stack:
        manifest = job.address.manifest if job.address else manifest_of(teacher, config.references)
        texts = reference_texts(teacher, manifest, config.references)
        source = targets = None
        if job.address:
            client = stack.enter_context(connect(config.store, job.address.url, rank=rank))
            store = job.address.of(config.store)
            if config.reads_references or config.loss.needs_token_states:  # a search brings a text's own states, too
                criterion = config.references.criterion if config.reads_references else "none"
                source = open_retriever(
                    client, patient_store(store), texts, criterion, patience_s=config.train.store_patience_s
                )
            targets = Store(client, store) if config.train.targets == "memory" else None
        passages = job.corpus.table("train")
        stream = DistillStream(
            passages,
            training_order(passages, config.train, config.seed),
            texts,
            source,
            targets,
            NeighbourPlan(job.plan) if job.plan and source else None,
            sentences_alone=not config.loss.needs_token_states,
            rank=rank,
            world_size=world_size,
            per_step=config.train.micro_batches,
            prefetch=config.train.prefetch,
            dropout=config.references.dropout,
        )
        stack.callback(stream.close)
        yield stream


def teacher_targets(teacher: Teacher | None, batch: Batch, loss: LossConfig, student_layers: int) -> Targets:
    """Ask the teacher for what the losses compare."""
    assert teacher is not None
    encoding = teacher.encode(
        batch.input_ids,
        batch.mask,
        loss.needs_every_layer,
        batch.token_type_ids,
        score_layers=loss.teacher_layers(student_layers, teacher.num_layers) if loss.attention else (),
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


def step_faults(
    metrics: MetricsLogger, stream: DistillStream, ask_teacher: Callable[[Batch], Targets], per_step: int
) -> list[str]:
    """Say what of this rank's share of the step under way is not finite: its micro-batches are made and looked at again."""
    first = metrics.step * per_step

    def batches() -> Iterator[tuple[list[str], torch.Tensor, Targets]]:
        for number in range(first + stream.rank, first + per_step, stream.world_size):
            batch, stored = stream.make(number)
            batch = moved(batch, metrics.device)
            sources = [row["document"] for row in stream.passages.at(stream.sampler.rows(number))]
            yield sources, batch.reference_states, stored or ask_teacher(batch)

    return faults_of(metrics.step_losses, batches())


def agreed_checkpoint(checkpoints: Checkpoints, rank: int) -> Path | None:
    """Let rank 0 find the newest intact checkpoint, and tell the others; every rank raises what it raises."""
    found, error = None, None
    if rank == 0:
        try:
            found = checkpoints.newest_intact()
        except InputError as refused:
            error = str(refused)
    found, error = json.loads(gathered_texts(json.dumps([found and found.name, error]))[0])
    if error:
        raise InputError(error)
    return checkpoints.folder / Path(found).name if found else None


def restore(
    distiller: Distiller, stream: DistillStream, job: DistillJob, newest: Path | None
) -> tuple[Any, TrainingProgress]:
    """Build the engine, and bring it and the stream to a checkpoint if there is one.

    However many workers wrote that. Refuses one of a corpus that has changed since.
    """
    if newest is None:
        return build_engine(distiller, job.config.train), TrainingProgress()
    checkpoint = Checkpoint(newest)
    state = checkpoint.state()
    if state["corpus"] != job.corpus.content:
        raise InputError(
            "the corpus has changed since the checkpoint was written, so its position means nothing any more; give "
            "another name=... to train anew, or put the old files back"
        )
    progress = TrainingProgress(**state["progress"])
    checkpoint.load_weights(distiller)
    engine = build_engine(distiller, job.config.train, progress.step, progress.skipped)
    checkpoint.load_optimizer(engine)
    stream.load_state_dict(state["stream"])
    return engine, progress


def save(
    checkpoints: Checkpoints, engine: Any, stream: DistillStream, progress: TrainingProgress, corpus: PreparedCorpus
) -> None:
    """Begin to write a checkpoint; every rank takes part."""
    state = {"stream": stream.state_dict(), "progress": vars(progress), "corpus": corpus.content}
    checkpoints.save(engine, progress.step, state)


def write_student(
    engine: Any, frozen: dict[str, torch.Tensor], texts: ReferenceTexts, job: DistillJob, rank: int
) -> None:
    """Write student/ with consolidated float32 weights, and what was `frozen` as it was.

    The word table of a dense memory is written unless the student's own embeddings are such a table.
    """
    weights = dict(consolidated(engine))  # every rank takes part
    if rank:
        return
    student = type(engine.module.student)(engine.module.student.config)
    learned = {name: weights[f"student.{name}"] for name, _ in student.named_parameters()}
    student.load_state_dict({**frozen, **learned})
    save_student(job.run_directory / "student", student, texts.tokenizer, texts.table, **job.memory_options())
