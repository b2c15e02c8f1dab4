"""Read a corpus in parts: each holds the passages and bad rows of a range of one file's rows, written whole or not at all.

    <corpora>/<key>.parts/<thousand>/<file>-<first row>-<next row>[-end].arrow     numbers in digits

A killed job resumes after the last intact part of each file: finished files are not opened again, finished rows of the others
are passed over. Parts lie in the shared home: Ray carries their paths and counts only, and a reader holds one block in memory.
"""

import logging
import time
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa

from jobs.run.attempts import Attempts, watched
from jobs.run.telemetry import StageMetrics
from refbert.config import CorpusConfig
from refbert.corpus import Rejected, Row, read_rows
from refbert.errors import InputError
from refbert.passages import falls_in, halves, split_of, split_passages, text_length, text_of
from refbert.tokenizer import Tokenizer, word_spans

log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("text_pair", pa.string()),
        ("label", pa.string()),
        ("document", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("rejected", pa.string()),
    ]
)
BLOCK_ROWS = 2048
BLOCK_CHARACTERS = 1 << 26
"""A block of books ends sooner: memory holds its rows and their passages."""
PART_PASSAGES = 16_384
"""A killed job reads at most so many passages again, of each file that was open."""


class CorpusPart(NamedTuple):
    """A finished part; its name says which rows are in it."""

    path: Path
    file: int
    next_row: int
    is_last: bool

    @classmethod
    def named(cls, path: Path) -> Self:
        """Read a part's name."""
        file, _, next_row, *end = path.stem.split("-")
        return cls(path, int(file), int(next_row), bool(end))

    def table(self) -> pa.Table:
        """Memory-map its passages, with the columns of SCHEMA. InputError where the file is damaged."""
        try:
            with pa.memory_map(str(self.path)) as file:
                return pa.ipc.open_file(file).read_all()
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self.path} is damaged ({str(error).splitlines()[0]}); start the same command again to read these rows again"
            ) from error


class ReadAndSplit:
    """Ray Data stage: files in, one row per part out, finished parts first. A part also holds its bad rows, with the reason."""

    def __init__(self, folder: Path, corpus: CorpusConfig, teacher: str, tokens: int) -> None:
        self.folder, self.corpus, self.teacher, self.tokens = folder, corpus, teacher, tokens
        self.attempts = Attempts(folder / "attempts")

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        """Yield the path and the number of good passages of each part of these files, in order."""
        from refbert.teacher import load_tokenizer  # here: a plan waits for no transformers

        tokenizer: Tokenizer | None = None
        metrics = StageMetrics("read")
        for number, file in zip(batch["number"].tolist(), batch["file"].tolist(), strict=True):
            parts = finished_parts(self.folder, number)
            passages = 0
            for part in parts:
                good = part.table()["rejected"].null_count
                passages += good
                yield {"path": [str(part.path)], "passages": [good]}
            if parts and parts[-1].is_last:
                continue
            tokenizer = tokenizer or load_tokenizer(self.teacher)
            first_row = parts[-1].next_row if parts else 0
            written = self._written(number, file, first_row, passages, tokenizer, metrics)
            for path, good in watched(written, self.attempts, f"file-{number}", file, len(parts)):
                yield {"path": [str(path)], "passages": [good]}

    def _written(
        self,
        number: int,
        file: str,
        first_row: int,
        passages: int,
        tokenizer: Tokenizer,
        metrics: StageMetrics,
    ) -> Iterator[tuple[Path, int]]:
        """Write the parts of one file from a row on; yields path and good passages of each."""
        most = self.corpus.max_texts
        rows = read_rows(file, self.corpus, first_row)
        is_last = False
        while not is_last:
            draft = self.folder / f"{uuid.uuid4()}.draft"
            good, next_row, started_s = 0, first_row, time.monotonic()
            with pa.OSFile(str(draft), "wb") as output, pa.ipc.new_file(output, SCHEMA) as writer:
                while good < PART_PASSAGES and not is_last:
                    some, is_last = next_block(rows)
                    made = [
                        passage for row in some for passage in row_passages(row, self.corpus, tokenizer, self.tokens)
                    ]
                    next_row += len(some)
                    good += sum("rejected" not in passage for passage in made)
                    is_last |= most is not None and passages + good >= most
                    writer.write_table(pa.Table.from_pylist(made, schema=SCHEMA))
                    characters = sum(text_length(text_of(passage)) for passage in made if "rejected" not in passage)
                    metrics.count(rows=len(some), bytes=characters)
            name = f"{number:08d}-{first_row:012d}-{next_row:012d}{'-end' if is_last else ''}.arrow"
            path = subfolder(self.folder, number) / name
            path.parent.mkdir(exist_ok=True)
            draft.rename(path)  # named only now, by the rows that went into it
            metrics.count(busy_s=time.monotonic() - started_s)
            yield path, good
            first_row, passages = next_row, passages + good


def next_block(rows: Iterator[Row | Rejected]) -> tuple[list[Row | Rejected], bool]:
    """Take rows that are read together, and whether they are the last ones."""
    block: list[Row | Rejected] = []
    characters = 0
    for row in islice(rows, BLOCK_ROWS):
        block.append(row)
        characters += len(row.text) if isinstance(row, Row) else 0
        if characters > BLOCK_CHARACTERS:
            return block, False
    return block, len(block) < BLOCK_ROWS


def subfolder(folder: Path, number: int) -> Path:
    """Where the parts of a file lie: a thousand files share one, so that listing it stays cheap."""
    return folder / f"{number // 1000:05d}"


def finished_parts(folder: Path, number: int) -> list[CorpusPart]:
    """List the parts of one file that follow on one another from its first row, in order, up to a damaged one.

    What comes after a damaged one is deleted, and made again from the file.
    """
    parts: list[CorpusPart] = []
    paths = sorted(subfolder(folder, number).glob(f"{number:08d}-*.arrow"))
    for place, path in enumerate(paths):
        if int(path.stem.split("-")[1]) != (parts[-1].next_row if parts else 0):
            continue
        part = CorpusPart.named(path)
        try:
            part.table()
        except InputError as error:
            log.warning("%s", error)
            for later in paths[place:]:
                later.unlink()
            break
        parts.append(part)
    return parts


def row_passages(
    row: Row | Rejected, corpus: CorpusConfig, tokenizer: Tokenizer, tokens: int
) -> Iterator[dict[str, Any]]:
    """Yield a row's passages, each with the columns of SCHEMA that it has; a bad row is one, with its reason."""
    if isinstance(row, Rejected):
        yield {"source": row.source, "rejected": f"{row.source} row {row.row}: {row.reason}"}
        return
    texts, splits = [row.text], corpus.long_texts == "split"
    if splits:
        special = tokenizer.num_special_tokens_to_add(pair=corpus.pair_share > 0)
        if tokens <= special:
            raise InputError(
                f"teacher.tokens={tokens} leaves no room for text beside {special} special tokens; raise it, or set "
                "corpus.pair_share=0"
            )
        texts = split_passages(row.text, tokens - special, lambda text: word_spans(tokenizer, text))
    # Passages of one row stay on one side, and so do rows of one document.
    split = split_of(row.document if row.in_document else text_of(row._asdict()), corpus.heldout_fraction)
    for passage in texts:
        pair = halves(passage) if falls_in(passage, corpus.pair_share, salt=1) else None
        if pair and splits and len(tokenizer(*pair)["input_ids"]) > tokens:
            pair = None  # the second half's first word has more tokens than it had behind a space
        text, text_pair = pair or (passage, row.text_pair)
        yield {
            "text": text,
            "text_pair": text_pair,
            "label": row.label,
            "document": row.document,
            "source": row.source,
            "split": split,
        }
