"""Requests and responses of the HTTP API: the models of its OpenAPI page.

Embeddings and models follow OpenAI's API, reranking Cohere's and Jina's, /embed and /info text-embeddings-inference; the other
forms are this service's own. What a request's texts may be is in `jobs.service.inputs`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, StrictBool, computed_field

from jobs.service.inputs import Documents, Inputs, OneText, Query, TruncatedTokens, integer
from jobs.service.metrics import MemoryState
from refbert.memory.reader import ReferenceRead
from refbert.passages import Text
from vector_store.schema import Rung

DIMENSIONS = (
    "Numbers of a vector. Fewer than the student's own are the first principal components of the memory that it was adapted "
    "to, of length 1 again: no prefix of the whole vector. A student that was not adapted takes its own number only."
)


class ModelRequest(BaseModel, extra="forbid"):
    """Fields of every request that names a model."""

    model: str | None = Field(
        None,
        description="Which student answers, as /v1/models names it; the response has its name. Without one, and for a name "
        "that is none, the run's own student does; such a name is 404 where the service refuses other models.",
    )
    user: str | None = Field(None, description="Accepted and ignored.")


class Request(ModelRequest, extra="forbid"):
    """Fields of every request with several texts."""

    input: Inputs
    explain: StrictBool | None = Field(
        False, description="Also return which references each text read, and its attention. null is false."
    )


class EmbeddingRequest(Request, extra="forbid"):
    """OpenAI's request: one text or several; each may be a pair, `[["a text", "its second"]]`."""

    encoding_format: Literal["float", "base64"] | None = Field(
        "float",
        description="base64: little-endian float32, a fifth of the bytes and no numbers to parse. null is float.",
    )
    dimensions: Annotated[int | None, BeforeValidator(integer)] = Field(None, ge=1, description=DIMENSIONS)
    input_type: str | None = Field(
        None, description="Cohere's, Voyage's and NVIDIA's. Accepted and ignored: queries and documents are read alike."
    )
    truncate_prompt_tokens: TruncatedTokens = None


class ClassifyRequest(Request, extra="forbid"):
    """One text or several to label."""


class SimilarityRequest(Request, extra="forbid"):
    """One text, and the texts to compare it with."""

    source: OneText


class RerankRequest(ModelRequest, extra="forbid"):
    """Cohere's and Jina's request: a query, and the documents to rank by it."""

    query: Query
    documents: Documents
    top_n: Annotated[int | None, BeforeValidator(integer)] = Field(
        None, ge=1, description="How many to return, the best first; all, where there are fewer, or by default."
    )
    return_documents: StrictBool | None = Field(False, description="Return each document with its rank. null is false.")
    truncate_prompt_tokens: TruncatedTokens = None


class EmbedRequest(BaseModel, extra="forbid"):
    """TEI's request: one text or several."""

    inputs: Inputs
    normalize: StrictBool | None = Field(
        True, description="Accepted either way: this student's vectors have length 1, whose cosines are the same."
    )
    truncate: Literal[True] | None = Field(
        None,
        description="A text that is too long is cut at the student's tokens. false, which would refuse it, is refused.",
    )
    truncation_direction: Literal["Right", "right"] | None = Field(None, description="Texts are cut at their end.")
    prompt_name: None = Field(None, description="A student has no prompts.")
    dimensions: Annotated[int | None, BeforeValidator(integer)] = Field(None, ge=1, description=DIMENSIONS)


class ExplainRequest(ModelRequest, extra="forbid"):
    """One text to explain."""

    input: OneText


class ServedReference(ReferenceRead):
    """A reference that a text read, and the rung of the degrade ladder that brought it."""

    @computed_field(  # type: ignore[prop-decorator]
        description="The old name of `rung`; the next release drops it.", json_schema_extra={"deprecated": True}
    )
    @property
    def step(self) -> Rung:
        """The rung."""
        return self.rung


class AttendedReference(ServedReference):
    """A reference that a text read, and the share of each reading layer's attention that fell on it (heads' mean)."""

    attention_mass: dict[str, float]


class ExplainedReference(ServedReference, extra="allow"):
    """A reference or a stored text of an explanation, with further fields that `Explanation` describes."""


class Usage(BaseModel):
    """Tokens read, special tokens included; of a text that was truncated, those that were left."""

    prompt_tokens: int
    total_tokens: int


class Timing(BaseModel):
    """Milliseconds in the slowest batch of the request's texts."""

    queue: float
    lookup: float
    student: float


class TextResponse(BaseModel):
    """One text's place in the request, and, where `explain` was set, the references that it read."""

    index: int
    reference: AttendedReference | None = Field(None, description="The best of those that the text read.")
    nearness: float | None = Field(
        None,
        description="Where references correct the answer: the cosine of the nearest one's key, 1 for a text that is stored.",
    )
    further_references: list[AttendedReference] | None = Field(
        None, description="The others, where references.count > 1."
    )


class Embedding(TextResponse):
    """One text's vector in the teacher's space, L2-normalised."""

    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str


class Classification(TextResponse):
    """One text's label, its score and those of all labels: probabilities, or a regression's number."""

    label: str
    score: float
    scores: dict[str, float]


class Similarity(TextResponse):
    """How similar one text is to the source: the cosine of their vectors."""

    similarity: float


class ListResponse(BaseModel):
    """Fields of every response with several texts, in the request's order."""

    object: Literal["list"] = "list"
    model: str
    usage: Usage
    timing_ms: Timing


class EmbeddingResponse(ListResponse):
    """OpenAI's response, and how long look-up and student took."""

    data: list[Embedding]


class ClassifyResponse(ListResponse):
    """Labels in the texts' order."""

    data: list[Classification]


class SimilarityResponse(ListResponse):
    """Similarities in the texts' order."""

    data: list[Similarity]


class RankedDocument(BaseModel):
    """A document's place in the request, and the cosine of its vector with the query's."""

    index: int
    relevance_score: float = Field(description="From -1 to 1; no probability.")
    document: dict[str, Any] | None = Field(None, description="The document, where return_documents was set.")


class RerankResponse(BaseModel):
    """Cohere's and Jina's response: documents by falling score; equal ones in the request's order."""

    id: str = Field(description="The request's.")
    model: str
    results: list[RankedDocument]
    usage: Usage
    timing_ms: Timing


class Explanation(BaseModel):
    """One text explained. Layers by number, or `read-out`; masses are shares of a layer's attention."""

    text: Text
    tokens: list[str]
    references: list[ExplainedReference] = Field(
        description="What was read, best first: tokens, mass by layer and by token, and the change without it."
    )
    layers: list[dict[str, Any]] = Field(description="How each reading layer divided its attention.")
    strongest_layer: int | str | None
    heat: dict[str, Any] | None = Field(
        description="The strongest layer's mass of each own token on each reference token."
    )
    without_references: dict[str, Any] = Field(description="How far the answer moves when nothing is read.")
    labels: dict[str, dict[str, float]] | None = Field(description="A classifier's answer with references and without.")
    correction: dict[str, Any] | None = Field(
        None,
        description="Where references correct the answer: the version, the nearest one's nearness, and kriging's variance.",
    )
    nearest: list[ExplainedReference] = Field(
        description="Stored texts, by cosine with the text's vector, and their cosine with its vector without references."
    )
    model: str
    timing_ms: Timing


class Model(BaseModel):
    """A student of the service."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "refbert"
    dimensions: int
    max_tokens: int
    labels: list[str] | None
    reads_references: bool


class ModelList(BaseModel):
    """OpenAI's list: the run's own student, which answers by default, and further ones."""

    object: Literal["list"] = "list"
    data: list[Model]


class EmbeddingPooling(BaseModel):
    """How token states become a vector."""

    pooling: Literal["mean", "cls"]


class ModelType(BaseModel):
    """TEI's word for what the model is for."""

    embedding: EmbeddingPooling


class ServiceInfo(BaseModel):
    """TEI's description of the service: the run's own student, and what it takes at once."""

    model_id: str
    model_sha: str = Field(description="Fingerprint of the student's folder.")
    model_dtype: str
    model_type: ModelType
    max_concurrent_requests: int = Field(description="Texts that may wait in a replica.")
    max_input_length: int = Field(description="Tokens of a text, special ones included; a longer one is cut.")
    max_batch_tokens: int
    max_batch_requests: int
    max_client_batch_size: int = Field(description="Texts of a request.")
    auto_truncate: Literal[True] = True


class Health(BaseModel):
    """The replica's process answers."""

    status: Literal["ok"] = "ok"
    model: str


class MemoryReadiness(BaseModel):
    """Whether a student reads its memory. `degraded` costs quality, not answers."""

    status: Literal["ready", "degraded"]
    memory: MemoryState
    reason: str | None = None


class Readiness(MemoryReadiness):
    """Whether the replica takes requests, and whether it reads its memories: the state of the one that is worst off."""

    model: str = Field(description="The run's own student.")
    refused: str | None = Field(
        None, description="Why the student that was asked for last is not served: the one before it answers."
    )
    models: dict[str, MemoryReadiness] = Field(description="The state of each student's memory.")


class ErrorDetail(BaseModel):
    """One line, and the id of the request in the log."""

    message: str
    type: str
    request_id: str


class ErrorResponse(BaseModel):
    """Body of every error response."""

    error: ErrorDetail
