from refbert.corpus import normalise, reference_id
from vector_store.schema import point_id


def test_a_point_id_is_the_id_that_the_method_gives_the_text():
    text = "  A tëxt\twith “quotes”  "
    assert point_id("f1", [normalise(text)]) == reference_id("f1", text)
    assert point_id("f1", [normalise(text), "b"]) == reference_id("f1", text, "b")


def test_another_text_encoder_or_split_into_a_pair_is_another_point():
    ids = {point_id("f1", ["a b"]), point_id("f2", ["a b"]), point_id("f1", ["a", "b"]), point_id("f1", ["a c"])}
    assert len(ids) == 4
