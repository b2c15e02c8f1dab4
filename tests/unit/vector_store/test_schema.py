from vector_store.schema import point_id


def test_a_text_keeps_its_id_from_release_to_release():
    text = "a tëxt with “quotes”"
    assert point_id("f1", [text]) == "95613096-ecf8-586b-a691-072f37868c71"
    assert point_id("f1", [text, "b"]) == "e06b6eac-c75d-5659-a4fb-e7d1de92c5aa"


def test_another_text_encoder_or_split_into_a_pair_is_another_point():
    ids = {point_id("f1", ["a b"]), point_id("f2", ["a b"]), point_id("f1", ["a", "b"]), point_id("f1", ["a c"])}
    assert len(ids) == 4
