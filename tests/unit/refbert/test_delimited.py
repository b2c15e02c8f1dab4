"""csv and tsv: a bad row costs itself only, and tells why."""

import csv
import io
import random

import pytest

from refbert import delimited
from refbert.delimited import read_delimited


def rows_of(text: str, delimiter: str = ",", **options) -> list[dict[str, str] | str]:
    return list(read_delimited(io.StringIO(text, newline=""), delimiter, **options))


def test_a_quote_that_is_never_closed_costs_its_line_only():
    lines = ["text,label", '"good",a', '"open,b', "fine,c", '"also ""good""",d', 'last,"open', "end,e"]
    good = [("good", "a"), ("fine", "c"), ('also "good"', "d"), ("end", "e")]
    for end in ("\n", "\r\n"):
        rows = rows_of(end.join(lines))
        assert [(row["text"], row["label"]) for row in rows if isinstance(row, dict)] == good
        assert [row for row in rows if isinstance(row, str)] == ["a quote is not closed"] * 2


def test_a_quote_that_is_open_for_longer_than_any_row_is_given_up(monkeypatch):
    monkeypatch.setattr(delimited, "LONGEST_ROW_CHARACTERS", 100)
    rows = rows_of('text\n"open\n' + "a line\n" * 1000)
    assert rows == ["a quote is not closed", *[{"text": "a line"}] * 1000]


def test_what_python_writes_as_csv_is_read_back_with_line_ends_quotes_and_long_cells():
    draw = random.Random(0)
    texts = ["".join(draw.choices('ab ",\n\r\t', k=12)) for _ in range(200)] + ["x" * 200_000]
    written = io.StringIO(newline="")
    csv.writer(written).writerows([["text", "row"], *([text, row] for row, text in enumerate(texts))])
    assert rows_of(written.getvalue()) == [{"text": text, "row": str(row)} for row, text in enumerate(texts)]


def test_text_beside_quotes_in_one_cell_is_taken():
    assert rows_of('text,label\n"a title" by x,1\n"b" ,2\nc "d" e,3\n') == [
        {"text": "a title by x", "label": "1"}, {"text": "b ", "label": "2"}, {"text": 'c "d" e', "label": "3"},
    ]  # fmt: skip


def test_blank_lines_are_no_rows_and_rows_of_other_lengths_are_told_apart():
    assert rows_of("text,label\n\na,1\n\n,\nb\nc,1,2\n") == [
        {"text": "a", "label": "1"}, {"text": "", "label": ""}, "1 cells, wanted 2", "3 cells, wanted 2",
    ]  # fmt: skip


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
def test_a_tsv_file_written_with_quotes_is_read_without_them(quoting):
    rows = [["text", "label"], ["plain", "1"], ['said "no"', "2"], ["a\ttab", "3"], ["two\nlines", "4"]]
    written = io.StringIO(newline="")
    csv.writer(written, delimiter="\t", quoting=quoting).writerows(rows)
    read = rows_of(written.getvalue(), "\t", quoted=None)
    assert [list(row.values()) for row in read] == rows[1:]


@pytest.mark.parametrize(
    "text",
    [
        'They "drank the pub.',
        '"Great" film',
        'a film, "great"',
        'open "',
        '"starts here\nends\there" and on',
        '"',
        'x"y"z',
    ],
)
def test_quotes_of_a_tsv_file_that_are_no_csv_are_text(text):
    lines = [f"{line}\t1" for line in text.split("\n")]
    read = rows_of("\n".join(["text\tlabel", *lines]), "\t", quoted=None)
    wanted = [line.split("\t") for line in lines]
    assert [list(row.values()) if isinstance(row, dict) else row for row in read] == [
        cells if len(cells) == 2 else "3 cells, wanted 2" for cells in wanted
    ]


def test_whether_a_long_tsv_file_is_quoted_is_seen_from_its_start(monkeypatch):
    monkeypatch.setattr(delimited, "SAMPLE_CHARACTERS", 100)
    row = '"two\nlines"\t"1"\n'
    for before in range(12):  # the sample ends anywhere in a row
        read = rows_of('text\tlabel\n"' + "x" * before + '"\t"0"\n' + row * 50, "\t", quoted=None)
        assert read[1:] == [{"text": "two\nlines", "label": "1"}] * 50
