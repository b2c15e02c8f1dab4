import pytest
from qdrant_client import grpc as api

from vector_store.server import translate
from vector_store.server.fields import require_known
from vector_store.server.status import StatusError


@pytest.fixture
def kinds():
    settings = api.CreateCollection(collection_name="c")
    for name, many in (("one", False), ("many", True)):
        params = settings.vectors_config.params_map.map[name]
        params.size, params.distance = 2, api.Distance.Dot
        if many:
            params.multivector_config.comparator = api.MultiVectorComparator.MaxSim
    settings.sparse_vectors_config.map["words"].SetInParent()
    return translate.vector_kinds(settings)


def test_payload_values_keep_their_types_in_both_directions():
    values = {"a": 1, "b": 1.5, "c": True, "d": None, "e": "x", "f": [1, [], {}], "g": {"h": {"i": [False]}}, "j": {}}
    message = api.PointStruct()
    translate.fill_payload(message.payload, values)
    back = translate.payload(message.payload)
    assert back == values
    assert {key: type(back[key]) for key in values} == {key: type(value) for key, value in values.items()}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_payload_numbers_must_be_finite(number):
    with pytest.raises(StatusError, match="finite"):
        translate.payload({"a": api.Value(double_value=number)})


def point(name, vector):
    message = api.PointStruct(id=api.PointId(num=1))
    message.vectors.vectors.vectors[name].CopyFrom(vector)
    return message


def dense(*values):
    return api.Vector(dense=api.DenseVector(data=values))


def multi(*rows):
    return api.Vector(multi_dense=api.MultiDenseVector(vectors=[api.DenseVector(data=row) for row in rows]))


def sparse(indices, values):
    return api.Vector(sparse=api.SparseVector(indices=indices, values=values))


@pytest.mark.parametrize(
    ("name", "vector"),
    [
        ("one", dense(1, 2)),
        ("one", api.Vector(data=[1, 2])),
        ("many", multi([1, 2], [3, 4])),
        ("many", api.Vector(data=[1, 2, 3, 4], vectors_count=2)),
        ("words", sparse([3, 1], [1, 2])),
        ("words", sparse([], [])),
        ("words", api.Vector(data=[1], indices=api.SparseIndices(data=[4]))),
        ("one", dense(3e38, 3e38)),
    ],
)
def test_valid_vectors_are_accepted_in_both_wire_formats(kinds, name, vector):
    assert len(translate.points([point(name, vector)], kinds)) == 1


@pytest.mark.parametrize(
    ("name", "vector", "complaint"),
    [
        ("one", dense(1, 2, 3), "expected dim: 2, got 3"),
        ("one", dense(), "expected dim: 2, got 0"),
        ("one", dense(1, float("nan")), "NaN"),
        ("one", dense(float("inf"), float("-inf")), "NaN or infinite"),
        ("one", multi([1, 2]), "single vector, found a multivector"),
        ("one", sparse([1], [1]), "no sparse vector"),
        ("many", multi([1, 2], [1]), "expected dim: 2, got 1"),
        ("many", multi(), "multivector"),
        ("many", dense(1, 2), "found a single vector"),
        ("many", api.Vector(data=[1, 2], vectors_count=3), "2 values are not vectors_count=3 vectors"),
        ("many", api.Vector(data=[1, 2, 3], vectors_count=2), "3 values are not vectors_count=2 vectors"),
        ("words", sparse([1, 1], [1, 1]), "repeats an index"),
        ("words", sparse([1, 2], [1]), "2 indices and 1 values"),
        ("words", sparse([1], [float("inf")]), "infinite"),
        ("words", dense(1, 2), "is sparse"),
        ("other", dense(1, 2), "Not existing vector name"),
    ],
)
def test_a_vector_that_would_damage_the_engine_is_refused(kinds, name, vector, complaint):
    with pytest.raises(StatusError, match=complaint):
        translate.points([point(name, vector)], kinds)


def test_a_multivector_over_qdrants_limit_is_refused(kinds, monkeypatch):
    monkeypatch.setattr(translate, "MULTIVECTOR_ELEMENTS", 4)
    translate.points([point("many", multi([1, 2], [3, 4]))], kinds)
    with pytest.raises(StatusError, match="has 6 elements, at most 4"):
        translate.points([point("many", multi([1, 2], [3, 4], [5, 6]))], kinds)


def test_a_multivector_can_be_searched_by_a_single_vector(kinds):
    request = api.QueryPoints(
        using="many", query=api.Query(nearest=api.VectorInput(dense=api.DenseVector(data=[1, 2])))
    )
    translate.query_request(request, kinds)


@pytest.mark.parametrize("text", ["abc", "", "1"])
def test_point_ids_are_integers_or_uuids(text):
    with pytest.raises(StatusError, match="neither an unsigned integer nor a UUID"):
        translate.point_id(api.PointId(uuid=text))


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (api.QueryPoints(query=api.Query(recommend=api.RecommendInput())), "Query.recommend"),
        (api.QueryPoints(query=api.Query(nearest=api.VectorInput(id=api.PointId(num=1)))), "VectorInput.id"),
        (api.QueryPoints(lookup_from=api.LookupLocation(collection_name="x")), "QueryPoints.lookup_from"),
        (api.QueryPoints(params=api.SearchParams(acorn=api.AcornSearchParams(enable=True))), "acorn"),
    ],
)
def test_unsupported_fields_are_refused_by_name_instead_of_ignored(kinds, request_, name):
    def ask():
        require_known(request_)
        translate.query_request(request_, kinds)

    with pytest.raises(StatusError, match=name):
        ask()


@pytest.mark.parametrize("text", ["6F0E8E3C-1111-4222-8333-000000000001", "6f0e8e3c111142228333000000000001"])
def test_every_spelling_of_a_uuid_is_the_same_id(text):
    assert translate.point_id(api.PointId(uuid=text)) == "6f0e8e3c-1111-4222-8333-000000000001"


def test_mmr_of_a_sparse_vector_is_refused_by_name():
    settings = api.CreateCollection()
    settings.sparse_vectors_config.map["words"].SetInParent()
    request = api.QueryPoints(using="words")
    request.query.nearest_with_mmr.nearest.sparse.indices.append(1)
    request.query.nearest_with_mmr.nearest.sparse.values.append(1.0)
    with pytest.raises(StatusError, match=r"Query\.nearest_with_mmr of a sparse vector is not implemented"):
        translate.query_request(request, translate.vector_kinds(settings))
