"""Rows of csv and tsv files, each a dict by column. A row that cannot be read costs itself only, and says why.

A first row that cannot be read, where it should name the columns, costs every row. Knows lines of text: nothing of files, and
nothing of what columns mean.
"""

import csv
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

LONGEST_ROW_CHARACTERS = 1 << 26
"""A quote that is still open after so many characters is taken for one that is never closed."""
SAMPLE_CHARACTERS = 1 << 20
"""How much of a tsv file is looked at to find out whether its cells are quoted."""

QUOTED_CELL = r'(?:^|(?<=[\t\n]))"(?:(?:[^"\n]|"")*|(?:[^"\t]|"")*)"(?=[\t\r\n]|\Z)'
CUT_CELL = r'|(?:^|(?<=[\t\n]))"(?:[^"\t]|"")*\Z'


def read_delimited(
    lines: Iterable[str], delimiter: str, quoted: bool | None = True, header: Sequence[str] = (), named_by: str = ""
) -> Iterator[dict[str, str] | str]:
    """Yield each row as a dict by column, or the reason why it is none. Blank lines are no rows.

    Columns are named by the first row; where that has no cell `named_by`, by `header`, if there is one. `quoted` says whether
    a quotation mark encloses a cell, or is text; None finds out. Lines keep their ends.
    """
    source = iter(lines)
    if quoted is None:
        sample, is_whole = _sample(source)
        quoted = _is_quoted("".join(sample), is_whole)
        source = chain(sample, source)
    rows = _quoted_rows(source, delimiter) if quoted else (line.rstrip("\r\n").split(delimiter) for line in source)
    rows = (row for row in rows if row not in ([], [""]))
    first = next(rows, [])
    names_columns = not header or named_by in first
    if names_columns and isinstance(first, str):
        yield from (f"no column names: {first}" for _ in chain([first], rows))
        return
    columns = list(first if names_columns else header)
    for row in rows if names_columns else chain([first], rows):
        if isinstance(row, str):
            yield row
        elif len(row) == len(columns):
            yield dict(zip(columns, row, strict=True))
        else:
            yield f"{len(row)} cells, wanted {len(columns)}"


class _Lines:
    """Lines that csv's reader takes for one row, which may be handed back."""

    def __init__(self, source: Iterator[str]) -> None:
        self.source = source
        self.again: deque[str] = deque()
        self.taken: list[str] = []
        self.characters = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self.characters > LONGEST_ROW_CHARACTERS:
            raise StopIteration
        line = self.again.popleft() if self.again else next(self.source)
        self.taken.append(line)
        self.characters += len(line)
        return line

    def next_row(self) -> None:
        """Forget the lines of the row before."""
        self.taken, self.characters = [], 0

    def hand_back(self) -> str:
        """Return the row's first line; those after it are read again."""
        self.again.extendleft(reversed(self.taken[1:]))
        return self.taken[0]


def _quoted_rows(source: Iterator[str], delimiter: str) -> Iterator[list[str] | str]:
    """Yield the cells of each row, or why it has none: of a quote that is never closed only the line that it is in."""
    csv.field_size_limit(sys.maxsize)  # 131,072 characters by default, for the whole process
    lines = _Lines(source)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.next_row()
        try:
            row = next(reader, None)
        except csv.Error:
            yield _one_line(lines.hand_back(), delimiter)
            continue
        if row is None:
            return
        yield row


def _one_line(line: str, delimiter: str) -> list[str] | str:
    """The cells of a line in which a quote is not used as csv has it: text beside quotes is taken, an open quote is not."""
    try:
        cells = next(csv.reader([line.rstrip("\r\n") + "\n"], delimiter=delimiter), [])
    except csv.Error as error:
        return f"not csv: {error}"
    return "a quote is not closed" if cells and cells[-1].endswith("\n") else cells


def _sample(source: Iterator[str]) -> tuple[list[str], bool]:
    """Take lines from the start of a file; whether they are all of them."""
    taken, characters = [], 0
    for line in source:
        taken.append(line)
        characters += len(line)
        if characters > SAMPLE_CHARACTERS:
            return taken, False
    return taken, True


def _is_quoted(text: str, is_whole: bool) -> bool:
    """Whether tab-separated text has quoted cells: each quotation mark is one around a cell, or doubled in such a cell."""
    rest, quoted = re.subn(QUOTED_CELL + ("" if is_whole else CUT_CELL), "", text)
    return quoted > 0 and '"' not in rest
