"""How rows become passages: what stays on one side of the held-out split, and what becomes a pair."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import refbert.passages
from jobs.config import RunConfig
from jobs.corpus import parts, prepared
from jobs.corpus.parts import CorpusPart, ReadAndSplit, row_passages
from jobs.corpus.prepared import PassageRows, already_prepared, first_rows, prepare, texts_in
from refbert.config import CorpusConfig, TeacherConfig
from refbert.corpus import Row
from refbert.errors import InputError
from refbert.passages import Text
from tests.unit.refbert.tokenizer_families import FAMILIES, sentences

SPLIT = CorpusConfig(path="x")
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


def test_pair_share_of_the_passages_become_pairs_without_losing_text():
    some = CORPUS.model_copy(update={"pair_share": 0.25})
    texts = [f"sentence {n} begins. And ends here {n}" for n in range(400)]
    found = [next(row_passages(Row(text, None, "d", "file", 0), some, None, 16)) for text in texts]
    pairs = [passage for passage in found if passage["text_pair"] is not None]
    assert 60 < len(pairs) < 140
    joined = [" ".join(filter(None, (passage["text"], passage["text_pair"]))) for passage in found]
    assert joined == texts


def test_the_split_of_a_row_is_drawn_once_however_many_passages_it_has(monkeypatch):
    drawn: list[Text] = []

    def split_of(text: Text, share: float) -> str:
        drawn.append(text)
        return refbert.passages.split_of(text, share)

    monkeypatch.setattr(parts, "split_of", split_of)
    text = "a few words of a book " * 200
    passages = list(row_passages(Row(text.strip(), None, "d", "f", 0), SPLIT, FAMILIES["WordPiece (BERT)"](), 16))
    assert len(passages) > 80
    assert len(drawn) == 1, "hashing the row for each passage takes time quadratic in its length"


@pytest.mark.parametrize("family", ["byte-level, trimmed (RoBERTa)", "Unigram (T5)", "WordPiece (BERT)"])
def test_both_halves_of_a_passage_that_became_a_pair_fit_the_budget(family):
    tokenizer = FAMILIES[family]()
    halved = SPLIT.model_copy(update={"pair_share": 1.0})
    pairs = whole = 0
    for text in sentences(40):
        made = list(row_passages(Row(text, None, "d", "f", 0), halved, tokenizer, 16))
        read = [tokenizer(*filter(None, (passage["text"], passage["text_pair"]))) for passage in made]
        assert max(len(tokens["input_ids"]) for tokens in read) <= 16
        pairs += sum(passage["text_pair"] is not None for passage in made)
        whole += sum(passage["text_pair"] is None and " " in passage["text"] for passage in made)
    assert pairs > 4 * whole


def test_a_budget_that_special_tokens_fill_is_refused_in_one_line():
    tokenizer = FAMILIES["byte-level, trimmed (RoBERTa)"]()
    halved = SPLIT.model_copy(update={"pair_share": 0.5})
    with pytest.raises(InputError, match=r"teacher\.tokens=4 leaves no room for text beside 4 special tokens"):
        list(row_passages(Row("some words", None, "d", "f", 0), halved, tokenizer, 4))


def chunked_table(sizes: list[int]) -> pa.Table:
    texts = iter(f"text {number % 37}" for number in range(sum(sizes)))
    chunks = [pa.table({"text": [next(texts) for _ in range(size)], "text_pair": [None] * size}) for size in sizes]
    return pa.concat_tables(
        [chunk.cast(pa.schema({"text": pa.string(), "text_pair": pa.string()})) for chunk in chunks]
    )


def test_rows_are_taken_from_many_chunks_in_the_order_asked_for():
    table = chunked_table([5, 0, 1, 17, 30])
    rows = np.random.default_rng(0).integers(0, len(table), 40)
    assert PassageRows(table).at(rows) == table.take(pa.array(rows)).to_pylist()
    assert list(texts_in(table, rows)) == [table["text"][row].as_py() for row in rows.tolist()]


@pytest.mark.parametrize("bucket_rows", [10, 1000])
def test_the_first_row_of_each_text_is_found_with_any_bucket_size(monkeypatch, bucket_rows):
    monkeypatch.setattr(prepared, "BUCKET_ROWS", bucket_rows)
    table = chunked_table([50, 60])
    texts = table["text"].to_pylist()
    assert first_rows(table).tolist() == sorted({texts.index(text) for text in texts})


def read_here(corpus: CorpusConfig, teacher: TeacherConfig, files: list[str], folder: Path) -> list[CorpusPart]:
    """Read the files in this process, without Ray."""
    batch = {"number": np.arange(len(files)), "file": np.array(files)}
    reading = ReadAndSplit(folder, corpus, teacher.model, teacher.tokens)
    return [CorpusPart.named(Path(part["path"][0])) for part in reading(batch)]


def spoil(path: Path, kind: str) -> None:
    match kind:
        case "cut":
            os.truncate(path, path.stat().st_size // 2)
        case "overwritten":  # as long as before, and read as other texts
            content = path.read_bytes()
            path.write_bytes(content.replace(b"words", b"sword") if b"words" in content else content[:-1] + b"\n")
        case "deleted":
            path.unlink()


@pytest.fixture
def small(tmp_path, monkeypatch) -> RunConfig:
    """A run over 40 rows, whose corpus is read in this process."""
    monkeypatch.setenv("REFBERT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(prepared, "_read_parts", read_here)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"words {n}"}) + "\n" for n in range(40)))
    given = CorpusConfig(path=str(tmp_path / "a.jsonl"), long_texts="truncate", heldout_fraction=0.3)
    return RunConfig(name="small", corpus=given)


@pytest.mark.parametrize("kind", ["cut", "overwritten", "deleted"])
@pytest.mark.parametrize("name", ["train.arrow", "heldout.arrow", "distinct.npy"])
def test_a_damaged_file_of_a_prepared_corpus_is_named_with_the_remedy(small, name, kind):
    directory = prepare(small).directory
    assert prepare(small).counts.train > 20
    spoil(directory / name, kind)
    for opened in (prepare, already_prepared):
        with pytest.raises(
            InputError, match=rf"{name} is (damaged|missing).*delete {directory}, and the corpus is prepared again"
        ):
            opened(small)
    shutil.rmtree(directory)
    assert prepare(small).counts.train > 20


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"counts": {}}'])
def test_a_damaged_manifest_of_a_prepared_corpus_is_one_line(small, content):
    directory = prepare(small).directory
    (directory / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest.json cannot be read.*is prepared again"):
        prepare(small)


def test_a_damaged_part_of_a_corpus_is_read_again(tmp_path, small, caplog):
    folder = tmp_path / "parts"
    folder.mkdir()
    (whole,) = read_here(small.corpus, small.teacher, [small.corpus.path], folder)
    rows = whole.table().to_pylist()
    spoil(whole.path, "cut")
    (again,) = read_here(small.corpus, small.teacher, [small.corpus.path], folder)
    assert again.table().to_pylist() == rows
    assert f"{whole.path} is damaged" in caplog.text


def test_files_that_are_passed_over_are_named_when_a_corpus_is_prepared(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("REFBERT_HOME", str(tmp_path / "home"))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"body": "x"}\n')
    (tmp_path / "texts" / "b.json").write_text("[]")

    monkeypatch.setattr(prepared, "_read_parts", read_here)
    config = RunConfig(name="named", corpus=CorpusConfig(path=str(tmp_path / "texts")))
    with pytest.raises(InputError, match="has no column 'text', only body"):
        prepare(config)
    assert "1 of 2 files passed over: 1 in another form (b.json)" in caplog.text
