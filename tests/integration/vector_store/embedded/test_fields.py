"""No field that a caller sets is dropped in silence: over everything that the API's own descriptors declare."""

from types import SimpleNamespace

import grpc
import pytest
import qdrant_edge as engine
from qdrant_client import grpc as api

from tests.integration.vector_store.embedded.served import create_plain
from tests.store_clients import keyed_channel
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.server import servicers, translate
from vector_store.server.fields import HONOURED, MATCHED
from vector_store.server.interceptor import methods
from vector_store.server.process import embedded_server
from vector_store.server.status import StatusError

SERVICES = {
    "Collections": (servicers.Collections, api.CollectionsServicer, "collections_service"),
    "Points": (servicers.Points, api.PointsServicer, "points_service"),
    "Snapshots": (servicers.SnapshotsService, api.SnapshotsServicer, "snapshots_service"),
}


def requests():
    """Each implemented method's name and the descriptor of its request."""
    for service, (ours, declared, _) in SERVICES.items():
        names = methods(service, object.__new__(ours), declared)
        by_name = (
            api.CollectionsServicer,
            api.CollectionInfo.DESCRIPTOR.file.pool.FindServiceByName(f"qdrant.{service}"),
        )
        for name in sorted(name.rsplit("/", 1)[1] for name in names):
            yield service, name, by_name[1].methods_by_name[name].input_type


EVERY_CALL = pytest.mark.parametrize(
    ("service", "method", "request_"), [pytest.param(*each, id=f"{each[0]}.{each[1]}") for each in requests()]
)


def name_of(message):
    return message.full_name.removeprefix("qdrant.")


def inner(field):
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        return message.fields_by_name["value"].message_type
    return message


def paths(message, before=(), seen=()):
    """Every way of fields from a request to a field, each message once on a way and none below those that are matched."""
    for field in message.fields:
        yield (*before, field)
        below = inner(field)
        honoured = field.name in HONOURED[name_of(message)]
        if below is not None and honoured and name_of(below) not in MATCHED and below not in seen:
            yield from paths(below, (*before, field), (*seen, below))


def put(message, path):
    """Set the field at the end of a way to some value, and what lies on the way."""
    for field in path[:-1]:
        message = added(message, field)
    last = path[-1]
    if last.message_type is not None:
        added(message, last)
        return
    value = {"string": "a", "bool": True, "bytes": b"a", "double": 0.5, "float": 0.5}.get(kind(last), 1)
    if last.is_repeated:
        getattr(message, last.name).append(value)
    else:
        setattr(message, last.name, value)


def holding(request, path):
    """The message that has the field at the end of a way that was put."""
    for field in path[:-1]:
        holder = getattr(request, field.name)
        is_map = field.message_type.GetOptions().map_entry
        request = holder["a"] if is_map else holder[0] if field.is_repeated else holder
    return request


def added(message, field):
    holder = getattr(message, field.name)
    if field.message_type.GetOptions().map_entry:
        key = 1 if kind(field.message_type.fields_by_name["key"]) != "string" else "a"
        if inner(field) is None:
            holder[key] = 1
            return None
        return holder[key]
    if field.is_repeated:
        return holder.add()
    holder.SetInParent()
    return holder


def kind(field):
    kinds = {field.TYPE_STRING: "string", field.TYPE_BOOL: "bool", field.TYPE_BYTES: "bytes"}
    return kinds.get(field.type) or {field.TYPE_DOUBLE: "double", field.TYPE_FLOAT: "float"}.get(field.type, "number")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with embedded_server(tmp_path_factory.mktemp("fields")) as url, keyed_channel(url) as channel:
        with connect(StoreConfig(), url) as client:
            create_plain(client, "c")
        yield SimpleNamespace(
            call=lambda stub_method, request, deadline_s: stub_method(request, timeout=deadline_s),
            points=api.PointsStub(channel),
            collections=api.CollectionsStub(channel),
            snapshots=api.SnapshotsStub(channel),
        )


def refusal(call, request):
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=10)
    return caught.value.code(), caught.value.details()


def test_every_request_has_a_table_of_its_fields_down_to_the_last_message():
    assert len(list(requests())) > 20
    for _, _, request in requests():
        for path in paths(request):
            message = name_of(path[-1].containing_type)
            assert message in HONOURED
    for message, honoured in HONOURED.items():
        declared = api.Filter.DESCRIPTOR.file.pool.FindMessageTypeByName(f"qdrant.{message}").fields_by_name
        assert set(honoured) <= set(declared), f"{message} has no such field"


@EVERY_CALL
def test_a_field_that_is_not_honoured_is_refused_by_name_wherever_it_is_set(client, service, method, request_):
    call = getattr(getattr(client, service.lower()), method)
    for path in paths(request_):
        field = path[-1]
        message = name_of(field.containing_type)
        if field.name in HONOURED[message]:
            continue
        request = getattr(api, request_.name)()
        put(request, path)
        code, details = refusal(call, request)
        assert code == grpc.StatusCode.UNIMPLEMENTED, ".".join(one.name for one in path)
        assert details.startswith(f"{message}.{field.name} is not implemented by the embedded server")


@EVERY_CALL
def test_an_unknown_value_of_an_enum_is_refused_by_name_wherever_it_is_set(client, service, method, request_):
    call = getattr(getattr(client, service.lower()), method)
    for path in paths(request_):
        field = path[-1]
        if field.enum_type is None or field.name not in HONOURED[name_of(field.containing_type)]:
            continue
        request = getattr(api, request_.name)()
        put(request, path[:-1]) if path[:-1] else None
        message = holding(request, path)
        getattr(message, field.name).append(77) if field.is_repeated else setattr(message, field.name, 77)
        code, details = refusal(call, request)
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert f"{name_of(field.containing_type)}.{field.name} has no value 77" in details


def filter_paths(message, before=(), seen=()):
    for field in message.fields:
        yield (*before, field)
        below = inner(field)
        if below is not None and below.name not in ("PointId", "Timestamp") and below not in seen:
            yield from filter_paths(below, (*before, field), (*seen, below))


def test_every_field_of_a_filter_is_converted_or_refused_by_name():
    num = {"converted": 0, "refused": 0}
    for path in filter_paths(api.Filter.DESCRIPTOR):
        if path[-1].message_type is not None and path[-1].message_type.fields:
            continue  # its fields come next
        message = api.Filter()
        put(message, path)
        names = [field.name for field in path]
        converted, refused = converted_or_refused(filled(message))
        if refused is None:
            assert converted != converted_or_refused(filled(message, without=path[-1]))[0], names
            num["converted"] += 1
        else:
            assert refused.code == grpc.StatusCode.UNIMPLEMENTED, names
            assert any(name in str(refused) for name in names), names
            num["refused"] += 1
    assert num["converted"] > 40
    assert num["refused"] > 20


def converted_or_refused(message):
    try:
        return repr(translate.engine_filter(message)), None
    except StatusError as error:
        return None, error


def honoured_leaves(request, left_out):
    for path in paths(request):
        last = path[-1]
        honoured = last.name in HONOURED[name_of(last.containing_type)] and path[0].name not in left_out
        if honoured and last.message_type is None:
            yield path


def test_every_honoured_option_of_a_collection_reaches_the_engine():
    def config(path, is_set):
        request = api.CreateCollection()
        put(request, path)
        one = holding(request, path)
        if not is_set:
            one.ClearField(path[-1].name)
        request.sparse_vectors_config.map["b"].SetInParent()  # a collection has a vector
        named = request.vectors_config.params_map.map.values()
        for params in (request.vectors_config.params,) if request.vectors_config.HasField("params") else named:
            params.size = params.size or 4
            params.distance = params.distance or (
                api.Distance.Dot if path[-1].name != "distance" else api.Distance.Euclid
            )
            if params.HasField("quantization_config"):
                params.quantization_config.scalar.type = api.QuantizationType.Int8  # the one there is
        made = translate.engine_config(request)
        return repr(made), [repr(vector.quantization_config) for vector in (made.vectors or {}).values()]

    taken_elsewhere = {
        "collection_name", "timeout", "metadata", "shard_number", "replication_factor", "write_consistency_factor",
    }  # fmt: skip
    leaves = list(honoured_leaves(api.CreateCollection.DESCRIPTOR, taken_elsewhere))
    assert len(leaves) > 25
    for path in leaves:
        if path[-1].name in ("comparator", "size", "type"):  # there is but one; and a vector needs it
            continue
        assert config(path, True) != config(path, False), ".".join(field.name for field in path)


def test_every_honoured_option_of_a_query_reaches_the_engine():
    kinds = translate.vector_kinds(api.CreateCollection())

    def converted(path, is_set):
        request = api.QueryPoints()
        put(request, path)
        one = holding(request, path)
        if not is_set:
            one.ClearField(path[-1].name)
        return repr(translate.query_request(request, kinds))

    leaves = list(honoured_leaves(api.QueryPoints.DESCRIPTOR, {"collection_name", "timeout", "read_consistency"}))
    assert len(leaves) > 10
    for path in leaves:
        if path[-1].name == "using":  # names the vector of `nearest`
            continue
        assert converted(path, True) != converted(path, False), ".".join(field.name for field in path)


@pytest.mark.parametrize("variant", list(api.Query.DESCRIPTOR.fields), ids=lambda field: field.name)
def test_each_kind_of_query_is_converted_or_refused_by_name(variant):
    request = api.QueryPoints(using="a")
    put(request.query, (variant,))
    if variant.name == "nearest_with_mmr":
        request.query.nearest_with_mmr.nearest.dense.data.append(1.0)
    if variant.name == "nearest":
        request.query.nearest.dense.data.append(1.0)
    if variant.name == "order_by":
        request.query.order_by.key = "k"
    if variant.name == "sample":
        request.query.sample = api.Sample.Random
    settings = api.CreateCollection()
    settings.vectors_config.params_map.map["a"].size = 1
    kinds = translate.vector_kinds(settings)
    if variant.name in ("nearest", "nearest_with_mmr", "order_by", "fusion", "sample", "rrf"):
        assert repr(translate.query_request(request, kinds)) != repr(translate.query_request(api.QueryPoints(), kinds))
        return
    with pytest.raises(StatusError, match=rf"Query\.{variant.name} is not implemented"):
        translate.query_request(request, kinds)


def filled(message, without=None):
    """The filter with keys where they are needed, and without one field."""
    copy = type(message)()
    copy.CopyFrom(message)

    def walk(one):
        for field, value in one.ListFields():
            if field == without:
                one.ClearField(field.name)
            elif field.message_type is not None:
                for each in value if field.is_repeated else (value,):
                    walk(each)
        if "key" in one.DESCRIPTOR.fields_by_name and not one.key:
            one.key = "k"
        if one.DESCRIPTOR.name == "Match" and one.WhichOneof("match_value") is None:
            one.keyword = "another"
        if one.DESCRIPTOR.name == "Condition" and one.WhichOneof("condition_one_of") is None:
            one.is_null.key = "k"
        if one.DESCRIPTOR.name == "PointId" and one.WhichOneof("point_id_options") is None:
            one.num = 5

    walk(copy)
    return copy


@pytest.mark.parametrize("which", sorted(translate.INDEXES))
@pytest.mark.parametrize("without", [{"nested"}, {"is_tenant", "is_principal"}], ids=["flat", "nested"])
def test_every_parameter_of_a_payload_index_reaches_the_engine_and_is_described_as_given(client, which, without):
    given = api.CreateFieldIndexCollection(collection_name="c", wait=True, field_name=f"a[].{which}")
    params = getattr(given.field_index_params, f"{which}_index_params")
    values = {
        "tokenizer": api.TokenizerType.Whitespace, "memory": 2, "min_token_len": 2, "max_token_len": 9, "nested": "a[]",
    }  # fmt: skip
    for field in params.DESCRIPTOR.fields:
        match field.name:
            case name if name in without:  # the engine takes these not together
                continue
            case "stopwords":
                params.stopwords.languages.append("english")
                params.stopwords.custom.append("lorem")
            case "stemmer":
                params.stemmer.snowball.language = "german"
            case "prefix" | "scoring":
                getattr(params, field.name).SetInParent()
            case _:
                setattr(params, field.name, values.get(field.name, True))
    assert {field.name for field, _ in params.ListFields()} >= {*params.DESCRIPTOR.fields_by_name} - without
    client.points.CreateFieldIndex(given)
    info = client.collections.Get(api.GetCollectionInfoRequest(collection_name="c")).result
    assert info.payload_schema[given.field_name].params == given.field_index_params


def test_phrases_match_where_the_index_was_made_for_them(client):
    create_plain(client, "phrases")
    upsert = api.UpsertPoints(collection_name="phrases", wait=True)
    for number, text in enumerate(("the quick brown fox", "the brown quick fox")):
        point = upsert.points.add(id=api.PointId(num=number))
        point.vectors.vectors.SetInParent()
        point.payload["text"].string_value = text
    client.points.Upsert(upsert)
    index = api.CreateFieldIndexCollection(collection_name="phrases", wait=True, field_name="text")
    index.field_index_params.text_index_params.tokenizer = api.TokenizerType.Word
    index.field_index_params.text_index_params.phrase_matching = True
    client.points.CreateFieldIndex(index)
    count = api.CountPoints(collection_name="phrases")
    count.filter.must.add().field.CopyFrom(api.FieldCondition(key="text", match=api.Match(phrase="quick brown")))
    assert client.points.Count(count).result.count == 1


def test_an_index_type_that_contradicts_its_parameters_is_refused(client):
    request = api.CreateFieldIndexCollection(collection_name="c", field_name="n")
    request.field_type = api.FieldType.FieldTypeKeyword
    request.field_index_params.integer_index_params.lookup = True
    code, details = refusal(client.points.CreateFieldIndex, request)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "field_type is FieldTypeKeyword, field_index_params are of integer_index_params" in details


def on(key, **condition):
    return api.Filter(must=[api.Condition(**condition)])


@pytest.mark.parametrize("path", ["a[", "", "a..b", "a b"])
def test_a_path_that_is_none_is_the_callers_mistake_wherever_it_stands(client, path):
    one = api.PointsSelector(points=api.PointsIdsList(ids=[api.PointId(num=1)]))
    conditions = [
        {"field": api.FieldCondition(key=path, match=api.Match(keyword="x"))},
        {"is_null": api.IsNullCondition(key=path)},
        {"is_empty": api.IsEmptyCondition(key=path)},
        {"nested": api.NestedCondition(key=path, filter=api.Filter())},
    ]
    calls = [
        (client.points.Count, api.CountPoints(collection_name="c", filter=on(path, **condition)))
        for condition in conditions
    ]
    calls += [
        (client.points.CreateFieldIndex, api.CreateFieldIndexCollection(collection_name="c", field_name=path)),
        (client.points.DeleteFieldIndex, api.DeleteFieldIndexCollection(collection_name="c", field_name=path)),
        (client.points.DeletePayload, api.DeletePayloadPoints(collection_name="c", keys=[path], points_selector=one)),
        (client.points.Scroll, api.ScrollPoints(collection_name="c", order_by=api.OrderBy(key=path))),
        (
            client.points.Get,
            api.GetPoints(
                collection_name="c", with_payload=api.WithPayloadSelector(include={"fields": [path]})
            ),
        ),
    ]  # fmt: skip
    for call, request in calls:
        code, details = refusal(call, request)
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert f"invalid JSON path {path}".strip() in details


def test_a_page_of_no_points_is_refused_because_it_would_never_end(client):
    for call, request in (
        (client.points.Scroll, api.ScrollPoints(collection_name="c", limit=0)),
        (client.points.Query, api.QueryPoints(collection_name="c", limit=0)),
        (client.points.Query, api.QueryPoints(collection_name="c", prefetch=[api.PrefetchQuery(limit=0)])),
    ):
        assert refusal(call, request) == (
            grpc.StatusCode.INVALID_ARGUMENT, "Wrong input: limit: value 0 invalid, must be 1 or larger",
        )  # fmt: skip


def test_the_engines_types_of_indexes_are_those_of_the_table():
    assert {made.__name__.removesuffix("IndexParams").lower() for made in translate.INDEXES.values()} == {
        str(one).rsplit(".", 1)[-1].lower() for one in (
            getattr(engine.PayloadSchemaType, name) for name in dir(engine.PayloadSchemaType) if name[0].isupper()
        )
    }  # fmt: skip
