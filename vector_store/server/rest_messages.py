"""Qdrant's REST calls as its gRPC calls: which is which, a body of JSON to the request, the response to JSON.

Values are converted by qdrant-client's own conversions, with which its two modes agree. Where one of these would leave a part
of a body out, that body is refused here first: what a body says is honoured or named. Sends and receives nothing; checks no key
and opens no collection.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple, Union, cast

import grpc
from google.protobuf.message import DecodeError, Message
from pydantic import BaseModel, StrictFloat, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from qdrant_client.conversions.conversion import (
    GrpcToRest,
    RestToGrpc,
    grpc_payload_schema_to_field_type,
)
from qdrant_client.http import models as rest

from vector_store.protocol import api
from vector_store.server.status import StatusError, invalid, too_large

FIELD_CONDITIONS = tuple(name for name in rest.FieldCondition.model_fields if name != "key")
"""Of these a condition on a field has one: the conversion takes the first and leaves out the others."""


class Asked(NamedTuple):
    """What a REST call says: names in its path, its body, and the parameters behind `?` that the request has fields for."""

    names: Mapping[str, str]
    body: Any = None
    parameters: Mapping[str, Any] = {}


class RestCall(NamedTuple):
    """One REST call: how it is told, which gRPC call it is, and both ways of conversion.

    `body` is the type of its body, None where it has none; `ignored` are parameters without an effect.
    """

    verb: str
    path: str
    method: str
    request: Callable[[Asked], Message]
    result: Callable[[Any], Any]
    body: Any = None
    ignored: tuple[str, ...] = ()


# ---------------------------------------------------------------- JSON to a request


def grpc_request(
    call: RestCall, names: Mapping[str, str], content: bytes, query: Iterable[tuple[str, str]], most_bytes: int
) -> Message:
    """The gRPC request of a REST call; StatusError, in one line, where it is not one.

    The request has been through its bytes, so that it holds nothing that gRPC would not let in: more than `most_bytes` of
    them, deeper nesting, other strings.
    """
    try:
        body = _parsed(call.body, content) if call.body is not None else None
        _require_unambiguous(body)
        request = call.request(Asked(names, body))
        _set_parameters(request, query, call.ignored)
        sent = request.SerializeToString()
        if len(sent) > most_bytes:
            raise too_large(type(request).__name__, len(sent), most_bytes)
        return type(request).FromString(sent)
    except (DecodeError, RecursionError) as error:
        raise invalid("the request is nested too deeply") from error
    except (ValueError, TypeError) as error:  # so the conversions, and protobuf's fields, refuse a value
        raise invalid(_line(str(error))) from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _parsed(kind: Any, content: bytes) -> Any:
    """A body of JSON as the client's models; StatusError that names the first thing that is wrong with it."""
    try:
        return _adapter(kind).validate_json(content)
    except ValidationError as error:
        raise invalid(f"Format error in JSON body: {_complaint(error, content)}") from None


def _complaint(error: ValidationError, content: bytes) -> str:
    """The complaint that a caller can use: of a body's alternatives that of the one it is like, and there the deepest."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    if errors[0]["type"] == "json_invalid":
        return str(errors[0]["msg"])
    body = from_json(content)
    alternatives: dict[int | str, list[tuple[list[int | str], Any]]] = {}
    for each in errors:
        alternatives.setdefault((each["loc"] or ("",))[0], []).append((_place(body, each["loc"]), each))
    likest = min(alternatives.values(), key=lambda found: sum(_is_of_shape(*one) for one in found))
    place, first = max(likest, key=lambda one: len(one[0]))
    where = ".".join(map(str, place))
    match first["type"]:
        case "extra_forbidden":
            return f"unknown field `{where}`"
        case "missing":
            return f"missing field `{'.'.join([*map(str, place), str(first['loc'][-1])])}`"
        case _:
            return f"{where or 'the body'}: {first['msg']}"


def _is_of_shape(place: list[int | str], complaint: Any) -> bool:
    """Whether a complaint is about which fields a body has, and not about what is in one."""
    return len(place) <= 1 and complaint["type"] in ("extra_forbidden", "missing")


def _place(body: Any, location: tuple[int | str, ...]) -> list[int | str]:
    """The keys and numbers of a location that lead into the body; the others name alternatives."""
    place: list[int | str] = []
    for step in location:
        try:
            body = body[step]
        except (KeyError, IndexError, TypeError):
            continue
        place.append(step)
    return place


def _require_unambiguous(value: Any) -> None:
    """StatusError for what a conversion would leave out in silence, wherever in a body it stands."""
    match value:
        case list():
            if value and isinstance(value[0], BaseModel | list):  # vectors hold neither
                for item in value:
                    _require_unambiguous(item)
            return
        case rest.PointStruct() | rest.Batch():
            return
        case rest.FieldCondition():
            _require_one(value, FIELD_CONDITIONS, f"the condition on {value.key!r}")
        case rest.SetPayload() | rest.DeletePayload() | rest.DeleteVectors():
            _require_one(value, ("points", "filter"), type(value).__name__)
        case BaseModel():
            pass
        case _:
            return
    for inner in value.__dict__.values():
        if isinstance(inner, BaseModel | list):
            _require_unambiguous(inner)


def _require_one(model: BaseModel, fields: tuple[str, ...], what: str) -> None:
    given = [name for name in fields if getattr(model, name) is not None]
    if len(given) != 1:
        raise invalid(f"{what} has {' and '.join(given) or 'none'} of {', '.join(fields)}; give one")


class _Parameters(BaseModel, extra="forbid"):
    """What may stand behind a call's `?`."""

    wait: bool | None = None
    ordering: rest.WriteOrdering | None = None
    consistency: Union[int, rest.ReadConsistencyType, None] = None  # noqa: UP007  (as the client's models declare it)
    timeout: int | None = None


_PARAMETERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "wait": ("wait", bool),
    "ordering": ("ordering", RestToGrpc.convert_write_ordering),
    "consistency": ("read_consistency", RestToGrpc.convert_read_consistency),
    "timeout": ("timeout", int),
}
"""The field of a request that each parameter sets, and how it is converted."""


def _set_parameters(request: Message, query: Iterable[tuple[str, str]], ignored: tuple[str, ...]) -> None:
    for name, text in query:
        field, converted = _PARAMETERS.get(name, (name, str))
        if name in ignored:
            continue
        if name not in _PARAMETERS or field not in request.DESCRIPTOR.fields_by_name:
            raise invalid(f"unknown parameter `{name}` of {type(request).__name__}")
        try:
            value = converted(getattr(_Parameters.model_validate({name: text}), name))
        except ValidationError as error:
            raise invalid(f"parameter {name}={text[:100]!r}: {error.errors()[0]['msg']}") from None
        if isinstance(value, Message):
            getattr(request, field).CopyFrom(value)
        else:
            setattr(request, field, value)


def _line(text: str, longest: int = 300) -> str:
    """The text in one line; values of a body, which conversions put into their errors, are cut off."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[:longest]}..."


def _maybe(convert: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else convert(value)


def _named(message: Any, **fields: Any) -> Callable[[Asked], Message]:
    """Makes a request of the names in the path: `fields` say which field has which."""
    return lambda asked: message(**{field: asked.names[name] for field, name in fields.items()})


def _create(asked: Asked) -> Message:
    body: rest.CreateCollection = asked.body
    return api.CreateCollection(
        collection_name=asked.names["collection"],
        vectors_config=_maybe(RestToGrpc.convert_vectors_config, body.vectors),
        sparse_vectors_config=_maybe(RestToGrpc.convert_sparse_vector_config, body.sparse_vectors),
        hnsw_config=_maybe(RestToGrpc.convert_hnsw_config_diff, body.hnsw_config),
        optimizers_config=_maybe(RestToGrpc.convert_optimizers_config_diff, body.optimizers_config),
        wal_config=_maybe(RestToGrpc.convert_wal_config_diff, body.wal_config),
        quantization_config=_maybe(RestToGrpc.convert_quantization_config, body.quantization_config),
        strict_mode_config=_maybe(RestToGrpc.convert_strict_mode_config, body.strict_mode_config),
        sharding_method=_maybe(RestToGrpc.convert_sharding_method, body.sharding_method),
        payload=_maybe(RestToGrpc.convert_payload_storage_params, body.payload),
        id_tracker=_maybe(RestToGrpc.convert_id_tracker_params, body.id_tracker),
        metadata=_maybe(RestToGrpc.convert_payload, body.metadata),
        shard_number=body.shard_number,
        replication_factor=body.replication_factor,
        write_consistency_factor=body.write_consistency_factor,
        on_disk_payload=body.on_disk_payload,
    )


def _update(asked: Asked) -> Message:
    body: rest.UpdateCollection = asked.body
    return api.UpdateCollection(
        collection_name=asked.names["collection"],
        vectors_config=_maybe(RestToGrpc.convert_vectors_config_diff, body.vectors),
        sparse_vectors_config=_maybe(RestToGrpc.convert_sparse_vector_config, body.sparse_vectors),
        hnsw_config=_maybe(RestToGrpc.convert_hnsw_config_diff, body.hnsw_config),
        optimizers_config=_maybe(RestToGrpc.convert_optimizers_config_diff, body.optimizers_config),
        quantization_config=_maybe(RestToGrpc.convert_quantization_config_diff, body.quantization_config),
        strict_mode_config=_maybe(RestToGrpc.convert_strict_mode_config, body.strict_mode_config),
        params=_maybe(RestToGrpc.convert_collection_params_diff, body.params),
        metadata=_maybe(RestToGrpc.convert_payload, body.metadata),
    )


def _change_aliases(asked: Asked) -> Message:
    return api.ChangeAliases(actions=[RestToGrpc.convert_alias_operations(action) for action in asked.body.actions])


def _create_index(asked: Asked) -> Message:
    body: rest.CreateFieldIndex = asked.body
    request = api.CreateFieldIndexCollection(collection_name=asked.names["collection"], field_name=body.field_name)
    schema = body.field_schema
    if schema is None:
        raise invalid("field_schema is missing: the embedded server does not guess a field's type")
    kind = schema if isinstance(schema, rest.PayloadSchemaType) else rest.PayloadSchemaType(schema.type)
    request.field_type = cast(Any, grpc_payload_schema_to_field_type(RestToGrpc.convert_payload_schema_type(kind)))
    if not isinstance(schema, rest.PayloadSchemaType):
        request.field_index_params.CopyFrom(RestToGrpc.convert_payload_schema_params(schema))
        text = request.field_index_params.text_index_params
        if isinstance(schema, rest.TextIndexParams) and schema.tokenizer is None:
            text.tokenizer = api.TokenizerType.Word  # REST's default; gRPC has none
    return request


def _upsert(asked: Asked) -> Message:
    body: rest.PointsList | rest.PointsBatch = asked.body
    return api.UpsertPoints(
        collection_name=asked.names["collection"],
        points=RestToGrpc.convert_point_insert_operation(body),
        shard_key_selector=_maybe(RestToGrpc.convert_shard_key_selector, body.shard_key),
        update_filter=_maybe(RestToGrpc.convert_filter, body.update_filter),
        update_mode=_maybe(RestToGrpc.convert_update_mode, body.update_mode),
    )


def _delete(asked: Asked) -> Message:
    body: rest.PointIdsList | rest.FilterSelector = asked.body
    return api.DeletePoints(
        collection_name=asked.names["collection"],
        points=RestToGrpc.convert_points_selector(body),
        shard_key_selector=_maybe(RestToGrpc.convert_shard_key_selector, body.shard_key),
    )


def _set_payload(asked: Asked) -> Message:
    return api.SetPayloadPoints(
        payload=RestToGrpc.convert_payload(asked.body.payload), key=asked.body.key, **_selection(asked)
    )


def _delete_payload(asked: Asked) -> Message:
    return api.DeletePayloadPoints(keys=asked.body.keys, **_selection(asked))


def _selection(asked: Asked) -> dict[str, Any]:
    body: rest.SetPayload | rest.DeletePayload = asked.body
    selector = (
        rest.PointIdsList(points=body.points) if body.points is not None else rest.FilterSelector(filter=body.filter)
    )
    return {
        "collection_name": asked.names["collection"],
        "points_selector": RestToGrpc.convert_points_selector(selector),
        "shard_key_selector": _maybe(RestToGrpc.convert_shard_key_selector, body.shard_key),
    }


def _update_batch(asked: Asked) -> Message:
    operations = [RestToGrpc.convert_update_operation(operation) for operation in asked.body.operations]
    return api.UpdateBatchPoints(collection_name=asked.names["collection"], operations=operations)


def _get(asked: Asked) -> Message:
    body: rest.PointRequest = asked.body
    return api.GetPoints(
        collection_name=asked.names["collection"],
        ids=[RestToGrpc.convert_extended_point_id(each) for each in body.ids],
        with_payload=RestToGrpc.convert_with_payload_interface(
            True if body.with_payload is None else body.with_payload  # REST's default; gRPC's is none
        ),
        with_vectors=_maybe(RestToGrpc.convert_with_vectors, body.with_vector),
        shard_key_selector=_maybe(RestToGrpc.convert_shard_key_selector, body.shard_key),
    )


def _get_one(asked: Asked) -> Message:
    point = asked.names["point"]
    number = int(point) if point.isascii() and point.isdecimal() and len(point) <= 20 else point
    return api.GetPoints(
        collection_name=asked.names["collection"],
        ids=[RestToGrpc.convert_extended_point_id(number)],
        with_payload=api.WithPayloadSelector(enable=True),
        with_vectors=api.WithVectorsSelector(enable=True),
    )


def _scroll(asked: Asked) -> Message:
    body: rest.ScrollRequest = asked.body
    return api.ScrollPoints(
        collection_name=asked.names["collection"],
        filter=_maybe(RestToGrpc.convert_filter, body.filter),
        offset=_maybe(RestToGrpc.convert_extended_point_id, body.offset),
        limit=body.limit,
        with_payload=_maybe(RestToGrpc.convert_with_payload_interface, body.with_payload),
        with_vectors=_maybe(RestToGrpc.convert_with_vectors, body.with_vector),
        order_by=_maybe(RestToGrpc.convert_order_by_interface, body.order_by),
        shard_key_selector=_maybe(RestToGrpc.convert_shard_key_selector, body.shard_key),
    )


def _count(asked: Asked) -> Message:
    body: rest.CountRequest = asked.body
    return api.CountPoints(
        collection_name=asked.names["collection"],
        filter=_maybe(RestToGrpc.convert_filter, body.filter),
        exact=body.exact,
        shard_key_selector=_maybe(RestToGrpc.convert_shard_key_selector, body.shard_key),
    )


def _query(asked: Asked) -> Message:
    return RestToGrpc.convert_query_request(asked.body, asked.names["collection"])


class _NamedVector(BaseModel, extra="forbid"):
    name: str
    vector: list[StrictFloat] | rest.SparseVector


class _Search(BaseModel, extra="forbid"):
    """Body of `points/search`, of which Qdrant's client has no model any more, and others still send."""

    vector: list[StrictFloat] | _NamedVector
    shard_key: rest.ShardKeySelector | None = None
    filter: rest.Filter | None = None
    params: rest.SearchParams | None = None
    limit: int | None = None
    offset: int | None = None
    with_payload: rest.WithPayloadInterface | None = None
    with_vector: rest.WithVector | None = None
    score_threshold: float | None = None

    def as_query(self) -> rest.QueryRequest:
        """The query that it is."""
        named = _NamedVector(name="", vector=self.vector) if isinstance(self.vector, list) else self.vector
        return rest.QueryRequest(
            query=named.vector, using=named.name or None, **{name: getattr(self, name) for name in _SEARCH_FIELDS}
        )


_SEARCH_FIELDS = tuple(name for name in _Search.model_fields if name != "vector")


class _SearchBatch(BaseModel, extra="forbid"):
    searches: list[_Search]


def _search(asked: Asked) -> Message:
    return _query(asked._replace(body=asked.body.as_query()))


def _search_batch(asked: Asked) -> Message:
    queries = [search.as_query() for search in asked.body.searches]
    return _query_batch(asked._replace(body=rest.QueryRequestBatch(searches=queries)))


def _query_batch(asked: Asked) -> Message:
    name = asked.names["collection"]
    queries = [RestToGrpc.convert_query_request(query, name) for query in asked.body.searches]
    return api.QueryBatchPoints(collection_name=name, query_points=queries)


# ---------------------------------------------------------------- a response to JSON


def json_response(result: Any, time_s: float) -> bytes:
    """The body of an answer, as Qdrant gives it."""
    return to_json({"result": result, "status": "ok", "time": time_s}, by_alias=True, exclude_none=True)


def json_error(message: str, time_s: float) -> bytes:
    """The body of an error, as Qdrant gives it."""
    return to_json({"status": {"error": message}, "time": time_s})


def version(reply: api.HealthCheckReply) -> bytes:
    """The body of `/`: which server this is."""
    return to_json(GrpcToRest.convert_health_check_reply(reply), exclude_none=True)


def _done(response: Any) -> Any:
    return response.result


def _updated(response: Any) -> Any:
    return GrpcToRest.convert_update_result(response.result)


def _aliases(response: api.ListAliasesResponse) -> Any:
    return {"aliases": [GrpcToRest.convert_alias_description(alias) for alias in response.aliases]}


def _records(response: Any) -> list[Any]:
    return [GrpcToRest.convert_retrieved_point(point) for point in response.result]


def _one_record(response: api.GetResponse) -> Any:
    records = _records(response)
    if not records:
        raise StatusError(grpc.StatusCode.NOT_FOUND, "Not found: Point does not exist!")
    return records[0]


def _page(response: api.ScrollResponse) -> Any:
    offset = GrpcToRest.convert_point_id(response.next_page_offset) if response.HasField("next_page_offset") else None
    return {"points": _records(response), "next_page_offset": offset}


def _scored(response: Any) -> list[Any]:
    return [GrpcToRest.convert_scored_point(point) for point in response.result]


def _found(response: Any) -> Any:
    return {"points": _scored(response)}


def _snapshots(response: api.ListSnapshotsResponse) -> Any:
    return [GrpcToRest.convert_snapshot_description(each) for each in response.snapshot_descriptions]


# ---------------------------------------------------------------- the calls

_COLLECTION = "/collections/{collection}"
_POINTS = f"{_COLLECTION}/points"
_SNAPSHOTS = f"{_COLLECTION}/snapshots"

CALLS = (
    RestCall("GET", "/collections", "Collections/List", _named(api.ListCollectionsRequest),
             lambda answer: {"collections": [GrpcToRest.convert_collection_description(c) for c in answer.collections]}),
    RestCall("GET", _COLLECTION, "Collections/Get", _named(api.GetCollectionInfoRequest, collection_name="collection"),
             lambda answer: GrpcToRest.convert_collection_info(answer.result)),
    RestCall("GET", f"{_COLLECTION}/exists", "Collections/CollectionExists",
             _named(api.CollectionExistsRequest, collection_name="collection"),
             lambda answer: {"exists": answer.result.exists}),
    RestCall("PUT", _COLLECTION, "Collections/Create", _create, _done, rest.CreateCollection),
    RestCall("PATCH", _COLLECTION, "Collections/Update", _update, _done, rest.UpdateCollection),
    RestCall("DELETE", _COLLECTION, "Collections/Delete", _named(api.DeleteCollection, collection_name="collection"), _done),
    RestCall("POST", "/collections/aliases", "Collections/UpdateAliases", _change_aliases, _done, rest.ChangeAliasesOperation),
    RestCall("GET", "/aliases", "Collections/ListAliases", _named(api.ListAliasesRequest), _aliases),
    RestCall("GET", f"{_COLLECTION}/aliases", "Collections/ListCollectionAliases",
             _named(api.ListCollectionAliasesRequest, collection_name="collection"), _aliases),
    RestCall("PUT", f"{_COLLECTION}/index", "Points/CreateFieldIndex", _create_index, _updated, rest.CreateFieldIndex),
    RestCall("DELETE", f"{_COLLECTION}/index/{{field}}", "Points/DeleteFieldIndex",
             _named(api.DeleteFieldIndexCollection, collection_name="collection", field_name="field"), _updated),
    RestCall("PUT", _POINTS, "Points/Upsert", _upsert, _updated, rest.PointInsertOperations),
    RestCall("POST", _POINTS, "Points/Get", _get, _records, rest.PointRequest),
    RestCall("GET", f"{_POINTS}/{{point}}", "Points/Get", _get_one, _one_record),
    RestCall("POST", f"{_POINTS}/delete", "Points/Delete", _delete, _updated, rest.PointsSelector),
    RestCall("POST", f"{_POINTS}/payload", "Points/SetPayload", _set_payload, _updated, rest.SetPayload),
    RestCall("POST", f"{_POINTS}/payload/delete", "Points/DeletePayload", _delete_payload, _updated, rest.DeletePayload),
    RestCall("POST", f"{_POINTS}/batch", "Points/UpdateBatch", _update_batch,
             lambda answer: [GrpcToRest.convert_update_result(each) for each in answer.result], rest.UpdateOperations),
    RestCall("POST", f"{_POINTS}/scroll", "Points/Scroll", _scroll, _page, rest.ScrollRequest),
    RestCall("POST", f"{_POINTS}/count", "Points/Count", _count,
             lambda answer: GrpcToRest.convert_count_result(answer.result), rest.CountRequest),
    RestCall("POST", f"{_POINTS}/query", "Points/Query", _query, _found, rest.QueryRequest),
    RestCall("POST", f"{_POINTS}/query/batch", "Points/QueryBatch", _query_batch,
             lambda answer: [_found(each) for each in answer.result], rest.QueryRequestBatch),
    RestCall("POST", f"{_POINTS}/search", "Points/Query", _search, _scored, _Search),
    RestCall("POST", f"{_POINTS}/search/batch", "Points/QueryBatch", _search_batch,
             lambda answer: [_scored(each) for each in answer.result], _SearchBatch),
    RestCall("GET", _SNAPSHOTS, "Snapshots/List", _named(api.ListSnapshotsRequest, collection_name="collection"), _snapshots),
    RestCall("POST", _SNAPSHOTS, "Snapshots/Create", _named(api.CreateSnapshotRequest, collection_name="collection"),
             lambda answer: GrpcToRest.convert_snapshot_description(answer.snapshot_description), ignored=("wait",)),
    RestCall("DELETE", f"{_SNAPSHOTS}/{{snapshot}}", "Snapshots/Delete",
             _named(api.DeleteSnapshotRequest, collection_name="collection", snapshot_name="snapshot"),
             lambda answer: True, ignored=("wait",)),
)  # fmt: skip
"""Every REST call that the embedded server answers; a snapshot is always waited for."""
