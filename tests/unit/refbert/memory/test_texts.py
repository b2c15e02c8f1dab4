"""The place where references become points: what a text asks with, and a user's own criterion."""

import textwrap

import numpy as np
import pytest

from refbert.config import ReferenceConfig
from refbert.errors import InputError
from refbert.memory.manifest import manifest_of, trained_manifest
from refbert.memory.retrieval import open_retriever
from refbert.memory.texts import reference_id, reference_texts
from vector_store.config import StoreConfig
from vector_store.schema import Manifest, point_id


def texts_of(teacher, **options):
    references = ReferenceConfig(**{"criterion": "keywords", **options})
    return reference_texts(teacher, manifest_of(teacher, references), references)


def test_a_text_asks_under_the_id_it_is_stored_with(teacher):
    texts = texts_of(teacher)
    ids, states = teacher.encode_texts(["A text."])[0]
    row = {"text": "A text.", "source": "s", "document": "d", "split": "train"}
    point = texts.point(row, reference_id(teacher.fingerprint, "A text."), ids, states.mean(0), states)
    query = texts.query("A text.", ids, "d")
    assert point.id == query.id
    assert np.array_equal(point.keywords.indices, query.keywords.indices)
    assert query.document == "d"
    assert texts_of(teacher, exclude_same_document=False).query("A text.", ids, "d").document is None


def test_a_pair_asks_under_the_id_it_is_stored_with_and_with_the_words_of_both(teacher):
    texts = texts_of(teacher)
    pair = "A text.", "Another one."
    ids, states = teacher.encode_texts([pair])[0]
    row = {"text": pair[0], "text_pair": pair[1], "source": "s", "document": "d", "split": "train"}
    identifier = reference_id(teacher.fingerprint, pair)
    assert identifier == point_id(teacher.fingerprint, pair)
    assert identifier == reference_id(teacher.fingerprint, (" A  text.", "Another\tone."))
    assert (
        len({identifier, *(reference_id(teacher.fingerprint, text) for text in (pair[::-1], *pair, " ".join(pair)))})
        == 5
    )
    point, query = texts.point(row, identifier, ids, states.mean(0), states), texts.query(pair, ids, "d")
    assert point.text == pair
    assert point.id == query.id
    assert len(query.keywords.indices) == len(set(teacher.tokenizer.tokenize("A text. Another one.")))


def test_only_a_dense_memory_has_sentence_vectors(teacher):
    ids, _ = teacher.encode_texts(["A text."])[0]
    assert texts_of(teacher).query("A text.", ids, None).sentence is None
    dense = texts_of(teacher, dense_index=True)
    assert dense.query("A text.", ids, None).sentence.shape == (teacher.dim,)
    assert dense.manifest != texts_of(teacher).manifest


def test_a_users_own_criterion_is_imported_by_its_path(teacher, tmp_path, monkeypatch):
    (tmp_path / "own_criterion.py").write_text(
        textwrap.dedent(
            """
            def make(client, store, manifest):
                return ("own", store.collection, manifest.dim)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    texts = texts_of(teacher)
    made = open_retriever(None, StoreConfig(collection="c"), texts, "own_criterion.make")
    assert made == ("own", "c", teacher.dim)
    with pytest.raises(InputError, match=r"own_criterion.nothing cannot be imported"):
        open_retriever(None, StoreConfig(), texts, "own_criterion.nothing")


def test_identity_ignores_white_space_and_unicode_form_but_not_case_or_teacher():
    assert reference_id("f", "cafe\u0301  au lait ") == reference_id("f", "café au\nlait")
    assert reference_id("f", "A") != reference_id("f", "a") != reference_id("g", "a")


def test_a_token_budget_cuts_states_but_not_keywords(teacher):
    references = ReferenceConfig(criterion="keywords", tokens=8)
    texts = reference_texts(teacher, manifest_of(teacher, references), references)
    ids, states = teacher.encode_texts(["one two three four five six seven eight nine ten"])[0]
    point = texts.point({"text": "x", "source": "s", "document": "d", "split": "train"}, "i", ids, states[0], states)
    assert np.array_equal(point.states, states[:8])
    assert np.array_equal(point.token_ids, ids)
    assert len(point.keywords.indices) == 10
    assert texts.query("x", ids, None).keywords.indices.tolist() == point.keywords.indices.tolist()


@pytest.mark.parametrize("too_much", [{"tokens": 33}, {"dim": 385}])
def test_more_than_the_teacher_has_cannot_be_stored(teacher, too_much):
    with pytest.raises(InputError, match="exceeds the teacher's"):
        manifest_of(teacher, ReferenceConfig(**too_much))


def test_bytes_per_point_are_what_a_point_takes(teacher):
    from vector_store.codec import encode

    manifest: Manifest = manifest_of(teacher, ReferenceConfig())
    texts = texts_of(teacher)
    ids, states = teacher.encode_texts(["word " * 50])[0]
    row = {"text": "word " * 20, "source": "s", "document": "d", "split": "train"}
    point = texts.point(row, reference_id("f", "x"), ids, states.mean(0, dtype=np.float32), states)
    assert encode(point, manifest).ByteSize() == pytest.approx(manifest.bytes_per_point(residuals=0), rel=0.05)


def test_without_states_a_reference_takes_little_more_than_its_vector(teacher):
    from vector_store.codec import check, encode

    texts = texts_of(teacher, states=False)
    ids, states = teacher.encode_texts(["word " * 50])[0]
    row = {"text": "word " * 20, "source": "s", "document": "d", "split": "train"}
    point = texts.point(row, reference_id("f", "x"), ids, states.mean(0, dtype=np.float32), states)
    check(point, texts.manifest)
    assert point.states is None
    assert (texts.manifest.tokens, texts.manifest.token_bytes) == (0, 2)
    assert encode(point, texts.manifest).ByteSize() < 1000


def test_a_student_of_another_format_says_so_in_one_line(teacher):
    saved = manifest_of(teacher, ReferenceConfig()).model_dump(mode="json")
    assert trained_manifest(saved, "student") == manifest_of(teacher, ReferenceConfig())
    assert trained_manifest(None, "student") is None
    with pytest.raises(InputError, match="memory of format 2, this release reads 3; distil it again"):
        trained_manifest({"format_version": 2, "encoder": "x"}, "student")
