"""The sections of a run's YAML that are the jobs' own, as frozen pydantic models.

They are ingest, train, tracking, task_stage, ablate, demo, evaluate, serve, export, explain and predict. The other sections,
adapt and task among them, lie in `refbert.config` and `vector_store.config`; `jobs.config` puts all together. Imports neither
torch nor ray.
"""

import math
import re
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from refbert.config import AugmentConfig, CorpusConfig, FineTuneConfig, LossConfig, TaskConfig

MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""Of a further student of a service: what a URL's path can hold as it is."""


class IngestConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """How the corpus flows through the teacher into the memory."""

    num_encoders: PositiveInt = 1
    """Actors with a teacher each; without max_encoders exactly so many, with it the fewest."""
    max_encoders: PositiveInt | None = None
    """Autoscaling starts up to so many, while rows wait and the cluster has room or makes it."""
    batch: PositiveInt = 256
    """Texts per encoder call: what is looked up, encoded and stored together."""
    gpus_per_encoder: NonNegativeFloat = 0.0

    @property
    def most_encoders(self) -> int:
        """Actors there may be at once."""
        return self.max_encoders or self.num_encoders

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.most_encoders < self.num_encoders:
            raise ValueError(f"max_encoders={self.max_encoders} is below num_encoders={self.num_encoders}")
        return self


class TrainConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """The distillation loop."""

    steps: PositiveInt = Field(900, description="Optimizer steps, not micro-batches.")
    start: str | None = None
    """A student/ folder whose weights the training starts from, such as a general student's that is to learn a domain. Its
    shape is to be the section `student`'s; without one the student starts as `student.initial` says."""
    num_workers: PositiveInt = 1
    min_workers: PositiveInt | None = None
    """Start, and go on after a failure, with as few where the cluster has no room for num_workers, and grow again when it
    has; without, wait for all. Steps, batches and losses are the same on any number."""
    max_failures: int = Field(3, ge=-1)
    """How often failed workers are started anew, from the newest checkpoint; -1: always."""
    collective_timeout_s: PositiveInt = 120
    """How long a worker waits for the others within a step before they count as cut off."""
    store_patience_s: NonNegativeFloat = 60.0
    """How long look-ups wait for a store that has gone away before they degrade."""
    micro_batch: PositiveInt = Field(32, description="Examples per worker per forward.")
    global_batch: PositiveInt = Field(32, description="Examples per optimizer step.")
    learning_rate: PositiveFloat = 1e-3
    warmup_fraction: float = Field(0.1, ge=0, le=1)
    """Share of steps of linear warm-up; then linear decay to 0."""
    weight_decay: NonNegativeFloat = 0.01
    clip: NonNegativeFloat = Field(1.0, description="Largest gradient norm; 0 turns clipping off.")
    max_skipped_steps: NonNegativeInt = 0
    """Steps whose loss or gradient is not finite that may be left out, weights unchanged; one more ends the training."""
    targets: Literal["teacher", "memory"] = "teacher"
    """Where the teacher's states come from: a forward in the worker, or the memory itself."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What DeepSpeed shards over workers: nothing, optimizer states, gradients too, parameters too."""
    precision: Literal["fp32", "autocast", "bf16"] = "fp32"
    """autocast: the student's matrix products in bfloat16 over float32 weights (a step takes 0.6 of the time on CPUs with
    AMX; float32 where they have no bf16 instructions); bf16: weights too, float32 masters in ZeRO. Losses and AdamW are in
    float32 always."""
    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward, and compute the rest again: memory for time."""
    compile: bool = False
    """Compile the student's layers (torch.compile); needs a C++ compiler, and a minute at first."""
    gpus_per_worker: NonNegativeFloat = 0.0
    threads_per_worker: PositiveInt | None = None
    """CPU threads; by default the node's share, less what other processes use of it, looked at again every few seconds."""
    prefetch: PositiveInt = Field(4, description="Micro-batches whose references are looked up ahead of the step.")
    log_every: PositiveInt = 10
    save_every: PositiveInt = 200
    keep_checkpoints: PositiveInt = 2

    @property
    def micro_batches(self) -> int:
        """Micro-batches per optimizer step, of all workers together."""
        return self.global_batch // self.micro_batch

    def accumulation(self, world_size: int) -> int:
        """Micro-batches per worker per optimizer step; where workers do not divide a step's, some compute one for nothing."""
        return math.ceil(self.micro_batches / world_size)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.global_batch % (self.micro_batch * self.num_workers):
            raise ValueError(
                f"global_batch={self.global_batch} is not a multiple of micro_batch x num_workers = "
                f"{self.micro_batch} x {self.num_workers}"
            )
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers={self.min_workers} exceeds num_workers={self.num_workers}")
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile cannot follow zero_stage=3, which gathers each layer's weights as it runs; set 0, 1 or 2"
            )
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError("precision=bf16 keeps its float32 master weights in ZeRO: set zero_stage to 1, 2 or 3")
        return self


class TrackingConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Where a training's metrics go beside metrics.jsonl, TensorBoard and Ray."""

    trackers: tuple[Literal["mlflow", "wandb"], ...] = ()
    """`mlflow`: to $MLFLOW_TRACKING_URI, by default mlflow.db in the home directory; `wandb`: to Weights & Biases, as `wandb
    login` and $WANDB_MODE say. The extra `tracking` has their packages, which only the job itself needs."""
    project: str = Field(
        "refbert", min_length=1, description="MLflow's experiment, and the project of Weights & Biases."
    )


class PhaseConfig(FineTuneConfig, frozen=True, extra="forbid"):
    """One pass over a labelled task: how long, how fast, and what is learned."""

    loss: LossConfig


def _phases() -> tuple[PhaseConfig, ...]:
    nothing = {"hidden": 0.0, "relation": 0.0, "contrastive": 0.0}
    return (
        PhaseConfig(epochs=6, learning_rate=5e-4, loss=LossConfig(contrastive=0.0)),
        PhaseConfig(epochs=4, learning_rate=1e-4, loss=LossConfig(prediction=1.0, **nothing)),
    )


class TaskStageConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """How a labelled task is learned: first the teacher from labels, then the student from the teacher."""

    teacher: FineTuneConfig = Field(FineTuneConfig(), description="Fine-tuning, where teacher.head=none.")
    augment: AugmentConfig = AugmentConfig()
    """Copies of the training texts with words replaced, for students that are distilled."""
    phases: tuple[PhaseConfig, ...] = Field(default_factory=_phases, min_length=1)
    """The student's, in turn: by default the teacher's states first, then its logits (TinyBERT, sec. 3.2)."""

    @property
    def needs_states(self) -> bool:
        """Whether any phase learns from the teacher's states."""
        return any(phase.loss.needs_states for phase in self.phases)

    @model_validator(mode="after")
    def _memory_has_the_states(self) -> Self:
        for number, phase in enumerate(self.phases):
            if not phase.loss.needs_only_last_states:
                raise ValueError(
                    f"phase {number} wants more of the teacher than its last states and its logits, which are all that a task "
                    "keeps; set its loss.embedding=0 and loss.layer_map=last"
                )
        return self


Arm = Annotated[
    Literal["nearest", "random", "null", "vanilla", "vanilla_without_distillation"],
    BeforeValidator(lambda given: "null" if given is None else given),  # what an unquoted null is in YAML
]


class AblateConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """What an ablation compares: students by what they read and by how they learn, on labelled tasks, over seeds."""

    tasks: tuple[TaskConfig, ...] = Field((), description="The run's task, where none is given.")
    folder: str | None = Field(None, description="GLUE's folder, for tasks without a path of their own.")
    arms: tuple[Arm, ...] = ("nearest", "random", "null", "vanilla", "vanilla_without_distillation")
    seeds: PositiveInt = 3
    seeds_of: dict[str, PositiveInt] = {"RTE": 5, "MRPC": 5}
    """More seeds for tasks whose development split is small."""
    mixing: bool = False
    """Also ask the vanilla students with their answers mixed with what the teacher answered of near training texts: `mixed`.
    Takes a dense index (references.dense_index)."""
    general_stage: bool = True
    """Start every student from a general stage on the corpus: one with references, one without."""
    kept_goal: float = Field(0.94, gt=0, description="Share of the teacher's average that the student is to keep.")
    results: str | None = Field(None, description="Folder for a dated copy of the results.")


class DemoConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """The domain that the demo's student has never seen, and is adapted to."""

    corpus: CorpusConfig | None = Field(
        None, description="Its texts; without any, the demo evaluates and serves what it trained."
    )
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.1, 0.3, 1.0)
    """Of its texts, stored one after another: the growth curve."""
    trained_steps: NonNegativeInt = 300
    """Steps of a control: the same student trained on the domain's texts instead of reading them. 0: none."""


class EvaluateConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """What the report measures."""

    texts: PositiveInt = Field(1000, description="Held-out texts for fidelity.")
    pool: PositiveInt = Field(1000, description="Candidates of the mutual-information bound.")
    labelled_train: PositiveInt = 3000
    """Training texts of the classifier head, where there are labels."""
    batch: PositiveInt = 32
    speed_repeats: PositiveInt = Field(30, description="Timed batches per contender, taken in turns.")


class ServeConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """The service: where it listens, who may ask, how much, how long, and on how many replicas."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0 takes a free one.")
    grpc_port: int | None = Field(None, ge=1, le=65535)
    """Also answer gRPC there. Ray Serve listens on all interfaces for it: it needs keys as a public host does."""
    api_keys_env: str = "REFBERT_API_KEYS"
    """Environment variable with the keys that may ask, apart by commas or white space."""
    api_keys_file: str | None = None
    """File with a key per line, read again when it changes: keys rotate without a restart."""
    allow_public_without_key: bool = False
    """Let anyone who reaches a public host ask; without it such a service refuses to start."""

    num_replicas: PositiveInt = Field(1, description="Without max_replicas exactly so many, with it the fewest.")
    max_replicas: PositiveInt | None = Field(None, description="Autoscaling starts up to so many.")
    target_ongoing_requests: PositiveFloat = Field(16.0, description="Per replica; autoscaling aims at it.")
    surge_percent: int = Field(25, ge=0, le=100)
    """Replicas beyond their number while new ones replace them, rounded up: none stops before another answers. Needs room for
    them; with 0 old ones stop first."""
    cpus_per_replica: NonNegativeFloat = Field(1.0, description="What Ray reserves; bookkeeping, not a limit.")
    gpus_per_replica: NonNegativeFloat = 0.0
    threads_per_replica: PositiveInt | None = None
    """CPU threads of a forward; by default the node's share."""

    max_batch: PositiveInt = Field(64, description="Texts per look-up and forward.")
    batch_tokens: PositiveInt = 8192
    """Tokens per forward, padding included: long texts share one with fewer others."""
    batch_wait_ms: NonNegativeFloat = 0.0
    """How long an idle student waits for more texts; without, what arrives while it is busy is a batch."""
    max_queued_texts: PositiveInt = Field(8192, description="Per replica; over it, requests are refused with 429.")

    max_explanations: PositiveInt = 8
    """Explanations that wait or are made, per replica: each has the student to itself. Over it, they are refused with 429."""

    max_texts: PositiveInt = Field(2048, description="Texts per request: what OpenAI takes, and its clients send.")
    max_characters: PositiveInt = Field(20_000, description="Of one text.")
    max_request_bytes: PositiveInt = 16 * 2**20
    """Of one request's body: room for max_texts of 8,000 characters."""
    deadline_s: PositiveFloat = 30.0
    """A request's time, its body's arrival included; callers may ask for less by X-Timeout-Ms. Enough for max_texts where the
    student answers 70 texts per second."""

    student: str | None = None
    """The student/ folder that is served, copied from anywhere; by default the run's own."""
    models: dict[str, str] = {}
    """Further students of the service, {NAME: student/ folder}; NAME is the `model` that requests ask for. Each reads the
    memory that its folder names. The run's own answers requests without `model`, or with one that is none of these."""
    refuse_other_models: bool = False
    """Answer 404 to a request whose `model` names no student of the service. Without, the run's own answers, and the response
    has its name."""
    cors_origins: tuple[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")], ...] = ()
    """Web pages that may ask from a browser, such as https://search.example.com; "*" is every page."""

    memory_check_s: PositiveFloat = 5.0
    """How often a replica sees whether its memory is there and still its teacher's, and which version corrects its answers."""
    own_answers: bool = True
    """Answer a text that is stored with its teacher's own vector, where references correct answers."""
    replica_rows: NonNegativeInt = 0
    """Where references correct answers and there are at most so many, each replica of the service keeps a copy of them in its
    own process (3.5 kB each at 384 dimensions), and asks no store; more are looked up in the store. 0: always the store."""
    request_log: bool = Field(False, description="One JSON line per request; never with texts.")
    tracing: bool = Field(False, description="OpenTelemetry spans, exported as the process's tracer provider says.")

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(f"max_replicas={self.max_replicas} is below num_replicas={self.num_replicas}")
        if self.max_texts > self.max_queued_texts:
            raise ValueError(
                f"max_texts={self.max_texts} exceeds max_queued_texts={self.max_queued_texts}: such a request would always "
                "be refused"
            )
        for name in self.models:
            if not re.fullmatch(MODEL_NAME, name):
                raise ValueError(
                    f"models: {name!r} is no name of a model; give letters, digits, '.', '_' and '-', a letter or digit first"
                )
        return self


class ExportConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """What an exported student is."""

    int8: bool = Field(False, description="Also a graph with weights and activations in 8 bits.")
    tolerance: PositiveFloat = 1e-4
    """Greatest difference of the float32 graph from the student; over it, nothing is written."""
    license: str | None = Field(None, description="License of the model card; left open by default.")
    languages: tuple[str, ...] = ()
    """Languages of the model card as ISO 639-1 codes; left open by default."""


class ExplainConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Which text is explained, and by whom."""

    text: str = Field("", description="Taken as it stands, not as YAML.")
    text_pair: str | None = Field(None, description="The second of a pair, likewise.")
    student: str | None = None
    """A student/ folder, such as a task student's; by default the run's own."""


class PredictConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Which rows are scored, by whom, and what is written of each."""

    path: str | None = None
    """What to score, as corpus.path, whose other options say how it is read; by default the corpus."""
    output: str | None = None
    """Folder or pyarrow URI of the result; by default predictions/ in the run's directory."""
    write: Literal["embeddings", "labels"] | None = None
    """By default labels where the student has a head, else embeddings."""
    datatype: Literal["float32", "float16"] = Field("float32", description="Of a written embedding's numbers.")
    student: str | None = None
    """A student/ folder, such as a task student's; by default the run's own."""
    num_workers: PositiveInt = Field(1, description="Actors with a student and a client of the memory each.")
    gpus_per_worker: NonNegativeFloat = 0.0
    batch: PositiveInt = Field(64, description="Texts per forward, and per look-up.")
    thinnest: NonNegativeInt = 100
    """Of an adapted student: so many texts that are farthest from all that is stored are listed in thinnest.jsonl."""
    part_rows: PositiveInt = 2048
    """Rows of a file that are written together: what a killed worker loses at most."""
