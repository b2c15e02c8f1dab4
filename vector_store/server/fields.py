"""Which fields of a request the embedded server honours, or need not act on; any other that is set is refused by name.

Closed by default: `require_known` walks over what a request has set, and a field that is in no table here, such as one that a
later release of Qdrant's messages adds, ends the call. Not walked over are the messages in MATCHED: those that are converted by
exhaustive matches (points, vectors, values, filters), and those that have no effect here.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from vector_store.server.status import invalid, unimplemented

ANY_TIME = ("wait", "ordering", "timeout")
"""Of a write: it is in the log before it is answered, in the order of arrival, within the caller's own deadline."""

ANY_COPY = ("read_consistency", "timeout")
"""Of a read: there is one copy."""

HNSW = ("m", "ef_construct", "full_scan_threshold", "on_disk", "payload_m")
OPTIMIZERS = (
    "deleted_threshold", "vacuum_min_vector_number", "default_segment_number", "max_segment_size", "indexing_threshold",
)  # fmt: skip
"""The fields of OptimizersConfigDiff that the engine supports."""

INDEX = ("on_disk", "enable_hnsw", "memory", "nested")

HONOURED: dict[str, tuple[str, ...]] = {
    "HealthCheckRequest": (),
    "CreateCollection": (
        "collection_name", "hnsw_config", "optimizers_config", "shard_number", "on_disk_payload", "timeout",
        "vectors_config", "replication_factor", "write_consistency_factor", "sparse_vectors_config", "metadata",
    ),
    "UpdateCollection": ("collection_name", "optimizers_config", "timeout", "hnsw_config", "metadata"),
    "HnswConfigDiff": HNSW,
    "OptimizersConfigDiff": OPTIMIZERS,
    "VectorsConfig": ("params", "params_map"),
    "VectorParamsMap": ("map",),
    "VectorParams": ("size", "distance", "hnsw_config", "on_disk", "datatype", "multivector_config", "quantization_config"),
    "QuantizationConfig": ("scalar",),
    "ScalarQuantization": ("type", "quantile", "always_ram"),
    "MultiVectorConfig": ("comparator",),
    "SparseVectorConfig": ("map",),
    "SparseVectorParams": ("index", "modifier"),
    "SparseIndexConfig": ("full_scan_threshold", "on_disk", "datatype"),
    "DeleteCollection": ("collection_name", "timeout"),
    "GetCollectionInfoRequest": ("collection_name",),
    "ListCollectionsRequest": (),
    "CollectionExistsRequest": ("collection_name",),
    "ChangeAliases": ("actions", "timeout"),
    "AliasOperations": ("create_alias", "rename_alias", "delete_alias"),
    "CreateAlias": ("collection_name", "alias_name"),
    "RenameAlias": ("old_alias_name", "new_alias_name"),
    "DeleteAlias": ("alias_name",),
    "ListAliasesRequest": (),
    "ListCollectionAliasesRequest": ("collection_name",),
    "CreateSnapshotRequest": ("collection_name",),
    "ListSnapshotsRequest": ("collection_name",),
    "DeleteSnapshotRequest": ("collection_name", "snapshot_name"),
    "UpsertPoints": ("collection_name", "points", "update_filter", "update_mode", *ANY_TIME),
    "DeletePoints": ("collection_name", "points", *ANY_TIME),
    "PointsSelector": ("points", "filter"),
    "SetPayloadPoints": ("collection_name", "payload", "points_selector", "key", *ANY_TIME),
    "DeletePayloadPoints": ("collection_name", "keys", "points_selector", *ANY_TIME),
    "UpdateBatchPoints": ("collection_name", "operations", *ANY_TIME),
    "PointsUpdateOperation": ("upsert", "delete_points", "set_payload", "delete_payload"),
    "PointsUpdateOperation.PointStructList": ("points", "update_filter", "update_mode"),
    "PointsUpdateOperation.SetPayload": ("payload", "points_selector", "key"),
    "PointsUpdateOperation.DeletePayload": ("keys", "points_selector"),
    "PointsUpdateOperation.DeletePoints": ("points",),
    "CreateFieldIndexCollection": ("collection_name", "field_name", "field_type", "field_index_params", *ANY_TIME),
    "PayloadIndexParams": (
        "keyword_index_params", "integer_index_params", "float_index_params", "geo_index_params", "text_index_params",
        "bool_index_params", "datetime_index_params", "uuid_index_params",
    ),
    "KeywordIndexParams": ("is_tenant", "prefix", *INDEX),
    "KeywordPrefixParams": (),
    "IntegerIndexParams": ("lookup", "range", "is_principal", *INDEX),
    "FloatIndexParams": ("is_principal", *INDEX),
    "GeoIndexParams": INDEX,
    "TextIndexParams": (
        "tokenizer", "lowercase", "min_token_len", "max_token_len", "stopwords", "phrase_matching", "stemmer",
        "ascii_folding", "scoring", *INDEX,
    ),
    "StopwordsSet": ("languages", "custom"),
    "StemmingAlgorithm": ("snowball", "disabled"),
    "SnowballParams": ("language",),
    "DisabledStemmer": (),
    "TextScoringParams": ("type",),
    "BoolIndexParams": INDEX,
    "DatetimeIndexParams": ("is_principal", *INDEX),
    "UuidIndexParams": ("is_tenant", *INDEX),
    "DeleteFieldIndexCollection": ("collection_name", "field_name", *ANY_TIME),
    "GetPoints": ("collection_name", "ids", "with_payload", "with_vectors", *ANY_COPY),
    "CountPoints": ("collection_name", "filter", "exact", *ANY_COPY),
    "ScrollPoints": (
        "collection_name", "filter", "offset", "limit", "with_payload", "with_vectors", "order_by", *ANY_COPY,
    ),
    "OrderBy": ("key", "direction", "start_from"),
    "StartFrom": ("float", "integer", "datetime"),
    "QueryBatchPoints": ("collection_name", "query_points", *ANY_COPY),
    "QueryPoints": (
        "collection_name", "prefetch", "query", "using", "filter", "params", "score_threshold", "limit", "offset",
        "with_vectors", "with_payload", *ANY_COPY,
    ),
    "PrefetchQuery": ("prefetch", "query", "using", "filter", "params", "score_threshold", "limit"),
    "SearchParams": ("hnsw_ef", "exact", "indexed_only", "quantization"),
    "QuantizationSearchParams": ("ignore", "rescore", "oversampling"),
}  # fmt: skip

MATCHED = frozenset({
    "Query", "PointStruct", "PointId", "PointsIdsList", "Vectors", "VectorInput", "Value", "Filter",
    "WithPayloadSelector", "PayloadIncludeSelector", "PayloadExcludeSelector", "WithVectorsSelector", "VectorsSelector",
    "WriteOrdering", "ReadConsistency",
})  # fmt: skip
"""Messages below which every alternative is converted or refused by name where it is converted, or that have no effect."""


def require_known(request: Message) -> None:
    """UNIMPLEMENTED, by name, for a field that is set and not honoured; INVALID_ARGUMENT for an unknown value of an enum.

    Looks only at fields about which something is to be done: a batch of 32 look-ups has 1,500 others.
    """
    for name, has_presence, check in _checks(request.DESCRIPTOR):
        if has_presence:
            if not request.HasField(name):
                continue
            check(name, request, (getattr(request, name),))
        elif values := getattr(request, name):
            check(name, request, values)


def _refuse(name: str, message: Message, _: Any) -> None:
    raise unimplemented(f"{_name(message.DESCRIPTOR)}.{name}")


def _walk(_: str, __: Message, values: Iterable[Any]) -> None:
    for value in values:
        require_known(value)


def _walk_map(_: str, __: Message, values: Mapping[Any, Any]) -> None:
    for value in values.values():
        require_known(value)


def _require_named(name: str, message: Message, values: Any) -> None:
    named = message.DESCRIPTOR.fields_by_name[name].enum_type.values_by_number
    for value in (values,) if isinstance(values, int) else values:
        if value not in named:
            raise invalid(f"{_name(message.DESCRIPTOR)}.{name} has no value {value}")


@cache
def _checks(message: Descriptor) -> list[tuple[str, bool, Callable[[str, Message, Any], None]]]:
    """What is to be done about the fields of a message, where anything is."""
    checks: list[tuple[str, bool, Callable[[str, Message, Any], None]]] = []
    for field in message.fields:
        inner = _inner(field)
        if field.name not in HONOURED[_name(message)]:
            checks.append((field.name, field.has_presence, _refuse))
        elif field.enum_type is not None:
            checks.append((field.name, field.has_presence, _require_named))
        elif inner is not None and _checked(inner):
            checks.append((field.name, field.has_presence, _walk if inner is field.message_type else _walk_map))
    return checks


def _checked(message: Descriptor) -> bool:
    """Whether there is anything to do about a message's fields, or may be: it may hold itself."""
    if _name(message) in MATCHED:
        return False
    own = HONOURED[_name(message)]
    return any(
        field.name not in own or field.enum_type is not None or (_inner(field) is not None) for field in message.fields
    )


def _inner(field: FieldDescriptor) -> Descriptor | None:
    """The message of a field's values; None where they are plain."""
    message: Descriptor | None = field.message_type
    if message is not None and message.GetOptions().map_entry:
        return message.fields_by_name["value"].message_type
    return message


def _name(message: Descriptor) -> str:
    return message.full_name.removeprefix("qdrant.")
