import dataclasses
import uuid

import numpy as np
import pytest
from qdrant_client import grpc as api

from vector_store.codec import (
    check,
    decode_parts,
    empty_neighbours,
    encode,
    fill,
    pack_states,
    pack_vector,
    payload_of,
    unit,
    unpack_states,
    unpack_vector,
)
from vector_store.codec import decode as decode_point
from vector_store.errors import InvalidPoint
from vector_store.schema import Parts, SparseVector

STUDENT = "0123456789ab"
WITH_TEXT = Parts(text=True)


def decode(message, manifest, read=WITH_TEXT):
    """As a look-up with two rows reads it: the second one has the point, as far as `read` asks for it."""
    found = empty_neighbours(2, manifest, read=read)
    fields = {key: message.payload[key] for key in payload_of(read) if key in message.payload}
    fill(found, {1: decode_parts([api.RetrievedPoint(id=message.id, payload=fields)], manifest, read)})
    return found


def test_a_decoded_point_is_equal_bit_for_bit_and_padded(manifest, make_point):
    point = make_point()
    found = decode(encode(point, manifest), manifest)
    assert np.array_equal(found.states[1, :5], point.states)
    assert np.array_equal(found.token_ids[1, :5], point.token_ids)
    assert found.mask[1].tolist() == [True] * 5 + [False]
    assert not found.states[1, 5:].any()
    assert (found.ids, found.texts) == ([[], [point.id]], [[], ["a tëxt"]])


def test_a_pair_is_decoded_as_a_pair_and_a_single_text_as_one(manifest, make_point):
    pair = encode(make_point(text=("a tëxt", "its second")), manifest)
    assert decode(pair, manifest).texts == [[], [("a tëxt", "its second")]]
    assert "text_pair" not in encode(make_point(), manifest).payload
    with pytest.raises(InvalidPoint, match="text_pair is 5, wanted a string"):
        check(make_point(text=("a tëxt", 5)), manifest)


def test_decoding_into_a_row_leaves_other_rows_unchanged(manifest, make_point):
    found = decode(encode(make_point(), manifest), manifest)
    assert not found.mask[0].any()
    assert not found.states[0].any()
    assert not found.ids[0]


def test_states_that_are_not_contiguous_are_packed_in_order(manifest, make_point):
    states = np.arange(40, dtype=np.float16).reshape(5, 8)[:, ::2]
    found = decode(encode(make_point(states=states), manifest), manifest)
    assert np.array_equal(found.states[1, :5], states)


def test_int8_states_are_unpacked_within_half_a_quantization_step():
    states = np.random.default_rng(0).standard_normal((50, 384)).astype(np.float16) * np.float16(3)
    back = unpack_states(pack_states(states, "int8"), 384, "int8")
    step = np.abs(states).max(1, keepdims=True).astype(np.float32) / 127
    rounded_to_float16 = np.abs(states).astype(np.float32) / 1024
    assert (np.abs(back.astype(np.float32) - states) <= 0.51 * step + rounded_to_float16).all()
    assert len(pack_states(states, "int8")) == 50 * (384 + 2)


@pytest.mark.parametrize("value", [0.0, 6e-8, 65504.0, -65504.0])
def test_int8_keeps_extreme_rows_finite_and_signed(value):
    states = np.zeros((2, 8), np.float16)
    states[1, 3] = value
    back = unpack_states(pack_states(states, "int8"), 8, "int8")
    assert np.isfinite(back).all()
    assert back[1, 3] == pytest.approx(np.float16(value), rel=0.01, abs=6e-5)
    assert not back[0].any()


def test_an_int8_point_is_decoded_from_its_message(manifest, make_point):
    point, int8 = make_point(), manifest.model_copy(update={"datatype": "int8"})
    found = decode(encode(point, int8), int8)
    np.testing.assert_allclose(found.states[1, :5], point.states, atol=0.02)
    with pytest.raises(InvalidPoint, match="not packed as this collection's points are"):
        decode(encode(make_point(states=np.ones((5, 3), np.float16)), int8), manifest)


def test_a_look_up_without_states_reads_all_token_ids_vector_and_the_students_residual(manifest, make_point):
    residual = np.array([0.5, -0.25, 0, 1], np.float32)
    cut = manifest.model_copy(update={"tokens": 2, "vector_datatype": "float16"})
    point = make_point(states=make_point().states[:2], residuals={STUDENT: residual, "another": -residual})
    found = decode(encode(point, cut), cut, Parts(states=False, vector=True, residual_of=STUDENT))
    assert found.states.shape == (2, 6, 0)
    assert np.array_equal(found.token_ids[1, :5], point.token_ids)
    np.testing.assert_allclose(found.vectors[1, 0], point.vector, atol=1e-3)
    assert np.array_equal(found.residuals[1, 0], residual)
    assert np.isnan(found.residuals[0]).all()
    assert np.isnan(decode(encode(point, cut), cut, Parts(states=False, residual_of="unknown")).residuals).all()
    assert decode(encode(point, cut), cut).token_ids[1].tolist() == [101, 7]  # those of the states


def test_a_collection_without_states_holds_points_without(manifest, make_point):
    without = manifest.model_copy(update={"tokens": 0})
    check(make_point(states=None), without)
    assert "states" not in encode(make_point(states=None), without).payload
    with pytest.raises(InvalidPoint, match="has states, the collection stores none"):
        check(make_point(), without)
    with pytest.raises(InvalidPoint, match="has no states, the collection stores them"):
        check(make_point(states=None), manifest)


def test_a_small_vocabularys_token_ids_take_two_bytes(manifest, make_point):
    small = manifest.model_copy(update={"token_bytes": 2})
    point = make_point(token_ids=np.array([101, 7, 65_535, 9, 102], np.int32))
    assert decode(encode(point, small), small).token_ids[1, :5].tolist() == point.token_ids.tolist()
    assert len(encode(point, small).payload["token_ids"].string_value) == 16  # 10 bytes in base64, 28 for 20
    with pytest.raises(InvalidPoint, match=r"token ids from 7 to 70000, wanted 0 to 65535"):
        check(make_point(), small)


@pytest.mark.parametrize("datatype", ["float16", "int8"])
def test_an_unpacked_vector_is_packed_into_the_same_bytes(datatype):
    random = np.random.default_rng(0)
    for exponent in range(-9, 5):
        vector = random.standard_normal(384).astype(np.float32) * np.float32(10.0**exponent)
        packed = pack_vector(vector, datatype)
        unpacked = unpack_vector(packed, 384, datatype)
        assert pack_vector(unpacked, datatype) == packed
        if exponent >= -2:
            np.testing.assert_allclose(unpacked, vector, atol=np.abs(vector).max() / 250)
    with pytest.raises(ValueError, match="not"):
        unpack_vector(packed[:-1], 384, datatype)


def test_vectors_are_encoded_under_their_names(manifest, make_point):
    vectors = encode(make_point(), manifest).vectors.vectors.vectors
    assert list(vectors["keywords"].sparse.indices) == [7, 9]
    assert list(vectors["keywords"].sparse.values) == [1.0, 0.5]
    assert list(vectors["sentence"].dense.data) == [0.5] * 4  # of length 1


def sparse(indices, values):
    return SparseVector(np.array(indices, np.uint32), np.array(values, np.float32))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"id": "seven"}, "not a UUID"),
        (
            {"id": str(uuid.UUID(int=2**64 - 1))},
            "its id is below 00000000-0000-0001-0000-000000000000, where what travels",
        ),
        ({"states": np.zeros((7, 4), np.float16), "token_ids": np.zeros(7, np.int32)}, r"wanted \(1 to 6,\)"),
        ({"states": np.zeros((5, 3), np.float16)}, r"wanted \(5, 4\)"),
        ({"vector": np.zeros(3, np.float32)}, r"vector of shape \(3,\), wanted \(4,\)"),
        ({"vector": np.full(4, np.nan, np.float32)}, "vector holds NaN"),
        ({"vector": np.full(4, 7e4, np.float32)}, "vector holds NaN, infinite or larger values than 65504"),
        ({"vector": np.zeros(4, np.float16)}, "vector is float16, wanted float32"),
        ({"residuals": {"s": np.full(4, np.inf, np.float32)}}, "residual of s holds NaN"),
        ({"states": np.zeros((0, 4), np.float16), "token_ids": np.zeros(0, np.int32)}, r"wanted \(1 to 6,\)"),
        ({"token_ids": np.zeros(4, np.int32)}, r"states of shape \(5, 4\) for 4 token ids"),
        ({"states": np.full((5, 4), np.nan, np.float16)}, "states hold NaN"),
        ({"states": np.full((5, 4), np.inf, np.float16)}, "states hold NaN"),
        ({"keywords": sparse([1, 1], [1, 1])}, "repeat an index"),
        ({"keywords": sparse([1, 2], [1])}, "2 indices and 1 values"),
        ({"keywords": sparse([1], [np.nan])}, "keywords hold NaN"),
        ({"sentence": None}, "no sentence vector"),
        ({"sentence": np.ones(3, np.float32)}, r"wanted \(4,\)"),
        ({"sentence": np.array([1, 2, 3, np.inf], np.float32)}, "sentence vector holds NaN"),
    ],
)
def test_an_invalid_point_is_refused_with_its_id_and_the_reason(manifest, make_point, changes, complaint):
    with pytest.raises(InvalidPoint, match=complaint):
        check(make_point(**changes), manifest)


def test_a_valid_point_is_accepted(manifest, make_point):
    check(make_point(), manifest)


def test_a_sentence_vector_needs_a_dense_index(manifest, make_point):
    without = manifest.model_copy(update={"words_dim": 0})
    check(make_point(sentence=None), without)
    with pytest.raises(InvalidPoint, match="no dense index"):
        check(make_point(), without)


@pytest.mark.parametrize("damage", ["not base64!", "AAAA", ""])
def test_a_damaged_stored_point_is_named(manifest, make_point, damage):
    message = encode(make_point(), manifest)
    message.payload["states"].string_value = damage
    with pytest.raises(InvalidPoint, match=message.id.uuid):
        decode(message, manifest)


def test_a_stored_point_longer_than_the_manifest_is_refused(manifest, make_point):
    message = encode(make_point(), manifest)
    shorter = manifest.model_copy(update={"tokens": 4})
    with pytest.raises(InvalidPoint, match="5 states and 5 token ids"):
        decode(message, shorter)


def test_points_are_frozen(make_point):
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_point().text = "other"


# ---------------------------------------------------------------- whole points


def stored(message, flat=False):
    """What a store answers for the message; `flat` as servers did before vectors had kinds."""
    answer = api.RetrievedPoint(id=message.id, payload=message.payload)
    for name, vector in message.vectors.vectors.vectors.items():
        output = answer.vectors.vectors.vectors[name]
        match vector.WhichOneof("vector"), flat:
            case "sparse", False:
                output.sparse.CopyFrom(vector.sparse)
            case "sparse", True:
                output.data.extend(vector.sparse.values)
                output.indices.data.extend(vector.sparse.indices)
            case "dense", False:
                output.dense.data.extend(vector.dense.data)
            case "dense", True:
                output.data.extend(vector.dense.data)
    return answer


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    "changes", [{}, {"sentence": None}, {"keywords": sparse([], [])}, {"text": ("a", "b")}, {"states": None}]
)
def test_decode_is_the_inverse_of_encode(manifest, make_point, changes, flat):
    point = make_point(**changes)
    found = decode_point(stored(encode(point, manifest), flat), manifest)
    for field in ("id", "text", "source", "document", "split"):
        assert getattr(found, field) == getattr(point, field)
    for field in ("states", "token_ids"):
        assert np.array_equal(getattr(found, field), getattr(point, field))
    assert (found.sentence is None) == (point.sentence is None)
    if point.sentence is not None:
        np.testing.assert_allclose(found.sentence, point.sentence / np.linalg.norm(point.sentence), rtol=1e-3)
    np.testing.assert_allclose(found.vector, point.vector, atol=0.02)
    assert np.array_equal(found.keywords.indices, point.keywords.indices)
    assert np.array_equal(found.keywords.values, point.keywords.values)


@pytest.mark.parametrize("length", [0.5, 0.9991, 1.0, 1.0009, 30.0])
def test_a_copy_of_a_copy_has_the_same_sentence_vector(length):
    generator = np.random.default_rng(0)
    for dim in (2, 4, 384):
        for _ in range(50):
            vector = generator.normal(size=dim).astype(np.float32)
            stored = unit((vector * length / np.linalg.norm(vector)).astype(np.float32))
            assert np.array_equal(stored, stored.astype(np.float16))
            assert np.array_equal(unit(stored), stored)
            assert abs(np.linalg.norm(stored) - 1) < 1e-3


def test_a_vector_that_the_store_leaves_out_is_decoded_as_empty_or_none(manifest, make_point):
    answer = api.RetrievedPoint(id=encode(make_point(), manifest).id, payload=encode(make_point(), manifest).payload)
    found = decode_point(answer, manifest)
    assert len(found.keywords.indices) == len(found.keywords.values) == 0
    assert found.sentence is None


def test_stored_keywords_that_repeat_or_are_not_finite_are_refused(manifest, make_point):
    for keywords, complaint in ((sparse([1, 1], [1, 1]), "repeat"), (sparse([1], [np.inf]), "keywords hold NaN")):
        found = decode_point(stored(encode(make_point(keywords=keywords), manifest)), manifest)
        with pytest.raises(InvalidPoint, match=complaint) as caught:
            check(found, manifest)
        assert caught.value.reason in str(caught.value)
        assert found.id not in caught.value.reason


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("states", api.Value(list_value=api.ListValue()), "payload field 'states' holds a list, wanted a string"),
        ("token_ids", None, "payload field 'token_ids' holds nothing, wanted a string"),
        ("document", api.Value(bool_value=True), "payload field 'document' holds a bool, wanted a string"),
        ("text_pair", api.Value(integer_value=5), "payload field 'text_pair' holds a integer, wanted a string"),
    ],
)
def test_payload_of_another_type_is_refused_with_the_reason(manifest, make_point, field, value, reason):
    answer = stored(encode(make_point(text=("a", "b")), manifest))
    del answer.payload[field]
    if value is not None:
        answer.payload[field].CopyFrom(value)
    with pytest.raises(InvalidPoint, match=answer.id.uuid) as caught:
        decode_point(answer, manifest)
    assert caught.value.reason == reason


def test_unpacked_int8_states_are_packed_into_the_same_bytes():
    largest = np.arange(0x7C00, dtype=np.uint16).view(np.float16)  # every float16 there is, as a row's largest value
    states = np.random.default_rng(0).uniform(-1, 1, (len(largest), 8)) * largest[:, None].astype(np.float32)
    states[:, 0] = largest
    packed = pack_states(states.astype(np.float16), "int8")
    assert pack_states(unpack_states(packed, 8, "int8"), "int8") == packed
