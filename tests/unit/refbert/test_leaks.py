"""Near-duplicates of evaluation rows are found, and only those."""

import random

import pytest

from refbert.leaks import NGRAM, find_leaks, plain, similar_texts


def jaccard(left: str, right: str) -> float:
    """By definition, on the same n-grams."""
    sets = []
    for text in (left, right):
        marked = f"\x02\x02{text}\x03\x03"
        sets.append({marked[at : at + NGRAM] for at in range(len(marked) - NGRAM + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize("threshold", [0.3, 0.7, 1.0])
def test_the_search_finds_the_same_as_comparing_all_pairs(threshold):
    draw = random.Random(0)
    words = ["the", "a", "man", "woman", "dog", "guitar", "plays", "is", "playing", "runs", "fast"]
    left, right = ([" ".join(draw.choices(words, k=draw.randint(1, 8))) for _ in range(120)] for _ in range(2))
    found = {(i, j): similarity for i, j, similarity in similar_texts(left, right, threshold)}
    wanted = {(i, j): jaccard(a, b) for i, a in enumerate(left) for j, b in enumerate(right)}
    wanted = {pair: similarity for pair, similarity in wanted.items() if similarity >= threshold}
    assert len(wanted) > 2
    assert found == pytest.approx(wanted)


def test_similarity_ignores_case_punctuation_and_character_width_but_not_words():
    train = [("The cup fell!", None), ("A cup fell over.", None), ("?", None)]
    leaks = find_leaks(train, [("the cup, fell", None), ("!", None)])
    assert leaks.duplicates == [(0, 0, 1.0)]
    assert (leaks.train_rows, leaks.evaluation_rows) == ({0}, {0})
    assert plain("\uff34he «CUP»…") == "the cup"


def test_a_changed_word_in_a_long_text_is_a_near_duplicate():
    text = "the police arrested all of the gang members who were trying to run the drug trade in the neighborhood"
    (leak,) = find_leaks([(text.replace("run", "stop"), None)], [(text, None)]).duplicates
    assert 0.7 <= leak.similarity < 1
    assert leak.similarity == pytest.approx(jaccard(text.replace("run", "stop"), text))


def test_a_pair_is_a_near_duplicate_in_either_order_and_a_shared_side_alone_is_not():
    train = [
        ("He said no.", "She left."),
        ("She left.", "He said no."),
        ("He said no.", "It rains."),
        ("A dog.", "A cat."),
    ]
    leaks = find_leaks(train, [("she left", "he said no")])
    assert [leak[:2] for leak in leaks.duplicates] == [(0, 0), (1, 0)]
    assert leaks.shared_sides == [(2, 0, 1.0)]
    twice = find_leaks([("She left.", "It rains.")], [("She left.", "She left.")])
    assert (twice.duplicates, len(twice.shared_sides)) == ([], 1)


def test_a_pair_with_an_empty_side_is_a_duplicate_of_its_like():
    leaks = find_leaks([("She left.", ""), ("It rains.", "")], [("she left", "")])
    assert [leak[:2] for leak in leaks.duplicates] == [(0, 0)]
    assert [leak[:2] for leak in leaks.shared_sides] == [(1, 0)]


def test_marks_on_letters_are_part_of_words():
    assert plain("\u0926\u093f\u0928!") == "\u0926\u093f\u0928"  # Devanagari "din": its vowel sign is not in \w
    assert find_leaks([("\u0926\u0940\u0928", None)], [("\u0926\u093f\u0928", None)]).duplicates == []


def test_the_similarity_of_a_pair_is_the_smaller_of_its_sides():
    long = "the euro was steady versus the swiss franc after hitting its highest"
    leaks = find_leaks([("Same.", long)], [("Same.", long + " today")])
    assert leaks.duplicates[0].similarity == pytest.approx(jaccard(long, long + " today"))


def test_a_stored_text_that_is_one_side_of_a_pair_is_a_leak():
    assert find_leaks([("She left.", None)], [("It rains.", "She left.")]).train_rows == {0}
    assert find_leaks([], [("She left.", None)]).duplicates == []
