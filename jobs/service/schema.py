"""What callers send and get over HTTP: the models of the OpenAPI page.

Requests are OpenAI's where OpenAI has them. How many texts and how long they may be is the service's configuration, and
checked where it is known (`asked_texts`).
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, StrictBool, WithJsonSchema

from jobs.config import ServeConfig
from jobs.service.errors import InvalidInput
from refbert.corpus import Text
from refbert.memory.reader import ReferenceRead
from vector_store.schema import parts

TokenIds: TypeAlias = tuple[int, ...]
"""A text as ids of the student's tokenizer, without special tokens."""

Asked: TypeAlias = Text | TokenIds
"""One of the things a request asks for."""

NOTHING = r"\u0000-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space and control characters, in a regular expression's brackets."""
NO_NULL, SOMETHING = r"[^\u0000]*", f"[^{NOTHING}]"

STRING: dict[str, Any] = {"type": "string", "minLength": 1, "pattern": f"^{NO_NULL}{SOMETHING}{NO_NULL}$"}
IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
PAIR: dict[str, Any] = {"type": "array", "items": STRING, "minItems": 2, "maxItems": 2}
ONE: dict[str, Any] = {"anyOf": [STRING, PAIR]}
MANY: dict[str, Any] = {"type": "array", "items": {"anyOf": [STRING, PAIR, IDS]}, "minItems": 1}

WANTED = "wanted a text, a list of texts or pairs of texts, a list of token ids, or a list of such lists"


def _inputs(given: Any) -> list[Asked]:
    """Tell apart what OpenAI's `input` may be, and the pairs that it may not."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list):
        raise ValueError(WANTED)
    if given and all(map(_is_id, given)):
        return [tuple(map(int, given))]
    return [_asked(one) for one in given]


def _asked(given: Any) -> Asked:
    if isinstance(given, str):
        return given
    if isinstance(given, list) and given:
        if all(map(_is_id, given)):
            return tuple(map(int, given))
        if len(given) == 2 and all(isinstance(part, str) for part in given):
            return given[0], given[1]
    raise ValueError(WANTED)


def _is_id(given: Any) -> bool:
    """Whether JSON calls this an integer: 5 and 5.0 are, true is not."""
    return (isinstance(given, int) and not isinstance(given, bool)) or (isinstance(given, float) and given.is_integer())


def _integer(given: Any) -> Any:
    if given is not None and not _is_id(given):
        raise ValueError("wanted a whole number")
    return given


def _text(given: Any) -> Text:
    asked = _asked(given)
    if not is_text(asked):
        raise ValueError("wanted a text or a pair of texts")
    return asked  # type: ignore[return-value]


def is_text(asked: Asked) -> bool:
    """Whether this is a text or a pair, not token ids."""
    return isinstance(asked, str) or isinstance(asked[0], str)


Inputs = Annotated[
    list[Asked],
    PlainValidator(_inputs),
    WithJsonSchema({"anyOf": [STRING, MANY, IDS], "description": "One text, several, pairs, or token ids."}),
]
OneText = Annotated[Text, PlainValidator(_text), WithJsonSchema({**ONE, "description": "A text or a pair of texts."})]


def asked_texts(asked: Sequence[Asked], config: ServeConfig, vocabulary: int) -> list[Asked]:
    """Check what one request asks for against the service's limits. Raises InvalidInput, naming the text by its place."""
    if not 1 <= len(asked) <= config.max_texts:
        raise InvalidInput(f"got {len(asked)} texts, wanted 1 to {config.max_texts}")
    for place, one in enumerate(asked):
        if not is_text(one):
            if not all(0 <= token < vocabulary for token in one):  # type: ignore[operator]
                raise InvalidInput(f"text {place} has a token id outside 0 to {vocabulary - 1}")
            if len(one) > config.max_characters:
                raise InvalidInput(f"text {place} has {len(one)} token ids, wanted {config.max_characters} at most")
            continue
        for part in parts(one):  # type: ignore[arg-type]
            if len(part) > config.max_characters:
                raise InvalidInput(f"text {place} has {len(part)} characters, wanted {config.max_characters} at most")
            if not re.search(SOMETHING, part):
                raise InvalidInput(f"text {place} is empty")
            if "\0" in part:
                raise InvalidInput(f"text {place} holds a null byte")
            try:
                part.encode()
            except UnicodeEncodeError:
                raise InvalidInput(f"text {place} holds half a surrogate pair, which no UTF-8 can") from None
    return list(asked)


class Request(BaseModel, extra="forbid"):
    """What every request may say."""

    input: Inputs
    model: str | None = Field(
        None, description="Taken and not looked at: a service has one student, named in the answer."
    )
    user: str | None = Field(None, description="Taken and not looked at.")
    explain: StrictBool = Field(
        False, description="Also say which references each text read, and with how much attention."
    )


class EmbeddingRequest(Request, extra="forbid"):
    """OpenAI's request: one text or several, of which each may be a pair, `[["a text", "its second"]]`."""

    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: little-endian float32, four fifths fewer bytes and no numbers to parse."
    )
    dimensions: Annotated[int | None, BeforeValidator(_integer)] = Field(
        None, ge=1, description="The student's own number, or nothing: its vectors cannot be cut short."
    )


class ClassifyRequest(Request, extra="forbid"):
    """One text or several to label."""


class SimilarityRequest(BaseModel, extra="forbid"):
    """One text and those that it is compared with."""

    source: OneText
    input: Inputs
    model: str | None = None
    explain: StrictBool = False


class ExplainRequest(BaseModel, extra="forbid"):
    """One text to explain."""

    input: OneText


class AttendedReference(ReferenceRead):
    """A reference that a text read, and the share of each reading layer's attention that fell on it (heads' mean)."""

    attention_mass: dict[str, float]


class Usage(BaseModel):
    """Tokens read, special ones included; of a text that is too long, those that were left."""

    prompt_tokens: int
    total_tokens: int


class Timing(BaseModel):
    """The slowest batch that the request's texts were in, milliseconds."""

    queue: float
    lookup: float
    student: float


class Embedding(BaseModel):
    """One text's vector in the teacher's space, L2-normalised."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    reference: AttendedReference | None = Field(None, description="The best of those that the text read.")
    further_references: list[AttendedReference] | None = Field(
        None, description="The others, where references.count > 1."
    )


class EmbeddingResponse(BaseModel):
    """OpenAI's answer, and how long look-up and student took."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage
    timing_ms: Timing


class Classification(BaseModel):
    """One text's label, its score and those of all labels: probabilities, or a regression's number."""

    index: int
    label: str
    score: float
    scores: dict[str, float]
    reference: AttendedReference | None = None
    further_references: list[AttendedReference] | None = None


class ClassifyResponse(BaseModel):
    """Labels in the texts' order."""

    object: Literal["list"] = "list"
    data: list[Classification]
    model: str
    usage: Usage
    timing_ms: Timing


class Similarity(BaseModel):
    """How like the source one text is: the cosine of their vectors."""

    index: int
    similarity: float
    reference: AttendedReference | None = None
    further_references: list[AttendedReference] | None = None


class SimilarityResponse(BaseModel):
    """Similarities in the texts' order."""

    object: Literal["list"] = "list"
    data: list[Similarity]
    model: str
    usage: Usage
    timing_ms: Timing


class Explanation(BaseModel):
    """One text explained. Layers by number, or `read-out`; masses are shares of a layer's attention."""

    text: Text
    tokens: list[str]
    references: list[dict[str, Any]] = Field(
        description="What was read, best first: tokens, mass by layer and by token."
    )
    layers: list[dict[str, Any]] = Field(description="How each reading layer divided its attention.")
    strongest_layer: int | str | None
    heat: dict[str, Any] | None = Field(
        description="The strongest layer's mass of each own token on each reference token."
    )
    without_references: dict[str, Any] = Field(description="How far the answer moves when nothing is read.")
    labels: dict[str, dict[str, float]] | None = Field(description="A classifier's answer with references and without.")
    nearest: list[dict[str, Any]] = Field(description="Stored texts, by cosine with the text's vector.")
    model: str
    timing_ms: Timing


class Model(BaseModel):
    """The student that answers."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "refbert"
    dimensions: int
    max_tokens: int
    labels: list[str] | None
    reads_references: bool


class ModelList(BaseModel):
    """OpenAI's list; it has one."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """That the replica's process answers."""

    status: Literal["ok"] = "ok"
    model: str


class Readiness(BaseModel):
    """Whether the replica takes requests, and whether it answers from its memory. `degraded` costs quality, no answer."""

    status: Literal["ready", "degraded"]
    model: str
    memory: Literal["ok", "away", "refused", "none"]
    reason: str | None = None


class ErrorDetail(BaseModel):
    """One line, and what the log calls the request."""

    message: str
    type: str
    request_id: str


class ErrorResponse(BaseModel):
    """Every answer that is none."""

    error: ErrorDetail
