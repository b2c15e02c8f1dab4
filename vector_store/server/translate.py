"""Convert between Qdrant's protobuf messages and the engine's objects, with the checks that the engine lacks.

The engine accepts NaN and repeated sparse indices, and after a ragged multivector it panics at every start, because the write
is in its log by then. So vectors and payload values are checked first. Pure functions: no shard, no network.
"""

import math
import re
import uuid
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import qdrant_edge as engine
from google.protobuf.message import Message

from vector_store.protocol import api
from vector_store.server.fields import OPTIMIZERS
from vector_store.server.status import invalid, unimplemented

if TYPE_CHECKING:  # only the engine's type stubs have it
    from qdrant_edge import ShardInfo

PointId: TypeAlias = int | str | uuid.UUID
Vector: TypeAlias = list[float] | list[list[float]] | engine.SparseVector
Selector: TypeAlias = bool | list[str] | engine.PayloadSelector

MULTIVECTOR_ELEMENTS = 1_048_576
"""Qdrant's own limit for one multivector."""

MMR_CANDIDATES = 16_384
"""Qdrant's own limit for the points that MMR compares with each other."""

HNSW_M, HNSW_EF_CONSTRUCT, FULL_SCAN_KB, INDEXING_KB = 16, 100, 10_000, 10_000
"""Qdrant's defaults for the options of an index that a collection does not set."""

DELETED_THRESHOLD, VACUUM_MIN_POINTS = 0.2, 1000
"""Qdrant's defaults."""

INDEXES = {
    "keyword": engine.KeywordIndexParams, "integer": engine.IntegerIndexParams, "float": engine.FloatIndexParams,
    "geo": engine.GeoIndexParams, "text": engine.TextIndexParams, "bool": engine.BoolIndexParams,
    "datetime": engine.DatetimeIndexParams, "uuid": engine.UuidIndexParams,
}  # fmt: skip
"""The engine's parameters of a payload index of each type."""

_CANONICAL_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class DenseKind(NamedTuple):
    """Size of a collection's dense vector, and whether it is a multivector (`many`)."""

    size: int
    many: bool


class VectorKinds(NamedTuple):
    """The vectors of a collection by name; the unnamed vector has the empty name."""

    dense: dict[str, DenseKind]
    sparse: frozenset[str]


# ---------------------------------------------------------------- collections


def vector_kinds(settings: api.CreateCollection) -> VectorKinds:
    """Names, sizes and kinds of a collection's vectors."""
    dense = {
        name: DenseKind(params.size, params.HasField("multivector_config"))
        for name, params in _vector_params(settings).items()
    }
    return VectorKinds(dense, frozenset(settings.sparse_vectors_config.map))


_NUMBER_BYTES = {api.Datatype.Float16: 2, api.Datatype.Uint8: 1}
"""Bytes of a stored vector's number; 4 by default. The engine's threshold of indexing counts these."""


def indexed_point_bytes(settings: api.CreateCollection) -> int:
    """Bytes of a point's largest vector with an HNSW index (none where m = 0). A multivector counts as one row."""
    return max(
        (
            _NUMBER_BYTES.get(params.datatype, 4) * params.size
            for params in _vector_params(settings).values()
            if _optional(params.hnsw_config, "m", _optional(settings.hnsw_config, "m", HNSW_M)) > 0
        ),
        default=0,
    )


def indexing_kb(settings: api.CreateCollection) -> int:
    """Most kilobytes of vectors without an HNSW index; 0 means that no index is built."""
    return _optional(settings.optimizers_config, "indexing_threshold", INDEXING_KB)


def vacuum_options(settings: api.CreateCollection) -> tuple[float, int]:
    """Share of deleted points, and their least number, from which a shard is written anew."""
    options = settings.optimizers_config
    return (
        _optional(options, "deleted_threshold", DELETED_THRESHOLD),
        _optional(options, "vacuum_min_vector_number", VACUUM_MIN_POINTS),
    )


def engine_config(settings: api.CreateCollection) -> engine.EdgeConfig:
    """CreateCollection as the engine's config. Shards and copies (see `check_shards`) have no effect."""
    vectors = {}
    for name, params in _vector_params(settings).items():
        if params.size < 1:
            raise invalid(f"vector {name!r} has size {params.size}, wanted at least 1")
        vectors[name] = engine.EdgeVectorParams(
            size=params.size,
            distance=_named(engine.Distance, api.Distance.Name(params.distance)),
            on_disk=_optional(params, "on_disk"),
            multivector_config=(
                engine.MultiVectorConfig(engine.MultiVectorComparator.MaxSim)
                if params.HasField("multivector_config")
                else None
            ),
            datatype=_datatype(params),
            hnsw_config=_hnsw(params),
            quantization_config=_quantization(params),
        )
    sparse = {
        name: engine.EdgeSparseVectorParams(
            full_scan_threshold=_optional(params.index, "full_scan_threshold"),
            on_disk=_optional(params.index, "on_disk"),
            modifier=engine.Modifier.Idf if params.modifier == api.Modifier.Idf else None,
            datatype=_datatype(params.index),
        )
        for name, params in settings.sparse_vectors_config.map.items()
    }
    return engine.EdgeConfig(
        vectors=vectors or None,
        sparse_vectors=sparse or None,
        on_disk_payload=_optional(settings, "on_disk_payload"),
        hnsw_config=_hnsw(settings),
        optimizers=engine.EdgeOptimizersConfig(
            **{name: _optional(settings.optimizers_config, name) for name in OPTIMIZERS},
        ),
        wal_enabled=True,
    )


def check_shards(settings: api.CreateCollection) -> None:
    """StatusError where more than one shard or copy is asked for: the embedded server has one of each."""
    for name in ("shard_number", "replication_factor", "write_consistency_factor"):
        if (wanted := _optional(settings, name)) not in (None, 1):
            raise invalid(
                f"{name}={wanted}: the embedded server has one shard and one copy of it; give 1, or use a cluster"
            )


def collection_info(
    settings: api.CreateCollection, shard: "ShardInfo", indexes: bool, error: str
) -> api.CollectionInfo:
    """Status, counts and settings of a collection, as Qdrant describes it.

    `indexes`: an index is being built or is due; `error`: why the last build failed, empty where it did not.
    """
    config = api.CollectionConfig(
        params=api.CollectionParams(
            shard_number=1,
            replication_factor=1,
            write_consistency_factor=1,
            on_disk_payload=settings.on_disk_payload,
            vectors_config=settings.vectors_config if settings.HasField("vectors_config") else None,
            sparse_vectors_config=settings.sparse_vectors_config if settings.sparse_vectors_config.map else None,
        ),
        hnsw_config=api.HnswConfigDiff(m=HNSW_M, ef_construct=HNSW_EF_CONSTRUCT, full_scan_threshold=FULL_SCAN_KB),
        # Qdrant's defaults: its clients require these fields, the engine does not use them.
        optimizer_config=api.OptimizersConfigDiff(
            deleted_threshold=DELETED_THRESHOLD,
            vacuum_min_vector_number=VACUUM_MIN_POINTS,
            default_segment_number=0,
            indexing_threshold=INDEXING_KB,
            flush_interval_sec=5,
        ),
        wal_config=api.WalConfigDiff(wal_capacity_mb=32, wal_segments_ahead=0),
    )
    config.hnsw_config.MergeFrom(settings.hnsw_config)
    config.optimizer_config.MergeFrom(settings.optimizers_config)
    config.wal_config.MergeFrom(settings.wal_config)
    for key, value in settings.metadata.items():
        config.metadata[key].CopyFrom(value)
    schema = {
        key: api.PayloadSchemaInfo(
            data_type=_payload_type(index.data_type), params=_index_params(index.params), points=index.points
        )
        for key, index in shard.payload_schema.items()
    }
    return api.CollectionInfo(
        status=(
            api.CollectionStatus.Red
            if error
            else api.CollectionStatus.Yellow
            if indexes
            else api.CollectionStatus.Green
        ),
        optimizer_status=api.OptimizerStatus(ok=not error, error=error),
        segments_count=shard.segments_count,
        points_count=shard.points_count,
        indexed_vectors_count=shard.indexed_vectors_count,
        config=config,
        payload_schema=schema,
    )


def index_schema(request: api.CreateFieldIndexCollection) -> Any:
    """Type of the payload index that is asked for, with its parameters where there are any."""
    wanted = _named(engine.PayloadSchemaType, api.FieldType.Name(request.field_type).removeprefix("FieldType"))
    which = request.field_index_params.WhichOneof("index_params")
    if which is None:
        return wanted
    kind = which.removesuffix("_index_params")
    if request.HasField("field_type") and wanted != getattr(engine.PayloadSchemaType, kind.capitalize()):
        raise invalid(f"field_type is {api.FieldType.Name(request.field_type)}, field_index_params are of {which}")
    message: Message = getattr(request.field_index_params, which)
    return INDEXES[kind](**{field.name: _index_option(field, value) for field, value in message.ListFields()})


def _index_option(field: Any, value: Any) -> Any:
    """The engine's form of one parameter of a payload index."""
    match field.name:
        case "memory" | "tokenizer":
            enum = engine.Memory if field.name == "memory" else engine.TokenizerType
            return _named(enum, field.enum_type.values_by_number[value].name)
        case "prefix":
            return True  # a message without fields
        case "scoring":
            return engine.TextScoringParams(_named(engine.TextScoringType, api.TextScoringType.Name(value.type)))
        case "stopwords":
            languages = {_named(engine.Language, language.capitalize()) for language in value.languages}
            return engine.StopwordsSet(languages=languages, custom=set(value.custom))
        case "stemmer" if value.WhichOneof("stemming_params") == "disabled":
            return engine.DisabledStemmer()
        case "stemmer":
            return engine.SnowballParams(_named(engine.SnowballLanguage, value.snowball.language.capitalize()))
        case _:
            return value


def _index_params(params: Any) -> api.PayloadIndexParams | None:
    """A payload index's parameters as Qdrant describes them; None where it was created without any."""
    kind = next((name for name, made in INDEXES.items() if isinstance(params, made)), None)
    if kind is None:
        return None
    described = api.PayloadIndexParams()
    message: Any = getattr(described, f"{kind}_index_params")
    message.SetInParent()
    for field in message.DESCRIPTOR.fields:
        value = getattr(params, field.name)
        match field.name:
            case _ if value is None or (value is False and field.name == "prefix"):
                continue
            case "memory" | "tokenizer":
                setattr(message, field.name, field.enum_type.values_by_name[_word(value)].number)
            case "prefix" | "scoring":
                getattr(message, field.name).SetInParent()
            case "stopwords" if isinstance(value, engine.Language):
                message.stopwords.languages.append(_word(value).lower())
            case "stopwords":
                message.stopwords.languages.extend(sorted(_word(one).lower() for one in value.languages or ()))
                message.stopwords.custom.extend(sorted(value.custom or ()))
            case "stemmer" if isinstance(value, engine.DisabledStemmer):
                message.stemmer.disabled.SetInParent()
            case "stemmer":
                message.stemmer.snowball.language = _word(value.language).lower()
            case _:
                setattr(message, field.name, value)
    return described


def _word(value: Any) -> str:
    """The name of one of the engine's enum values."""
    return str(value).rsplit(".", 1)[-1]


def _payload_type(kind: engine.PayloadSchemaType) -> Any:
    return api.PayloadSchemaType.Value(_word(kind))


def _vector_params(settings: api.CreateCollection) -> Mapping[str, api.VectorParams]:
    config = settings.vectors_config
    return {"": config.params} if config.HasField("params") else config.params_map.map


def _hnsw(message: Message) -> engine.HnswIndexConfig | None:
    if not message.HasField("hnsw_config"):
        return None
    diff: api.HnswConfigDiff = message.hnsw_config
    return engine.HnswIndexConfig(
        m=_optional(diff, "m", HNSW_M),
        ef_construct=_optional(diff, "ef_construct", HNSW_EF_CONSTRUCT),
        full_scan_threshold=_optional(diff, "full_scan_threshold", FULL_SCAN_KB),
        on_disk=_optional(diff, "on_disk"),
        payload_m=_optional(diff, "payload_m"),
    )


def _quantization(message: Message) -> engine.ScalarQuantizationConfig | None:
    if not message.HasField("quantization_config"):
        return None
    config: api.QuantizationConfig = message.quantization_config
    kind = config.WhichOneof("quantization")
    if kind != "scalar":
        raise unimplemented(f"QuantizationConfig.{kind}")
    return engine.ScalarQuantizationConfig(
        _named(engine.ScalarType, api.QuantizationType.Name(config.scalar.type)),
        quantile=_optional(config.scalar, "quantile"),
        always_ram=_optional(config.scalar, "always_ram"),
    )


def _datatype(message: Message) -> engine.VectorStorageDatatype | None:
    kind = _optional(message, "datatype")
    return _named(engine.VectorStorageDatatype, api.Datatype.Name(kind)) if kind else None


def _named(enum: Any, name: str) -> Any:
    try:
        return getattr(enum, name)
    except AttributeError:
        raise invalid(f"the embedded engine has no {enum.__name__} {name!r}") from None


def _optional(message: Message, field: str, default: Any = None) -> Any:
    return getattr(message, field) if message.HasField(field) else default


def _refuse(message: Message, *fields: str) -> None:
    """UNIMPLEMENTED where one of these optional fields is set, instead of ignoring it silently."""
    for field in fields:
        if message.HasField(field):
            raise unimplemented(f"{type(message).__name__}.{field}")


# ---------------------------------------------------------------- ids and payload


def point_id(message: api.PointId) -> PointId:
    """A point's id as the engine takes it: an unsigned integer or a UUID string in canonical form."""
    kind = message.WhichOneof("point_id_options")
    if kind == "num":
        return message.num
    if _CANONICAL_UUID.fullmatch(message.uuid):
        return message.uuid
    try:
        return str(uuid.UUID(message.uuid))
    except ValueError:
        raise invalid(f"point id {message.uuid!r} is neither an unsigned integer nor a UUID") from None


def point_id_message(point: PointId) -> api.PointId:
    """The engine's id of a point as a message."""
    return api.PointId(num=point) if isinstance(point, int) else api.PointId(uuid=str(point))


def payload(fields: Mapping[str, api.Value]) -> dict[str, Any]:
    """Payload values as Python objects."""
    return {key: _value(value) for key, value in fields.items()}


def _value(value: api.Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return payload(value.struct_value.fields)
        case "list_value":
            return [_value(item) for item in value.list_value.values]
        case "null_value" | None:
            return None
        case "double_value" if not math.isfinite(value.double_value):
            raise invalid(f"payload value {value.double_value} is not a finite number")
        case kind:
            return getattr(value, kind)


def fill_value(message: api.Value, value: Any) -> None:
    """Write a Python value into a message."""
    match value:
        case str():
            message.string_value = value
        case bool():
            message.bool_value = value
        case int():
            message.integer_value = value
        case float():
            message.double_value = value
        case None:
            message.null_value = api.NullValue.NULL_VALUE
        case list():
            message.list_value.SetInParent()
            for item in value:
                fill_value(message.list_value.values.add(), item)
        case _:
            message.struct_value.SetInParent()
            fill_payload(message.struct_value.fields, value)


def fill_payload(fields: Any, values: dict[str, Any] | None) -> None:
    """Write Python values into a protobuf map of Value."""
    for key, value in (values or {}).items():
        fill_value(fields[key], value)


# ---------------------------------------------------------------- vectors


def points(messages: Iterable[api.PointStruct], kinds: VectorKinds) -> list[engine.Point]:
    """Checked points for an upsert."""
    return [
        engine.Point(point_id(message.id), _vectors(message.vectors, kinds), payload(message.payload))
        for message in messages
    ]


def _vectors(message: api.Vectors, kinds: VectorKinds) -> Any:
    if message.WhichOneof("vectors_options") == "vector":
        return _checked("", _vector(message.vector), kinds)
    return {name: _checked(name, _vector(vector), kinds) for name, vector in message.vectors.vectors.items()}


def _vector(message: Any) -> Vector:
    """The vector in a `Vector` or `VectorInput`, in the current or in the older flat form."""
    match message.WhichOneof("vector" if isinstance(message, api.Vector) else "variant"):
        case "dense":
            return list(message.dense.data)
        case "sparse":
            return engine.SparseVector(list(message.sparse.indices), list(message.sparse.values))
        case "multi_dense":
            return [list(row.data) for row in message.multi_dense.vectors]
        case None if isinstance(message, api.Vector):
            return _flat_vector(message)
        case kind:
            raise unimplemented(f"{type(message).__name__}.{kind}")


def _flat_vector(message: api.Vector) -> Vector:
    values = list(message.data)
    if message.HasField("indices"):
        return engine.SparseVector(list(message.indices.data), values)
    if message.vectors_count > 1:
        width, left = divmod(len(values), message.vectors_count)
        if left or not width:
            raise invalid(f"{len(values)} values are not vectors_count={message.vectors_count} vectors of one size")
        return [values[start : start + width] for start in range(0, len(values), width)]
    return values


def _checked(name: str, vector: Vector, kinds: VectorKinds, is_query: bool = False) -> Vector:
    """The vector, where the collection can store it (or, with `is_query`, be searched by it)."""
    if isinstance(vector, engine.SparseVector):
        _check_sparse(name, vector, kinds)
        return vector
    if name in kinds.sparse:
        raise invalid(f"vector {name!r} is sparse, found a dense one")
    if name not in kinds.dense:
        raise invalid(f"Not existing vector name error: {name}")
    size, many = kinds.dense[name]
    rows: Any = vector if vector and isinstance(vector[0], list) else [vector]
    is_flat = rows is not vector
    if many and is_flat and not is_query:
        raise invalid(f"vector {name!r} is a multivector, found a single vector")
    if not many and not is_flat:
        raise invalid(f"vector {name!r} is a single vector, found a multivector")
    if len(rows) * size > MULTIVECTOR_ELEMENTS:
        raise invalid(
            f"multivector {name!r} has {len(rows) * size} elements, at most {MULTIVECTOR_ELEMENTS} are allowed"
        )
    for row in rows:
        if len(row) != size:
            raise invalid(f"Vector dimension error: expected dim: {size}, got {len(row)}")
        _check_finite(name, row)
    return vector


def _check_sparse(name: str, vector: engine.SparseVector, kinds: VectorKinds) -> None:
    if name not in kinds.sparse:
        raise invalid(f"Not existing vector name error: {name} (no sparse vector has this name)")
    indices, values = vector.indices, vector.values
    if len(indices) != len(values):
        raise invalid(f"sparse vector {name!r} has {len(indices)} indices and {len(values)} values")
    if len(set(indices)) != len(indices):
        raise invalid(f"sparse vector {name!r} repeats an index; indices must be unique")
    _check_finite(name, values)


def _check_finite(name: str, values: list[float]) -> None:
    # The double-precision sum of single-precision numbers is finite exactly when each of them is.
    if not math.isfinite(sum(values)):
        raise invalid(f"vector {name!r} has NaN or infinite values")


def _fill_vector(message: api.VectorOutput, vector: Any) -> None:
    if isinstance(vector, engine.SparseVector):
        message.sparse.indices.extend(vector.indices)
        message.sparse.values.extend(vector.values)
    elif vector and isinstance(vector[0], list):
        for row in vector:
            message.multi_dense.vectors.add().data.extend(row)
    else:
        message.dense.data.extend(vector)


def fill_point(message: Any, point: engine.Record | engine.ScoredPoint) -> None:
    """Write the fields that RetrievedPoint and ScoredPoint share, except the payload, from the engine's point."""
    identity = point.id  # the engine makes its attributes anew each time
    if isinstance(identity, int):
        message.id.num = identity
    else:
        message.id.uuid = str(identity)
    vector: Any = point.vector
    if isinstance(vector, dict):
        message.vectors.vectors.SetInParent()
        for name, named in vector.items():
            _fill_vector(message.vectors.vectors.vectors[name], named)
    elif vector is not None:
        _fill_vector(message.vectors.vector, vector)
    order_value = point.order_value
    if order_value is not None:
        setattr(message.order_value, "int" if isinstance(order_value, int) else "float", order_value)


def payload_selector(request: Message, default: bool) -> Selector:
    """Payload fields to return; `default` where the request does not say."""
    selector: api.WithPayloadSelector = request.with_payload
    match selector.WhichOneof("selector_options"):
        case "enable":
            return selector.enable
        case "include":
            return engine.PayloadSelector.Include(list(selector.include.fields))
        case "exclude":
            return engine.PayloadSelector.Exclude(list(selector.exclude.fields))
        case _:
            return default


def vector_selector(request: Message) -> bool | list[str]:
    """Vectors to return; none where the request does not say."""
    selector: api.WithVectorsSelector = request.with_vectors
    if selector.WhichOneof("selector_options") == "include":
        return list(selector.include.names)
    return selector.enable


# ---------------------------------------------------------------- filters


def point_filter(request: Message, field: str = "filter") -> engine.Filter | None:
    """The request's filter; None where it has none."""
    return engine_filter(getattr(request, field)) if request.HasField(field) else None


def engine_filter(message: api.Filter) -> engine.Filter:
    """The engine's form of a filter with all its nested conditions."""
    conditions = {kind: [*map(_condition, getattr(message, kind))] or None for kind in ("must", "should", "must_not")}
    minimum = _optional(message, "min_should")
    return engine.Filter(
        **conditions,
        min_should=minimum and engine.MinShould([*map(_condition, minimum.conditions)], minimum.min_count),
    )


def _condition(message: api.Condition) -> Any:
    match message.WhichOneof("condition_one_of"):
        case "field":
            return _field_condition(message.field)
        case "has_id":
            return engine.HasIdCondition({point_id(i) for i in message.has_id.has_id})
        case "filter":
            return engine_filter(message.filter)
        case "is_empty":
            return engine.IsEmptyCondition(message.is_empty.key)
        case "is_null":
            return engine.IsNullCondition(message.is_null.key)
        case "has_vector":
            return engine.HasVectorCondition(message.has_vector.has_vector)
        case "nested":
            return engine.NestedCondition(message.nested.key, engine_filter(message.nested.filter))
        case kind:
            raise unimplemented(f"Condition.{kind}")


CONVERTED = {"key", "match", "range", "is_empty", "is_null"}
"""Fields of a condition that are honoured; any other, also one of a later release's messages, is refused by name."""


def _field_condition(message: api.FieldCondition) -> engine.FieldCondition:
    for field, _ in message.ListFields():
        if field.name not in CONVERTED:
            raise unimplemented(f"{type(message).__name__}.{field.name}")
    return engine.FieldCondition(
        message.key,
        match=_match(message.match) if message.HasField("match") else None,
        range=(
            engine.RangeFloat(**{bound: _optional(message.range, bound) for bound in ("gte", "gt", "lte", "lt")})
            if message.HasField("range")
            else None
        ),
        is_empty=_optional(message, "is_empty"),
        is_null=_optional(message, "is_null"),
    )


def _match(message: api.Match) -> Any:
    kind = message.WhichOneof("match_value")
    value: Any = getattr(message, kind) if kind else None
    match kind:
        case "keyword" | "integer" | "boolean":
            return engine.MatchValue(value)
        case "keywords":
            return engine.MatchAny(list(message.keywords.strings))
        case "integers":
            return engine.MatchAny(list(message.integers.integers))
        case "except_keywords":
            return engine.MatchExcept(list(message.except_keywords.strings))
        case "except_integers":
            return engine.MatchExcept(list(message.except_integers.integers))
        case "text":
            return engine.MatchText(message.text)
        case "text_any":
            return engine.MatchTextAny(message.text_any)
        case "phrase":
            return engine.MatchPhrase(message.phrase)
        case "prefix":
            return engine.MatchPrefix(message.prefix)
        case "substring":
            return engine.MatchSubstring(message.substring)
        case _:
            raise invalid("a match condition without a value")


# ---------------------------------------------------------------- queries


def query_request(request: api.QueryPoints, kinds: VectorKinds) -> engine.QueryRequest:
    """The engine's form of a query."""
    return engine.QueryRequest(
        **_search(request, kinds),
        offset=request.offset,
        with_vector=vector_selector(request),
        with_payload=payload_selector(request, default=False),
    )


def _search(request: api.QueryPoints | api.PrefetchQuery, kinds: VectorKinds) -> dict[str, Any]:
    """What a query and a prefetch have in common."""
    return {
        "limit": limit(request),
        "query": _query(request, kinds),
        "prefetches": [engine.Prefetch(**_search(prefetch, kinds)) for prefetch in request.prefetch],
        "params": _search_params(request),
        "filter": point_filter(request),
        "score_threshold": _optional(request, "score_threshold"),
    }


def limit(request: api.QueryPoints | api.PrefetchQuery | api.ScrollPoints) -> int:
    """Most points of an answer: 10 where the request does not say."""
    wanted: int = _optional(request, "limit", 10)
    if wanted < 1:
        raise invalid(f"limit: value {wanted} invalid, must be 1 or larger")
    return wanted


def _query(request: api.QueryPoints | api.PrefetchQuery, kinds: VectorKinds) -> Any:
    query = request.query
    match query.WhichOneof("variant"):
        case None:
            return None
        case "nearest":
            vector = _checked(request.using, _vector(query.nearest), kinds, is_query=True)
            return engine.Query.Nearest(vector, using=request.using or None)
        case "nearest_with_mmr":
            vector = _checked(request.using, _vector(query.nearest_with_mmr.nearest), kinds, is_query=True)
            return _mmr(vector, query.nearest_with_mmr.mmr, request)
        case "fusion":
            by_rank = api.Fusion.Name(query.fusion) == "RRF"  # ValueError for a value that is none
            return engine.Fusion.Rrf(k=2) if by_rank else engine.Fusion.Dbsf()
        case "rrf":
            return engine.Fusion.Rrf(k=_optional(query.rrf, "k", 2), weights=list(query.rrf.weights) or None)
        case "order_by":
            return order_by(query.order_by)
        case "sample":
            return _named(engine.Sample, api.Sample.Name(query.sample))
        case kind:
            raise unimplemented(f"Query.{kind}")


def _mmr(vector: Vector, message: api.Mmr, request: api.QueryPoints | api.PrefetchQuery) -> engine.Mmr:
    """Nearest points of which each also differs from those before it; the engine's `lambda_` is 1 - diversity."""
    if isinstance(vector, engine.SparseVector):
        raise unimplemented("Query.nearest_with_mmr of a sparse vector")
    diversity = _optional(message, "diversity", 0.5)
    candidates = _optional(message, "candidates_limit", limit(request))
    if not 0 <= diversity <= 1:
        raise invalid(f"mmr.diversity: value {diversity:g} invalid, must be from 0 to 1")
    if not 1 <= candidates <= MMR_CANDIDATES:
        raise invalid(f"mmr.candidates_limit: value {candidates} invalid, must be from 1 to {MMR_CANDIDATES}")
    return engine.Mmr(vector, 1 - diversity, candidates, using=request.using or None)


def order_by(message: api.OrderBy) -> engine.OrderBy:
    """The engine's form of an order by a payload field with a range index."""
    start = message.start_from.WhichOneof("value")
    if start == "timestamp":
        raise unimplemented("StartFrom.timestamp")
    return engine.OrderBy(
        message.key,
        direction=_named(engine.Direction, api.Direction.Name(message.direction)),
        start_from=getattr(message.start_from, start) if start else None,
    )


def _search_params(request: api.QueryPoints | api.PrefetchQuery) -> engine.SearchParams | None:
    if not request.HasField("params"):
        return None
    quantization = _optional(request.params, "quantization")
    return engine.SearchParams(
        hnsw_ef=_optional(request.params, "hnsw_ef"),
        exact=request.params.exact,
        indexed_only=request.params.indexed_only,
        quantization=quantization
        and engine.QuantizationSearchParams(
            quantization.ignore or False,
            rescore=_optional(quantization, "rescore"),
            oversampling=_optional(quantization, "oversampling"),
        ),
    )
