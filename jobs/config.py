"""One YAML is one run: the whole configuration, its overrides, and where a run's files lie.

Sections are defined beside their owners: in `refbert.config`, `vector_store.config` and, those of the jobs, `jobs.sections`.
`RunConfig` ties them together. Imports neither torch nor ray.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)

from jobs.sections import (
    AblateConfig,
    DemoConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    IngestConfig,
    PredictConfig,
    ServeConfig,
    TaskStageConfig,
    TrackingConfig,
    TrainConfig,
)
from refbert.config import (
    AdaptConfig,
    CorpusConfig,
    LossConfig,
    ReferenceConfig,
    StudentConfig,
    TaskConfig,
    TeacherConfig,
)
from refbert.errors import InputError
from vector_store.config import StoreConfig

QUICKSTART = Path(__file__).parent / "configs" / "quickstart.yaml"

VERBATIM = ("explain.text", "explain.text_pair")
"""Overrides that are texts, whatever YAML would make of them."""

POSITIONS = 512
"""Position embeddings of a student, BERT's."""


class RunConfig(BaseModel, frozen=True, extra="forbid"):
    """Everything a run depends on, except secrets, which come from the environment."""

    name: str = Field("quickstart", pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = 0
    corpus: CorpusConfig
    teacher: TeacherConfig = TeacherConfig()
    store: StoreConfig = StoreConfig()
    references: ReferenceConfig = ReferenceConfig()
    student: StudentConfig = StudentConfig()
    loss: LossConfig = LossConfig()
    ingest: IngestConfig = IngestConfig()
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()
    task: TaskConfig | None = Field(None, description="The labelled task of the task stage.")
    task_stage: TaskStageConfig = TaskStageConfig()
    ablate: AblateConfig = AblateConfig()
    adapt: AdaptConfig = AdaptConfig()
    demo: DemoConfig = DemoConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    serve: ServeConfig = ServeConfig()
    export: ExportConfig = ExportConfig()
    explain: ExplainConfig = ExplainConfig()
    predict: PredictConfig = PredictConfig()

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.train.targets == "memory" and (self.loss.prediction or not self.loss.needs_only_last_states):
            raise ValueError(
                "train.targets=memory has only the last layer's states; set loss.embedding=0, loss.attention=0, "
                "loss.prediction=0, loss.layer_map=last, loss.relation_of=states and loss.relation_layer=null, or "
                "train.targets=teacher"
            )
        if self.train.targets == "memory" and self.loss.needs_token_states and not self.references.states:
            raise ValueError(
                "loss.hidden and loss.relation learn from stored token states; leave out references.states=false, or set "
                "train.targets=teacher, or learn from sentence vectors alone (loss.hidden=0, loss.relation=0, loss.sentence=5, "
                "loss.similarity=20)"
            )
        if self.train.targets == "memory" and (self.references.dim or self.references.tokens):
            raise ValueError(
                "train.targets=memory learns from whole stored states; leave out references.dim and references.tokens, or set "
                "train.targets=teacher"
            )
        if self.references.dim and self.student.reference_readout and self.student.reference_mode != "none":
            raise ValueError(
                "student.reference_readout copies the teacher's own states; with references.dim set it to false"
            )
        if self.references.dim and self.loss.contrastive and self.loss.reference_negatives:
            raise ValueError(
                "loss.reference_negatives compares stored states with the teacher's; with references.dim set it to false"
            )
        tokens = self.references.count * (self.references.tokens or self.teacher.tokens)
        if self.student.reference_keys == "embedding" and tokens > POSITIONS:
            raise ValueError(
                f"student.reference_keys=embedding has {POSITIONS} positions for all references together, references.count x "
                f"tokens asks for {tokens}; lower one of them, or set student.reference_keys=states"
            )
        if self.loss.label:
            raise ValueError(
                "loss.label needs labels, which the general stage has not; it belongs to task_stage.phases"
            )
        if self.loss.prediction and self.teacher.head == "none":
            raise ValueError("loss.prediction needs logits: set teacher.head=classification")
        if self.name in self.serve.models:
            raise ValueError(
                f"serve.models: {self.name} is the name of the run's own student; choose another, or another name of the run"
            )
        return self

    @property
    def home(self) -> Path:
        """$REFBERT_HOME; by default the current directory, in a Ray job ~/.refbert (its own directory is thrown away)."""
        default = "~/.refbert" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else "."
        return Path(os.environ.get("REFBERT_HOME", default)).expanduser().absolute()

    @property
    def run_directory(self) -> Path:
        """Where this run's files lie."""
        return self.home / "runs" / self.name

    @property
    def store_directory(self) -> Path:
        """Where the embedded store keeps its collections."""
        return self.home / "store"

    @property
    def reads_references(self) -> bool:
        """Whether the student reads any reference."""
        return self.references.criterion != "none" and self.student.reference_mode != "none"

    @property
    def needs_memory(self) -> bool:
        """Whether training reads anything from the store: references, or its targets."""
        return self.reads_references or self.train.targets == "memory"

    def adapting(self) -> Self:
        """Return the run with the memory that is adapted to, in the place of the one that it trains with."""
        store = self.store.model_copy(update={"collection": self.adapt.collection})
        return self.model_copy(update={"references": self.adapt.references, "store": store})

    def digest(self, *parts: str) -> str:
        """Return 12 hex digits of the named parts: changes when, and only when, one of them does."""
        dumped = self.model_dump(mode="json", include=set(parts))
        return hashlib.sha256(json.dumps(dumped, sort_keys=True).encode()).hexdigest()[:12]


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML and apply `key.sub=value` overrides, whose values are YAML too.

    Raises InputError with one line per mistake: a missing file, a key that does not exist, a value of the wrong kind.
    """
    file = Path(path or QUICKSTART)
    try:
        tree = yaml.safe_load(file.read_text()) or {}
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}; give the path of a run's YAML") from None
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{file} holds a {type(tree).__name__}, wanted keys such as name, corpus, train")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise InputError(f"{override!r} is no override; write key.sub=value, such as train.steps=100")
        try:
            parsed = value if key in VERBATIM else yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"{override!r}: the value is not YAML; quote it, such as {key}='\"...\"'") from None
        _set(tree, key.split("."), parsed, override)
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        of_file: list[str] = []
        of_overrides: list[str] = []
        for detail in error.errors(include_url=False):
            mistakes = of_overrides if _is_overridden(detail["loc"], overrides) else of_file
            mistakes.append(_mistake(detail))
        of_file = [f"{file}: " + "; ".join(of_file)] if of_file else []
        raise InputError("; ".join(of_overrides + of_file)) from None
    # Workers have another current directory than who writes the path.
    sections: dict[str, Any] = {}
    if Path(config.teacher.model).expanduser().is_dir():  # else a Hub id, or a package
        sections["teacher"] = config.teacher.model_copy(update={"model": _absolute(config.teacher.model)})
    if config.train.start:
        sections["train"] = config.train.model_copy(update={"start": _absolute(config.train.start)})
    if config.serve.student or config.serve.models:
        models = {name: _absolute(given) for name, given in config.serve.models.items()}
        student = config.serve.student and _absolute(config.serve.student)
        sections["serve"] = config.serve.model_copy(update={"models": models, "student": student})
    return config.model_copy(update=sections) if sections else config


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _is_overridden(location: tuple[Any, ...], overrides: Sequence[str]) -> bool:
    """Whether an override gave the value at `location`, or a section around it: then the file is not at fault."""
    keys = [override.partition("=")[0].split(".") for override in overrides]
    return any([str(part) for part in location[: len(key)]] == key for key in keys)


def _set(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise InputError(f"{override!r}: {key} is a value, not a section")
    tree[keys[-1]] = value


def _mistake(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"unknown key {where}; {_known_keys(detail['loc'])}"
    if detail["type"] == "missing":
        return f"{where} is missing"
    message = detail["msg"].removeprefix("Value error, ")
    if not where:
        return message
    if isinstance(detail["ctx"].get("error") if "ctx" in detail else None, ValueError):
        return f"{where}: {message}"
    return f"{where}={detail['input']!r}: {message}"


def _known_keys(location: tuple[Any, ...]) -> str:
    """Name the keys of the section that holds `location`; it may stand in a list, or be optional."""
    owner: Any = RunConfig
    for part in location[:-1]:
        if isinstance(part, str):
            owner = owner.model_fields[part].annotation
        owner = next((kind for kind in (owner, *get_args(owner)) if hasattr(kind, "model_fields")), owner)
    return f"known are {', '.join(owner.model_fields)}"
