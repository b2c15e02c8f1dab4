"""What a request may hold as its texts: texts, pairs of texts, marked token ids, or documents to rerank.

The types here parse JSON. `checked_inputs`, for gRPC too, applies the limits that are the service's configuration (how many
texts, of how many characters or ids), and refuses empty texts, null bytes, lone surrogates and ids outside the vocabulary.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from jobs.sections import ServeConfig
from jobs.service.errors import InvalidInput
from refbert.passages import Text
from vector_store.schema import parts

TokenIds: TypeAlias = tuple[int, ...]
"""A text as ids of the student's tokenizer, without special tokens."""

TextInput: TypeAlias = Text | TokenIds
"""One of a request's inputs."""

NOTHING = r"\u0000-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space and control characters, in a regular expression's brackets."""
NO_NULL, SOMETHING = r"[^\u0000]*", f"[^{NOTHING}]"

STRING: dict[str, Any] = {"type": "string", "minLength": 1, "pattern": f"^{NO_NULL}{SOMETHING}{NO_NULL}$"}
IDS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "token_ids": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0},
            "minItems": 1,
            "description": "Ids of this student's own tokenizer, without special tokens.",
        }
    },
    "required": ["token_ids"],
    "additionalProperties": False,
}
PAIR: dict[str, Any] = {"type": "array", "items": STRING, "minItems": 2, "maxItems": 2}
ONE: dict[str, Any] = {"anyOf": [STRING, PAIR]}
MANY: dict[str, Any] = {"type": "array", "items": {"anyOf": [STRING, PAIR, IDS]}, "minItems": 1}

WANTED = 'wanted a text, a list of texts or pairs of texts, or token ids as {"token_ids": [...]}'

WHOSE_IDS = (
    "bare token ids are refused: most clients send another tokenizer's, which are other words here; send texts (LangChain: "
    'OpenAIEmbeddings(check_embedding_ctx_length=False)), or ids of this student\'s own tokenizer as {"token_ids": [...]}'
)
"""Clients of OpenAI's embeddings tokenize for it unless told otherwise."""


def _inputs(given: Any) -> list[TextInput]:
    """Parse OpenAI's `input`, with pairs and marked ids, which OpenAI does not have, and without its bare ids."""
    if isinstance(given, str | dict):
        return [_input(given)]
    if not isinstance(given, list):
        raise ValueError(WANTED)
    if given and all(map(_is_id, given)):
        raise ValueError(WHOSE_IDS)
    return [_input(one) for one in given]


def _input(given: Any) -> TextInput:
    if isinstance(given, str):
        return given
    if isinstance(given, dict) and given.keys() == {"token_ids"}:
        ids = given["token_ids"]
        if isinstance(ids, list) and ids and all(map(_is_id, ids)):
            return tuple(map(int, ids))
    if isinstance(given, list) and given:
        if all(map(_is_id, given)):
            raise ValueError(WHOSE_IDS)
        if len(given) == 2 and all(isinstance(part, str) for part in given):
            return given[0], given[1]
    raise ValueError(WANTED)


def _is_id(given: Any) -> bool:
    """Whether JSON calls this an integer: 5 and 5.0 are, true is not."""
    return (isinstance(given, int) and not isinstance(given, bool)) or (isinstance(given, float) and given.is_integer())


def integer(given: Any) -> Any:
    """Refuse what JSON calls no integer; None is let through. Raises ValueError."""
    if given is not None and not _is_id(given):
        raise ValueError("wanted a whole number")
    return given


def _query(given: Any) -> str:
    if not isinstance(given, str):
        raise ValueError("wanted a text")
    return given


def _text(given: Any) -> Text:
    parsed = _input(given)
    if not is_text(parsed):
        raise ValueError("wanted a text or a pair of texts")
    return parsed  # type: ignore[return-value]


def _documents(given: Any) -> list[dict[str, Any]]:
    """Parse the documents to rank: texts, or objects with a `text`, whose other fields come back unread."""
    wanted = 'wanted a list of texts, or of objects such as {"text": "..."}'
    if not isinstance(given, list):
        raise ValueError(wanted)
    documents = [{"text": one} if isinstance(one, str) else one for one in given]
    if not all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in documents):
        raise ValueError(wanted)
    return documents


def is_text(given: TextInput) -> bool:
    """Return whether an input is a text or a pair, not token ids."""
    return isinstance(given, str) or isinstance(given[0], str)


Inputs = Annotated[
    list[TextInput],
    PlainValidator(_inputs),
    WithJsonSchema(
        {
            "anyOf": [STRING, MANY, IDS],
            "description": "One text, several, pairs, or marked ids of the student's tokenizer.",
        }
    ),
]
Documents = Annotated[
    list[dict[str, Any]],
    PlainValidator(_documents),
    WithJsonSchema(
        {
            "type": "array",
            "items": {"anyOf": [STRING, {"type": "object", "properties": {"text": STRING}, "required": ["text"]}]},
            "minItems": 1,
            "description": "Texts, or objects with a `text`.",
        }
    ),
]
Query = Annotated[str, PlainValidator(_query), WithJsonSchema({**STRING, "description": "A text."})]
TruncatedTokens = Annotated[
    Annotated[int, Field(ge=-1)] | None,
    BeforeValidator(integer),
    Field(description="vLLM's. Texts are cut at this student's tokens: -1, so many or more. Less is refused."),
]
OneText = Annotated[Text, PlainValidator(_text), WithJsonSchema({**ONE, "description": "A text or a pair of texts."})]


def checked_inputs(inputs: Sequence[TextInput], config: ServeConfig, vocabulary: int) -> list[TextInput]:
    """Check one request's inputs against the service's limits. Raises InvalidInput, which names a text by its place."""
    if not 1 <= len(inputs) <= config.max_texts:
        raise InvalidInput(f"got {len(inputs)} texts, wanted 1 to {config.max_texts}")
    for place, one in enumerate(inputs):
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
    return list(inputs)
