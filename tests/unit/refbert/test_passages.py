"""Texts and passages: identity, the held-out share, and cuts that lose no word and fit the budget."""

import re
import sys
from functools import partial

import pytest

from refbert.passages import halves, normalise, split_of, split_passages, text_digest
from refbert.tokenizer import word_spans
from tests.unit.refbert.tokenizer_families import FAMILIES, sentences


def test_a_pairs_digest_depends_on_both_texts_and_their_order():
    digests = [text_digest(text) for text in ("a b", ("a", "b"), ("b", "a"), ("a b", "c"), ("a", "b c"), "a")]
    assert len(set(digests)) == len(digests)
    pairs = [("the same", f"number {number}") for number in range(1000)]
    assert 50 < sum(split_of(pair, 0.1) == "heldout" for pair in pairs) < 150
    assert all(split_of((" the\tsame", pair[1]), 0.1) == split_of(pair, 0.1) for pair in pairs[:100])


def test_the_heldout_split_has_its_share_of_texts_and_duplicates_share_a_split():
    texts = [f"text number {number}" for number in range(4000)]
    heldout = sum(split_of(text, 0.1) == "heldout" for text in texts) / len(texts)
    assert heldout == pytest.approx(0.1, abs=0.02)
    assert all(split_of(f"  {text} ", 0.1) == split_of(text, 0.1) for text in texts[:100])


def test_white_space_is_folded_as_regular_expressions_know_it():
    """Ids of stored texts depend on it: releases before folded `\\s+`."""
    spaces = {chr(point) for point in range(sys.maxunicode + 1) if re.match(r"\s", chr(point))}
    folded = {chr(point) for point in range(sys.maxunicode + 1) if normalise(f" a{chr(point)}{chr(point)}b ") == "a b"}
    assert folded == spaces


def word_offsets(text: str) -> list[tuple[int, int]]:
    """Tokens of at most three characters, so that words have several."""
    spans, start = [], 0
    for word in text.split(" "):
        spans += [(start + i, min(start + i + 3, start + len(word))) for i in range(0, len(word), 3)]
        start += len(word) + 1
    return spans


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 100])
def test_passages_keep_every_word_within_the_budget(tokens):
    text = "one fourteen six elephants a b c d walking home"
    passages = split_passages(text, tokens, word_offsets)
    assert "".join("".join(passages).split()) == text.replace(" ", "")
    assert all(len(word_offsets(passage)) <= tokens for passage in passages)
    if tokens >= 4:  # no word is longer: words stay whole
        assert " ".join(passages) == text


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]()


@pytest.mark.parametrize("budget", [8, 32])
def test_passages_give_the_text_back_and_fit_the_budget_alone_for_each_family_of_tokenizers(family, budget):
    room = budget - family.num_special_tokens_to_add()
    whole = 0
    for text in map(normalise, sentences(25, seed=1)):
        passages = split_passages(text, room, partial(word_spans, family))
        assert max(len(family(passage)["input_ids"]) for passage in passages) <= budget
        assert "".join(passages).replace(" ", "") == text.replace(" ", "")
        if max(len(word_spans(family, word)) for word in text.split(" ")) <= room:
            assert " ".join(passages) == text
            whole += 1
    assert whole >= 5


@pytest.mark.parametrize("word", ["", "x" * 50_000, "\u200b" * 50_000, "京" * 5_000, "🎬" * 2_000])
def test_tokenizing_is_linear_in_a_texts_length_whatever_its_words(word):
    tokenizer = FAMILIES["WordPiece (BERT)"]()
    text = " ".join([*sentences(50), *filter(None, [word]), *sentences(50, seed=1)])
    asked = []

    def counted(part: str) -> list[tuple[int, int]]:
        asked.append(len(part))
        return word_spans(tokenizer, part)

    passages = split_passages(text, 30, counted)
    assert "".join(passages).replace(" ", "") == text.replace(" ", "")
    assert sum(asked) < 5 * len(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One . Two two . Three", ("One . Two two .", "Three")),  # the end that is nearest to the middle
        ("A. no end of a sentence is near here", ("A. no end of a", "sentence is near here")),
        ("two words", ("two", "words")),
        ("word", None),
    ],
)
def test_a_passage_is_halved_at_the_sentence_end_nearest_its_middle(text, wanted):
    assert halves(text) == wanted
