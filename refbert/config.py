"""The options of the method: corpus, teacher, references, student, losses.

One frozen model per owner; no torch and no transformers is imported here, so a driver can read a config in milliseconds.
"""

from typing import Literal, Self

from pydantic import BaseModel, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

BUILT_IN_CRITERIA = ("keywords", "dense", "hybrid", "random", "none")


class CorpusConfig(BaseModel, frozen=True, extra="forbid"):
    """Which texts a run reads, and how they become passages."""

    path: str = Field(
        description="A file, a folder or any pyarrow filesystem URI (text, jsonl, parquet); `hub:NAME[:CONFIG]` for a "
        "Hugging Face data set; `pypi:vader-snippets` for the demo's snippets."
    )
    format: Literal["auto", "text", "jsonl", "parquet"] = Field("auto", description="`auto` goes by the file's ending.")
    text_field: str = "text"
    text_pair_field: str | None = Field(
        None,
        description="Column of a second text: each row is then a pair, one reference that the teacher reads together.",
    )
    label_field: str | None = Field(None, description="Column of a class label, for the labelled task of the report.")
    document_field: str | None = Field(
        None, description="Column that names a row's document; by default the row itself is one."
    )
    hub_split: str = Field("train", description="Split of a Hub data set.")
    heldout_fraction: float = Field(0.05, gt=0, lt=1, description="Texts never stored nor trained on, chosen by hash.")
    max_texts: PositiveInt | None = Field(None, description="Stop after this many passages.")
    long_texts: Literal["split", "truncate"] = Field(
        "split",
        description="Texts over the teacher's token budget: cut into passages, or cut off. Pairs can only be cut off, the "
        "longer text first.",
    )

    @model_validator(mode="after")
    def _pairs_stay_whole(self) -> Self:
        if self.text_pair_field and self.long_texts == "split":
            raise ValueError(
                f"text_pair_field={self.text_pair_field} makes pairs, which are not cut into passages; set "
                "corpus.long_texts=truncate"
            )
        return self


class TeacherConfig(BaseModel, frozen=True, extra="forbid"):
    """A frozen Hugging Face encoder."""

    model: str = Field(
        "pypi:all-MiniLM-L6-v2",
        description="Hub id, local path, or `pypi:NAME` for an encoder that travels as a Python package.",
    )
    tokens: int = Field(32, ge=4, le=512, description="Token budget per text, special tokens included.")
    batch: PositiveInt = Field(64, description="Texts per forward.")
    head: Literal["none", "classification"] = Field(
        "none", description="`classification` loads the teacher with its head, for the prediction loss."
    )
    precision: Literal["fp32", "bf16"] = "fp32"


class ReferenceConfig(BaseModel, frozen=True, extra="forbid"):
    """Which stored text a student reads beside its input."""

    criterion: str = Field(
        "keywords",
        description="keywords (BM25 over token ids, the paper's `most common keywords`) | dense | hybrid | random | none, "
        "or the dotted path of a function that makes a retriever.",
    )
    dense_index: bool = Field(
        False,
        description="Also store the sentence vector that `dense` and `hybrid` need (dim x 4 bytes and an HNSW graph).",
    )
    tokens: PositiveInt | None = Field(
        None, description="States stored per reference, from its start; by default all that the teacher read."
    )
    dim: PositiveInt | None = Field(
        None,
        description="Width of a stored state: principal components of the teacher's, fitted on a sample at the first "
        "ingest. By default the teacher's own.",
    )
    datatype: Literal["float16", "int8"] = Field(
        "float16", description="How a stored state's numbers are kept; int8 has a scale for each token."
    )
    dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of training examples that read the null reference instead, so that it is learned.",
    )
    exclude_same_document: bool = Field(True, description="Leak guard: a passage never reads its own document.")
    exclude_splits: tuple[str, ...] = Field((), description="Stored splits that are never read.")
    plan: bool = Field(
        False,
        description="Look up every training text's reference once before training, and only fetch it from then on: the same "
        "references, for training of several epochs, several runs over one memory, or where steps wait for look-ups.",
    )
    bm25_k1: PositiveFloat = 1.2
    bm25_b: float = Field(0.75, ge=0, le=1)
    bm25_average_tokens: PositiveFloat = Field(
        24.0,
        description="BM25's average length; a constant, so that weights do not depend on what was ingested before.",
    )

    @model_validator(mode="after")
    def _dense_has_an_index(self) -> Self:
        if self.criterion in ("dense", "hybrid") and not self.dense_index:
            raise ValueError(f"criterion={self.criterion} needs references.dense_index=true")
        if self.criterion not in BUILT_IN_CRITERIA and ("." not in self.criterion):
            raise ValueError(
                f"criterion={self.criterion!r} is neither one of {', '.join(BUILT_IN_CRITERIA)} nor a dotted path"
            )
        if self.plan and self.criterion not in BUILT_IN_CRITERIA:
            raise ValueError(
                f"plan=true needs a built-in criterion, found {self.criterion}: nothing tells when a criterion of your own "
                "chooses differently; set references.plan=false"
            )
        return self


class StudentConfig(BaseModel, frozen=True, extra="forbid"):
    """The student's shape. Defaults are TinyBERT-4's (TinyBERT, Table 1), 14.35 M parameters with BERT's vocabulary."""

    hidden: PositiveInt = 312
    layers: PositiveInt = 4
    heads: PositiveInt = 12
    intermediate: PositiveInt = 1200
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="TinyBERT has 0.1; a short distillation on dense targets underfits, it does not overfit.",
    )
    reference_layers: Literal["first", "all"] | tuple[int, ...] = Field(
        "all", description="Layers that read the reference. `first` is the paper's; `all` was better in our probe."
    )
    reference_mode: Literal["concat", "replace", "none"] = Field(
        "concat",
        description="Beside the layer's own keys and values, in their place, or not at all (vanilla TinyBERT).",
    )
    reference_keys: Literal["states", "embedding"] = Field(
        "states",
        description="Keys from the teacher's states, or from the student's embedding of the reference's tokens.",
    )
    initial: Literal["random", "teacher_embeddings"] = Field(
        "teacher_embeddings",
        description="Start the token embeddings from the teacher's, projected on their principal components.",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden={self.hidden} is not a multiple of heads={self.heads}")
        if isinstance(self.reference_layers, tuple) and any(
            not 0 <= layer < self.layers for layer in self.reference_layers
        ):
            raise ValueError(f"reference_layers={self.reference_layers} are not all within 0..{self.layers - 1}")
        return self


class LossConfig(BaseModel, frozen=True, extra="forbid"):
    """Weights of the distillation losses; a weight of zero turns its loss off."""

    hidden: NonNegativeFloat = Field(10.0, description="Token states (TinyBERT, eq. 8).")
    embedding: NonNegativeFloat = Field(0.0, description="Embedding output (TinyBERT, eq. 9); needs a teacher.")
    relation: NonNegativeFloat = Field(1.0, description="Token-to-token relations (MiniLMv2, eq. 5, on states).")
    contrastive: NonNegativeFloat = Field(
        0.2,
        description="Sentence InfoNCE: the mutual-information bound. At 1 it crowds out the token states (docs/log.md).",
    )
    prediction: NonNegativeFloat = Field(0.0, description="Soft cross-entropy (TinyBERT, eq. 10); needs teacher.head.")
    layer_map: Literal["last", "uniform"] = Field(
        "last",
        description="Teacher layers that the hidden loss reads; `uniform` is TinyBERT's g(m); needs a teacher.",
    )
    relation_heads: PositiveInt = Field(12, description="Heads that states are cut into for relations.")
    contrastive_temperature: PositiveFloat = 0.05
    reference_negatives: bool = Field(
        True,
        description="The references that were read are negatives of the contrastive loss too, so that none is copied.",
    )
    prediction_temperature: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not any((self.hidden, self.embedding, self.relation, self.contrastive, self.prediction)):
            raise ValueError("every loss weight is 0: nothing to learn")
        return self

    @property
    def needs_only_last_states(self) -> bool:
        """Whether stored last-layer states are enough, so that no teacher has to run in training."""
        return not self.embedding and not self.prediction and self.layer_map == "last"
