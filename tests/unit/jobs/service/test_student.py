"""How the texts of a batch are cut into forwards."""

from jobs.service.student import cut, padded


def test_texts_are_cut_into_batches_of_like_length_within_the_token_budget():
    lengths = [3, 16, 9, 8, 100, 4, 17]
    forwards = cut(range(len(lengths)), lengths, max_texts=3, max_tokens=48)
    assert sorted(place for forward in forwards for place in forward) == list(range(len(lengths)))
    assert forwards == [[0, 5, 3], [2, 1], [6], [4]]
    for forward in forwards:
        assert len(forward) == 1 or len(forward) * padded(max(lengths[place] for place in forward)) <= 48
