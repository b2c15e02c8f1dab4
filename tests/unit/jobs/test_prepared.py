"""How rows become passages: what stays on one side of the held-out split, and what becomes a pair."""

from jobs.prepared import row_passages
from refbert.config import CorpusConfig
from refbert.corpus import Row

CORPUS = CorpusConfig(path="x", long_texts="truncate", heldout_fraction=0.5)


def splits(documents: list[str], named: bool) -> list[str]:
    rows = [Row(f"text {n}", None, document, "file", n, None, named) for n, document in enumerate(documents)]
    return [passage["split"] for row in rows for passage in row_passages(row, CORPUS, None, 16)]


def test_a_named_document_is_held_out_whole():
    of_documents = {document: set(splits([document] * 20, named=True)) for document in "abcdefgh"}
    assert all(len(found) == 1 for found in of_documents.values())
    assert set.union(*of_documents.values()) == {"train", "heldout"}


def test_rows_that_are_their_own_documents_are_held_out_one_by_one():
    assert set(splits([f"file#{n}" for n in range(20)], named=False)) == {"train", "heldout"}


def test_about_the_share_asked_for_becomes_pairs_that_hold_the_whole_passage():
    corpus = CORPUS.model_copy(update={"pair_share": 0.25})
    texts = [f"sentence {n} begins. And ends here {n}" for n in range(400)]
    found = [next(row_passages(Row(text, None, "d", "file", 0), corpus, None, 16)) for text in texts]
    pairs = [passage for passage in found if passage["text_pair"] is not None]
    assert 60 < len(pairs) < 140
    joined = [" ".join(filter(None, (passage["text"], passage["text_pair"]))) for passage in found]
    assert joined == texts
