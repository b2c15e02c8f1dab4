"""A reader's own copy of an adapted memory finds what the store finds."""

import dataclasses

import numpy as np
import pytest

import refbert
from refbert.errors import InputError
from refbert.memory import replica
from refbert.memory.adaptation import adapting_student
from refbert.words import WordVectors
from tests.integration.jobs.adapting.memory import ASKED, TEXTS


@pytest.mark.parametrize("rows_of_a_graph", [10**9, 10])
def test_a_replica_finds_what_the_store_finds_and_does_not_ask_it(memory, store_url, monkeypatch, rows_of_a_graph):
    monkeypatch.setattr(replica, "HNSW_ROWS", rows_of_a_graph)
    memory.add(TEXTS)
    memory.adapt()
    texts = [*ASKED, *TEXTS[:8]]  # the last are stored: they read what others say
    with (
        refbert.load(memory.folder, store_url) as asks_store,
        refbert.load(memory.folder, store_url, replica=True) as copy,
    ):
        wanted, found = (reader.look_up(texts, reader.tokenize(texts)) for reader in (asks_store, copy))
        for row, (ids, others) in enumerate(zip(wanted.ids, found.ids, strict=True)):
            assert len(others) == len(set(others)) == 4
            assert asks_store.texts.identifier(texts[row]) not in others
            np.testing.assert_allclose(found.scores[row], wanted.scores[row], atol=2e-3)
            assert ids == others or len(set(np.round(wanted.scores[row], 2))) < 5  # equal scores have no order
        same = [row for row, ids in enumerate(wanted.ids) if ids == found.ids[row]]
        assert len(same) > 5
        for name in ("keys", "residuals"):
            np.testing.assert_allclose(getattr(found, name)[same], getattr(wanted, name)[same], atol=2e-3)
        monkeypatch.setattr(type(asks_store.source._client), "ask", lambda *_: pytest.fail("asked the store"))
        answered = asks_store.forward(asks_store.tokenize(texts), wanted).sentence_embedding.numpy()
        answered /= np.linalg.norm(answered, axis=1, keepdims=True)
        np.testing.assert_allclose(copy.encode(texts)[same], answered[same], atol=2e-3)


@pytest.mark.parametrize("replica", [False, True])
def test_the_words_of_a_text_are_added_up_once(memory, store_url, monkeypatch, replica):
    memory.add(TEXTS)
    memory.adapt()
    with refbert.load(memory.folder, store_url, replica=replica) as reader:
        tokens = reader.tokenize(ASKED)
        found = reader.look_up(ASKED, tokens)
        np.testing.assert_array_equal(found.asked, reader.words(tokens.input_ids, tokens.mask).numpy())
        wanted = reader.answer(tokens, dataclasses.replace(found, asked=None))[1]
        monkeypatch.setattr(WordVectors, "forward", lambda *_: pytest.fail("added up again"))
        answered = reader.answer(tokens, found)[1]
    for name, column in answered._asdict().items():
        np.testing.assert_array_equal(column.numpy(), getattr(wanted, name).numpy(), err_msg=name)


def test_a_memory_that_is_not_asked_by_words_alone_has_no_replica(memory, store_url):
    memory.add(TEXTS[:20])
    by_keywords = memory.options.references.model_copy(update={"criterion": "keywords"})
    memory.config = memory.config.model_copy(update={"references": by_keywords})
    memory.student, memory.name = adapting_student(memory.config.references, memory.folder, memory.teacher, batch=16)
    memory.adapt()
    with pytest.raises(
        InputError, match=r"replica finds references by criterion dense.*asked by 'keywords'.*replica_rows=0"
    ):
        refbert.load(memory.folder, store_url, replica=True)
