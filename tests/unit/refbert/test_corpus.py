"""Reading a corpus: every format gives the same rows, and a bad row is rejected with a reason, never a crash."""

import csv
import gzip
import json
import os
from itertools import islice

import pyarrow as pa
import pytest
from pyarrow import parquet
from pydantic import ValidationError

from refbert.config import CorpusConfig
from refbert.corpus import (
    PROBED_ROWS,
    Rejected,
    Row,
    corpus_files,
    estimated_rows,
    passed_over,
    read_rows,
)
from refbert.errors import InputError
from refbert.passages import normalise, text_of

TEXTS = ["A first text.", "Ein zweiter, länger.", "and a third"]


def rows_of(path, **options) -> list[Row | Rejected]:
    config = CorpusConfig(path=str(path), **options)
    return [row for file in corpus_files(config) for row in read_rows(file, config)]


def texts_of(rows) -> list[str]:
    return [row.text for row in rows if isinstance(row, Row)]


def write_text(folder):
    (folder / "a.txt").write_text("\n".join(TEXTS) + "\n\n")


def write_jsonl(folder):
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))


def write_parquet(folder):
    parquet.write_table(pa.table({"text": TEXTS}), folder / "a.parquet")


def write_csv(folder):
    with (folder / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(TEXTS)])


def write_quoted_tsv(folder):
    lines = ['"text"\t"id"', *(f'"{text}"\t"1"' for text in TEXTS)]
    (folder / "a.tsv").write_text("\ufeff" + "\r\n".join(lines), newline="")


@pytest.mark.parametrize("write", [write_text, write_jsonl, write_parquet, write_csv, write_quoted_tsv])
def test_every_format_gives_the_same_texts_from_folder_file_and_uri(tmp_path, write):
    write(tmp_path)
    file = next(tmp_path.iterdir())
    assert texts_of(rows_of(tmp_path)) == texts_of(rows_of(file)) == texts_of(rows_of(file.as_uri())) == TEXTS


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".lz4", ".zst"])
@pytest.mark.parametrize("write", [write_text, write_jsonl, write_csv])
def test_compressed_files_are_read_and_their_rows_estimated(tmp_path, write, ending):
    write(tmp_path)
    plain = next(tmp_path.iterdir())
    with pa.output_stream(f"{plain}{ending}", compression="detect") as packed:
        packed.write(plain.read_bytes())
    plain.unlink()
    assert texts_of(rows_of(tmp_path)) == TEXTS
    config = CorpusConfig(path=str(tmp_path))
    assert estimated_rows(config, corpus_files(config)) == len(TEXTS)


def test_a_compressed_file_that_was_cut_off_is_refused_in_one_line(tmp_path):
    packed = gzip.compress("".join(f'{{"text": "row {row}"}}\n' for row in range(1000)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match=r"a\.jsonl\.gz cannot be read as jsonl: Truncated"):
        rows_of(tmp_path)
    (tmp_path / "a.jsonl.gz").write_bytes(packed + packed)
    assert len(rows_of(tmp_path)) == 2000


def test_files_that_are_not_read_are_counted_and_named_in_one_line(tmp_path):
    write_jsonl(tmp_path)
    others = [
        "notes.md", "sub/b.json", "c.parquet.gz", ".ipynb_checkpoints/a-checkpoint.jsonl", "._a.jsonl", ".cache/x/a.txt",
        "__MACOSX/a.jsonl",
    ]  # fmt: skip
    for name in others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": "not to be read"}\n')
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert texts_of(rows_of(tmp_path)) == TEXTS
    line = passed_over(CorpusConfig(path=str(tmp_path)))
    assert "9 of 10 files passed over" in line
    assert "4 hidden (._a.jsonl, .cache/x/a.txt, .ipynb_checkpoints/a-checkpoint.jsonl, __MACOSX/a.jsonl)" in line
    assert "1 broken links (link.jsonl)" in line
    assert "1 pipes or devices (pipe.jsonl)" in line
    assert "3 in another form (c.parquet.gz, notes.md, sub/b.json)" in line
    assert "\n" not in line
    explicit = CorpusConfig(path=str(tmp_path), format="jsonl")
    assert [file.removeprefix(f"{tmp_path}/") for file in corpus_files(explicit)] == [
        "a.jsonl", "c.parquet.gz", "notes.md", "sub/b.json",
    ]  # fmt: skip
    assert passed_over(CorpusConfig(path=str(tmp_path / "a.jsonl"))) is None


@pytest.mark.parametrize("write", [write_jsonl, write_parquet, write_csv, write_quoted_tsv])
@pytest.mark.parametrize("field", ["text_field", "text_pair_field"])
def test_a_field_that_no_row_has_is_named_with_the_fields_there_are(tmp_path, write, field):
    write(tmp_path)
    with pytest.raises(InputError, match=r"a\.\w+ has no column 'body', only .*text.*; name the right one") as error:
        rows_of(tmp_path, **{field: "body", "long_texts": "truncate"})
    assert "\n" not in str(error.value)


def test_a_wrong_field_of_a_large_jsonl_file_is_found_before_the_file_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "id": 1}\n' * 3000)
    config = CorpusConfig(path=str(tmp_path / "a.jsonl"), text_field="body")
    read = read_rows(config.path, config)
    assert len(list(islice(read, PROBED_ROWS))) == PROBED_ROWS
    with pytest.raises(InputError, match="has no column 'body', only text, id"):
        next(read)
    assert isinstance(next(read_rows(config.path, config, start=2000)), Rejected), "a resumed reading knows only a part"


def test_a_label_or_document_that_no_row_has_is_said(tmp_path, caplog):
    write_jsonl(tmp_path)
    rows = rows_of(tmp_path, label_field="rating", document_field="doc")
    assert [row.label for row in rows] == [None] * 3
    assert "no row has doc, rating, only text" in caplog.text


def test_a_hub_data_set_is_read_by_the_hub_library(tmp_path):
    write_parquet(tmp_path)
    assert texts_of(rows_of(f"hub:{tmp_path}")) == TEXTS


def test_bad_rows_are_rejected_with_their_reason_and_the_rest_is_read(tmp_path):
    lines = [
        b'{"text": "good"}',
        b"{broken",
        b'{"text": 7}',
        b'{"other": "x"}',
        b'{"text": "  "}',
        b"[1]",
        b'{"text": "\xff"}',
        b'{"text": "cut \\ud83d"}',
        b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines, b'{"text": "also good"}']))
    rows = rows_of(tmp_path)
    assert texts_of(rows) == ["good", "also good"]
    reasons = [row.reason for row in rows if isinstance(row, Rejected)]
    wanted = [
        "not JSON",
        "is int, wanted a text",
        "is NoneType",
        "is empty",
        "a JSON list",
        "not UTF-8",
        "lone surrogate",
        "nested too deeply",
    ]
    assert len(reasons) == len(wanted)
    assert all(part in reason for part, reason in zip(wanted, reasons, strict=True))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_row_of_a_pair_has_both_texts_or_is_rejected_with_a_reason(tmp_path, kind):
    rows = [{"a": "one", "b": " two\n words"}, {"a": "three", "b": None}, {"a": "four", "b": " "}]
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    else:
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    good, *bad = rows_of(tmp_path, text_field="a", text_pair_field="b", long_texts="truncate")
    assert text_of(good._asdict()) == ("one", "two words")
    assert [row.reason for row in bad] == ["'b' is NoneType, wanted a text", "'b' is empty"]
    with pytest.raises(ValidationError, match=r"not cut into passages; set corpus.long_texts=truncate"):
        CorpusConfig(path=str(tmp_path), text_pair_field="b")


def test_a_byte_order_mark_spoils_no_first_row_and_no_title(tmp_path):
    start = "\ufeff"
    (tmp_path / "a.jsonl").write_text(f'{start}{{"text": "one"}}\n', encoding="utf-8")
    (tmp_path / "b.txt").write_text(f"{start}two\n", encoding="utf-8")
    (tmp_path / "c.csv").write_text(f"{start}text\nthree\n", encoding="utf-8")
    assert texts_of(rows_of(tmp_path)) == ["one", "two", "three"]
    (tmp_path / "b.txt").write_text(f"{start}= Title =\nIts line\n", encoding="utf-8")
    (article,) = rows_of(tmp_path / "b.txt", format="wikitext")
    assert (article.text, article.document) == ("Its line", "= Title =")


def test_a_bad_row_of_a_csv_file_costs_itself_only(tmp_path):
    content = b'text,label\n"x' + b"x" * 200_000 + b'",1\n"open,2\ncaf\xe9,3\none cell\n,4\ngood,\n'
    (tmp_path / "a.csv").write_bytes(content)
    long, *bad, good = rows_of(tmp_path, label_field="label")
    assert (len(long.text), long.label) == (200_001, "1")
    assert [row.reason for row in bad] == [
        "a quote is not closed", "not UTF-8, or a lone surrogate, which no encoding of text can hold", "1 cells, wanted 2",
        "'text' is empty",
    ]  # fmt: skip
    assert (good.text, good.label) == ("good", None)
    config = CorpusConfig(path=str(tmp_path / "a.csv"), label_field="label")
    assert list(read_rows(config.path, config, start=4)) == [bad[3], good]


def test_a_label_is_one_class_from_every_format_and_what_is_no_class_is_rejected(tmp_path):
    values = ["1", "1.0", "NaN", "Infinity", '""', "[1]", "{}", '"1.0"', '" 1 "', "null", '"nan"', "true", '"1.5"']
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "x", "y": {value}}}\n' for value in values))
    (tmp_path / "b.csv").write_text("text,y\nx,1\nx,1.0\nx,\nx,inf\n")
    columns = {"text": ["x"] * 4, "y": [1.0, 2.5, float("nan"), None]}
    parquet.write_table(pa.table(columns), tmp_path / "c.parquet")
    rows = rows_of(tmp_path, label_field="y")
    labels = [row.label if isinstance(row, Row) else row.reason for row in rows]
    assert labels == [
        "1", "1", "label 'nan' of type float is no class", "label 'inf' of type float is no class",
        "label '' of type str is no class", "label '[1]' of type list is no class", "label '{}' of type dict is no class",
        "1", "1", None, "label 'nan' of type str is no class", "True", "1.5",
        "1", "1", None, "label 'inf' of type str is no class",
        "1", "2.5", "label 'nan' of type float is no class", None,
    ]  # fmt: skip


def test_rows_without_a_documents_name_are_documents_by_themselves(tmp_path):
    values = ["1", "1.0", '""', "NaN", "null", '"b"', "[1]"]
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "x", "doc": {value}}}\n' for value in values))
    *rows, bad = rows_of(tmp_path, document_field="doc")
    named = [row.document if row.in_document else None for row in rows]
    assert named == ["1", "1", None, None, None, "b"]
    assert len({row.document for row in rows}) == 5
    assert bad.reason == "document 'doc' is list, wanted a name"


def test_rows_keep_their_label_and_document(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "y": 3, "doc": "d1"}\n{"text": "z"}\n')
    first, second = rows_of(tmp_path, label_field="y", document_field="doc")
    assert (first.label, first.document) == ("3", "d1")
    assert second.label is None
    assert second.document.endswith("a.jsonl#1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, None, "does not exist"),
        ("notes.doc", b"x", "holds no file ending in"),
        ("a.parquet", b"no parquet", "cannot be read as parquet"),
    ],
)
def test_an_unusable_corpus_is_refused_in_one_line(tmp_path, name, content, message):
    path = tmp_path / "missing"
    if name:
        path = tmp_path
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        rows_of(path)
    assert "\n" not in str(error.value)


def test_a_long_line_across_read_blocks_stays_one_row(tmp_path):
    long = "word " * 500_000
    (tmp_path / "a.txt").write_text(f"{long}\nshort")
    assert texts_of(rows_of(tmp_path)) == [normalise(long), "short"]


def test_articles_of_wikitext_are_documents_without_titles_and_headings(tmp_path):
    file = tmp_path / "wiki.txt"
    file.write_text(" = First = \n\n One line .\n = = A heading = = \n Another = sign .\n = Second = \n Its line .\n")
    rows = list(read_rows(str(file), CorpusConfig(path=str(file), format="wikitext")))
    assert [(row.text, row.document) for row in rows] == [
        ("One line .", "= First ="), ("Another = sign .", "= First ="), ("Its line .", "= Second ="),
    ]  # fmt: skip
    assert all(row.in_document for row in rows)


def write_lines(file, number_of_rows):
    file.write_text("".join(f"line {row}\n" + "\n" * (row % 3) for row in range(number_of_rows)))


def write_articles(file, number_of_rows):
    titles = {row: f"= Article {row} =\n" for row in range(0, number_of_rows, 5)}
    file.write_text("".join(titles.get(row, "") + f"line {row}\n\n" for row in range(number_of_rows)))


def write_row_groups(file, number_of_rows):
    from pyarrow import parquet, table

    parquet.write_table(table({"text": [f"row {row}" for row in range(number_of_rows)]}), file, row_group_size=8)


@pytest.mark.parametrize(
    ("write", "form"), [(write_lines, "text"), (write_articles, "wikitext"), (write_row_groups, "parquet")]
)
@pytest.mark.parametrize("start", [0, 1, 7, 8, 9, 29, 30, 31])
def test_reading_from_a_start_row_gives_the_remaining_rows(tmp_path, write, form, start):
    write(tmp_path / "corpus", 30)
    config = CorpusConfig(path=str(tmp_path / "corpus"), format=form)
    rows = list(read_rows(config.path, config))
    assert len(rows) == 30
    assert list(read_rows(config.path, config, start)) == rows[start:]
