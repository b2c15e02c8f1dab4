"""Keyword weights against BM25's formula, and sentence vectors that are close for similar texts."""

import numpy as np
import pytest

from refbert.config import ReferenceConfig
from refbert.references import document_keywords, query_keywords, sentence_vector, word_table

SPECIAL = [101, 102]


def ids(*tokens: int) -> np.ndarray:
    return np.array([101, *tokens, 102], dtype=np.int32)


def test_document_weights_equal_bm25_without_idf():
    config = ReferenceConfig(bm25_k1=1.2, bm25_b=0.75, bm25_average_tokens=6)
    keywords = document_keywords(ids(7, 5, 7), SPECIAL, config)
    assert keywords.token_ids.tolist() == [5, 7]
    norm = 1.2 * (1 - 0.75 + 0.75 * 3 / 6)
    assert keywords.weights.tolist() == pytest.approx([2.2 / (1 + norm), 2 * 2.2 / (2 + norm)])


def test_a_document_weight_does_not_depend_on_other_texts():
    config = ReferenceConfig()
    before = document_keywords(ids(7, 5), SPECIAL, config)
    document_keywords(ids(*range(200, 300)), SPECIAL, config)
    assert np.array_equal(before.weights, document_keywords(ids(7, 5), SPECIAL, config).weights)


def test_a_query_has_each_distinct_token_once_without_special_tokens():
    (one,) = query_keywords(ids(9, 9, 3)[None], np.ones((1, 5), bool), SPECIAL)
    assert one.token_ids.tolist() == [3, 9]
    (none,) = query_keywords(ids()[None], np.ones((1, 2), bool), SPECIAL)
    assert none.token_ids.tolist() == []
    padded = np.stack([ids(9, 9, 3), ids(5, 9, 9)])
    mask = np.array([[True] * 5, [True, True, False, False, False]])
    assert [each.token_ids.tolist() for each in query_keywords(padded, mask, SPECIAL)] == [[3, 9], [5]]


def test_rare_tokens_weigh_most_in_a_sentence_vector():
    vectors = np.zeros((30_000, 3), dtype=np.float32)
    vectors[2, 0] = vectors[29_000, 1] = 1
    vector = sentence_vector(ids(2, 29_000), SPECIAL, word_table(vectors))
    assert vector[1] > 5 * vector[0] > 0
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-3)


def test_a_text_of_special_tokens_only_has_a_zero_vector():
    assert not sentence_vector(ids(), SPECIAL, word_table(np.ones((200, 4), np.float32))).any()


def test_a_word_table_has_8_bits_and_keeps_the_first_components_where_it_is_narrower():
    random = np.random.default_rng(0)
    vectors = (random.standard_normal((500, 3)) @ random.standard_normal((3, 16))).astype(np.float32)
    whole, narrow = word_table(vectors), word_table(vectors, 3)
    assert whole.rows.dtype == narrow.rows.dtype == np.int8
    assert (whole.dim, narrow.dim) == (16, 3)
    weighted = vectors * np.log1p(np.arange(500, dtype=np.float32))[:, None]
    tokens = np.arange(500, dtype=np.int32)
    np.testing.assert_allclose(whole.vectors(tokens), weighted, atol=np.abs(weighted).max() / 200)
    # Three components hold all there is: products of vectors stay what they were.
    products, wanted = (table @ table.T for table in (narrow.vectors(tokens), weighted))
    np.testing.assert_allclose(products, wanted, atol=np.abs(wanted).max() / 60)
