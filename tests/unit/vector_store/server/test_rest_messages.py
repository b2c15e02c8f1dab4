"""Nothing of a REST body is dropped in silence: over every field that the bodies of the calls declare."""

import types
import typing
import uuid
from datetime import date, datetime
from enum import Enum

import pytest
from pydantic import BaseModel
from pydantic_core import to_json
from qdrant_client.http import models as rest

from vector_store.server.rest_messages import CALLS, FIELD_CONDITIONS, grpc_request
from vector_store.server.status import StatusError

NAMES = {"collection": "c", "point": "1", "snapshot": "s", "field": "f"}
BYTES = 2**20

ONE_OF = {
    rest.FieldCondition: FIELD_CONDITIONS,
    rest.SetPayload: ("points", "filter"),
    rest.DeletePayload: ("points", "filter"),
    rest.DeleteVectors: ("points", "filter"),
}
"""Fields of which a body has exactly one."""

PLAIN = {
    bool: True, int: 1, float: 0.5, str: "a", typing.Any: "a", uuid.UUID: str(uuid.UUID(int=1)),
    datetime: "2026-01-01T00:00:00Z", date: "2026-01-01",
}  # fmt: skip


def alternatives(kind):
    """The types that a value may have, without None."""
    if typing.get_origin(kind) is typing.Annotated:
        return alternatives(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [one for each in typing.get_args(kind) if each is not type(None) for one in alternatives(each)]
    return [kind]


def least(kind):
    """A value with only what must be there."""
    kind = alternatives(kind)[0]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return [least(arguments[0])]
    if origin is dict:
        return {"a": least(arguments[1])}
    if not isinstance(kind, type) or kind in PLAIN:
        return PLAIN[kind]
    if issubclass(kind, Enum):
        return list(kind)[-1].value
    value = {name_of(kind, field): least(info.annotation) for field, info in required(kind)}
    for field in ONE_OF.get(kind, ())[:1]:
        value[field] = least(kind.model_fields[field].annotation)
    return value


def name_of(model, field):
    return model.model_fields[field].alias or field


def required(model):
    return [(field, info) for field, info in model.model_fields.items() if info.is_required()]


def pairs(kind, seen):
    """Values with and without one thing, for everything that a type declares; each model once."""
    for one in alternatives(kind):
        origin, arguments = typing.get_origin(one), typing.get_args(one)
        if origin is list:
            yield from (([more], [less], path) for more, less, path in pairs(arguments[0], seen))
        elif origin is dict:
            yield from (({"a": more}, {"a": less}, path) for more, less, path in pairs(arguments[1], seen))
        elif isinstance(one, type) and issubclass(one, BaseModel) and one not in seen:
            seen.add(one)
            yield from pairs_of_model(one, seen)


def pairs_of_model(model, seen):
    for field, info in model.model_fields.items():
        base = least(model)
        name = name_of(model, field)
        if field in ONE_OF.get(model, ()):
            for other in ONE_OF[model]:
                base.pop(other, None)
        path = f"{model.__name__}.{field}"
        for one in () if info.is_required() else alternatives(info.annotation):
            value = not info.default if one is bool and info.default is not None else least(one)
            yield {**base, name: value}, base, path
        for more, less, inner in pairs(info.annotation, seen):
            yield {**base, name: more}, {**base, name: less}, inner


def outcome(call, body):
    try:
        return grpc_request(call, NAMES, to_json(body), [], BYTES).SerializeToString(deterministic=True)
    except StatusError as error:
        return str(error)


WITH_BODY = pytest.mark.parametrize(
    "call", [pytest.param(call, id=f"{call.verb} {call.path}") for call in CALLS if call.body is not None]
)


@WITH_BODY
def test_every_field_of_a_body_is_in_the_request_or_refused(call):
    seen, told, malformed = set(), set(), {}
    for more, less, path in pairs(call.body, set()):
        seen.add(path)
        found = outcome(call, more)
        if "Format error" in str(found):
            malformed[path] = found
        if found != outcome(call, less):  # of one of its types: some values are what stands there by default
            told.add(path)
    assert not malformed
    assert not seen - told
