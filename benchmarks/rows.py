"""Cutting rows into passages: the rate at which one long row is cut over the rate of short rows of the same text.

    python benchmarks/rows.py [--quick] [--out DIR]

The text is the demo's snippets, and for long rows these joined by spaces. A row is cut as an ingest cuts it; reading files,
encoding and storing are not counted.
"""

import itertools
import time
from collections.abc import Callable

from measures.goals import Goal, Part, arguments, in_turns, median_ratio, write_results
from measures.points import snippet_rows

from jobs.corpus.parts import row_passages
from jobs.run.worker import quiet_libraries
from refbert.config import CorpusConfig, TeacherConfig
from refbert.corpus import Row
from refbert.passages import normalise
from refbert.teacher import load_tokenizer

LONG, QUICK_LONG = 5_000_000, 500_000
"""Characters of a long row: a book."""

PAGE = 40
"""Snippets on a page, some 4,500 characters."""

ROUNDS, QUICK_ROUNDS = 7, 3

NOTE = (
    "Characters per second of one process, each length's own; passages of 32 tokens, special tokens included, by "
    "all-MiniLM-L6-v2's tokenizer. Over short rows: median over rounds of the ratio of the times in the same round."
)


def main() -> None:
    """Cut the same characters in rows of three lengths, in turns, and write the results."""
    given = arguments(__doc__ or "")
    quiet_libraries()
    started_s = time.monotonic()
    rounds, characters = (QUICK_ROUNDS, QUICK_LONG) if given.quick else (ROUNDS, LONG)
    rows = rows_of(characters)
    teacher, corpus = TeacherConfig(tokens=32), CorpusConfig(path="demo")
    tokenizer = load_tokenizer(teacher.model)
    made: dict[str, int] = {}

    def cutting(name: str) -> Callable[[int], None]:
        def cut(_: int) -> None:
            made[name] = sum(1 for row in rows[name] for _ in row_passages(row, corpus, tokenizer, teacher.tokens))

        return cut

    taken = in_turns({name: cutting(name) for name in rows}, rounds)
    ratios = {name: median_ratio(taken["short"], taken[name]) for name in rows}
    table = [
        {
            "rows": name,
            "characters per row": round(sum(len(row.text) for row in rows[name]) / len(rows[name])),
            "passages": made[name],
            "Mcharacters/s": sum(len(row.text) for row in rows[name]) / 1e6 / min(taken[name]),
            "over short rows": ratios[name],
        }
        for name in rows
    ]
    goals = [] if given.quick else [Goal("long_row_rate_over_short_rows", ratios["one"], 0.9, ">=")]
    part = Part(
        table, goals, NOTE, {"teacher": teacher.model_dump(mode="json"), "rounds": rounds, "characters": characters}
    )
    write_results("rows: the rate of a long row over that of short ones", given, started_s, {"rows": part}, ["rows"])


def rows_of(characters: int) -> dict[str, list[Row]]:
    """So many characters of the snippets as rows of their own, as pages, and as one row."""
    given = [row._replace(text=normalise(row.text)) for row in snippet_rows()]
    texts, total = [], 0
    for row in itertools.cycle(given):
        texts.append(row.text)
        total += len(row.text) + 1
        if total >= characters:
            break
    pages = [" ".join(texts[start : start + PAGE]) for start in range(0, len(texts), PAGE)]
    return {
        name: [given[0]._replace(text=text, row=number) for number, text in enumerate(rows)]
        for name, rows in {"short": texts, "pages": pages, "one": [" ".join(texts)]}.items()
    }


if __name__ == "__main__":
    main()
