from vector_store.schema import point_id


def test_a_text_has_the_same_id_in_every_release():
    text = "a tëxt with “quotes”"
    assert point_id("f1", [text]) == "95613096-ecf8-586b-a691-072f37868c71"
    assert point_id("f1", [text, "b"]) == "e06b6eac-c75d-5659-a4fb-e7d1de92c5aa"


def test_the_id_depends_on_text_encoder_and_split_into_a_pair():
    ids = {point_id("f1", ["a b"]), point_id("f2", ["a b"]), point_id("f1", ["a", "b"]), point_id("f1", ["a c"])}
    assert len(ids) == 4
