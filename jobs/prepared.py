"""The prepared corpus: passages in random-access files, read and split once per corpus, teacher and token budget.

Ray Data streams the files; the driver writes two Arrow files, `train` and `heldout`, which training rows are the first of
their text, the rows that could not be read (with their reasons), and the counts. Ingest, training and evaluation all read
them by memory map, so the order of a run depends on its seed and on nothing else.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from jobs.config import RunConfig
from jobs.progress import progress
from refbert.config import CorpusConfig
from refbert.corpus import (
    Rejected,
    Row,
    Text,
    corpus_files,
    falls_in,
    halves,
    read_rows,
    split_of,
    split_passages,
    text_digest,
    text_of,
)
from refbert.errors import InputError
from refbert.packaged import PREFIX
from refbert.teacher import load_tokenizer, word_spans

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
PASSAGE_SCHEMA = SCHEMA.remove(SCHEMA.get_field_index("rejected"))
FORMAT_VERSION = 3
"""Changes when a preparation of before cannot be read any more."""

REJECTED = "rejected.jsonl"
DISTINCT = "distinct.npy"
BLOCK_ROWS = 2048
SHOWN_REASONS = 3


@dataclass(frozen=True)
class CorpusCounts:
    """What became of a corpus: rows rejected, and passages made of the rest, by split; `distinct` training texts."""

    rejected: int
    train: int
    distinct: int
    heldout: int
    labels: tuple[str, ...]


@dataclass(frozen=True)
class PreparedCorpus:
    """A finished preparation on disk."""

    directory: Path
    counts: CorpusCounts

    def table(self, split: str) -> pa.Table:
        """Memory-map one split: columns text, text_pair, label, document, source, split."""
        with pa.memory_map(str(self._file(f"{split}.arrow"))) as file:
            return pa.ipc.open_file(file).read_all()

    def distinct_rows(self) -> NDArray[np.int64]:
        """Memory-map the training rows (distinct,) that are the first of their text, ascending."""
        return np.load(self._file(DISTINCT), mmap_mode="r")

    def rejected(self) -> Path:
        """Path of the rows that could not be read: one JSON object each, with source and reason."""
        return self._file(REJECTED)

    def _file(self, name: str) -> Path:
        path = self.directory / name
        if not path.exists():
            raise InputError(f"{path} is not on this machine; set REFBERT_HOME to storage that every node shares")
        return path


def file_passages(batch: dict[str, Any], corpus: CorpusConfig, teacher: str, tokens: int) -> Iterator[pa.Table]:
    """Ray Data stage: files in, their passages out in small blocks. Bad rows come out with their reason."""
    tokenizer = load_tokenizer(teacher)
    for file in batch["file"]:
        passages = (
            passage for row in read_rows(str(file), corpus) for passage in row_passages(row, corpus, tokenizer, tokens)
        )
        for some in chunked(passages, BLOCK_ROWS):
            yield pa.Table.from_pylist(some, schema=SCHEMA)


def row_passages(
    row: Row | Rejected, corpus: CorpusConfig, tokenizer: PreTrainedTokenizerBase, tokens: int
) -> Iterator[dict[str, Any]]:
    """Yield a row's passages, each with the columns of SCHEMA that it has; a bad row is one, with its reason."""
    if isinstance(row, Rejected):
        yield {"source": row.source, "rejected": f"{row.source} row {row.row}: {row.reason}"}
        return
    texts = [row.text]
    if corpus.long_texts == "split":
        budget = tokens - tokenizer.num_special_tokens_to_add(pair=corpus.pair_share > 0)
        texts = split_passages(row.text, budget, lambda text: word_spans(tokenizer, text))
    for passage in texts:
        pair = halves(passage) if falls_in(passage, corpus.pair_share, salt=1) else None
        text, text_pair = pair or (passage, row.text_pair)
        yield {
            "text": text,
            "text_pair": text_pair,
            "label": row.label,
            "document": row.document,
            "source": row.source,
            # Passages of one row stay on one side, and so do rows of one document.
            "split": split_of(row.document if row.in_document else text_of(row._asdict()), corpus.heldout_fraction),
        }


def texts_in(passages: pa.Table, rows: NDArray[np.int64] | None = None) -> Iterator[Text]:
    """Yield the text of each passage, or of these rows, some in Python at a time."""
    columns = passages.select(["text", "text_pair"])
    columns = columns if rows is None else columns.take(pa.array(rows))
    return (text_of(row) for batch in columns.to_batches(BLOCK_ROWS) for row in batch.to_pylist())


def chunked(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Cut an iterable into lists of at most `size`."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def prepare(config: RunConfig) -> PreparedCorpus:
    """Read the corpus, or find it already read. Raises InputError where nothing usable is in it."""
    files = corpus_files(config.corpus)
    directory = _directory(config, files)
    if not (directory / "manifest.json").exists():
        _write(config, files, directory)
    return opened(directory)


def already_prepared(config: RunConfig) -> PreparedCorpus | None:
    """Return the corpus where it has been read before, and read nothing."""
    directory = _directory(config, corpus_files(config.corpus))
    return opened(directory) if (directory / "manifest.json").exists() else None


def opened(directory: Path) -> PreparedCorpus:
    """Open a finished preparation."""
    counts = json.loads((directory / "manifest.json").read_text())["counts"]
    return PreparedCorpus(directory, CorpusCounts(**{**counts, "labels": tuple(counts["labels"])}))


def _directory(config: RunConfig, files: list[str]) -> Path:
    return config.home / "corpora" / corpus_key(config, files)


def first_rows(passages: pa.Table) -> NDArray[np.int64]:
    """Return the row numbers of each text's (or pair's) first occurrence, ascending: digests stand for texts, 16 bytes each."""
    digests = pa.array((text_digest(text)[:16] for text in texts_in(passages)), pa.binary(16))
    rows = pa.table({"digest": digests, "row": np.arange(len(digests))})
    return np.sort(rows.group_by("digest").aggregate([("row", "min")])["row_min"].to_numpy())


def corpus_key(config: RunConfig, files: list[str]) -> str:
    """Return 16 hex digits that change with the options and with each local file's size and time.

    A remote file is told by its name alone.
    """
    packaged = config.corpus.path.startswith(PREFIX)  # told by its checksum, wherever and whenever it was unpacked
    state = [[Path(file).name if packaged else file, *_size_and_time(file, packaged)] for file in files]
    options = [FORMAT_VERSION, config.digest("corpus"), config.teacher.model, config.teacher.tokens, state]
    return hashlib.sha256(json.dumps(options).encode()).hexdigest()[:16]


def _size_and_time(file: str, packaged: bool) -> tuple[float, ...]:
    return (os.path.getsize(file), os.path.getmtime(file)) if os.path.exists(file) and not packaged else ()


def _write(config: RunConfig, files: list[str], directory: Path) -> None:
    stage = ray.data.from_items([{"file": file} for file in files], override_num_blocks=len(files)).map_batches(
        partial(file_passages, corpus=config.corpus, teacher=config.teacher.model, tokens=config.teacher.tokens),
        batch_size=1,
        num_cpus=0.5,
    )
    stage.context.execution_options.preserve_order = True  # the same files give the same order, always
    counts: Counter[str] = Counter()
    labels: set[str] = set()
    reasons: list[str] = []
    limit = config.corpus.max_texts
    with whole_directory(directory) as scratch:
        with (
            open(scratch / REJECTED, "w", encoding="utf-8") as rejected,
            pa.OSFile(str(scratch / "train.arrow"), "wb") as train_file,
            pa.OSFile(str(scratch / "heldout.arrow"), "wb") as heldout_file,
            pa.ipc.new_file(train_file, PASSAGE_SCHEMA) as train,
            pa.ipc.new_file(heldout_file, PASSAGE_SCHEMA) as heldout,
            progress("read", unit="passage") as update,
        ):
            block: Any
            for block in stage.iter_batches(batch_size=None, batch_format="pyarrow"):
                bad = block.filter(pc.is_valid(block["rejected"]))
                good = block.filter(pc.is_null(block["rejected"]))
                if limit:
                    good = good.slice(0, limit - counts["train"] - counts["heldout"])
                for split, writer in (("train", train), ("heldout", heldout)):
                    part = good.filter(pc.equal(good["split"], split)).drop_columns("rejected")
                    writer.write_table(part)
                    counts[split] += part.num_rows
                counts["rejected"] += bad.num_rows
                labels |= set(pc.unique(good["label"].drop_null()).to_pylist())
                for row in bad.select(["source", "rejected"]).to_pylist():
                    print(json.dumps({"source": row["source"], "reason": row["rejected"]}), file=rejected)
                reasons += bad["rejected"].to_pylist()[: SHOWN_REASONS - len(reasons)]
                update(good.num_rows)
                if limit and counts["train"] + counts["heldout"] >= limit:
                    break
        with pa.memory_map(str(scratch / "train.arrow")) as file:
            distinct = first_rows(pa.ipc.open_file(file).read_all())
        np.save(scratch / DISTINCT, distinct)
        found = CorpusCounts(
            counts["rejected"], counts["train"], len(distinct), counts["heldout"], tuple(sorted(labels))
        )
        if found.rejected:
            log.warning(
                "%d rows skipped, such as: %s; all of them: %s",
                found.rejected,
                "; ".join(reasons),
                directory / REJECTED,
            )
        if not found.train or not found.heldout:
            raise InputError(
                f"corpus.path={config.corpus.path} gave {found.train} training and {found.heldout} held-out passages "
                f"({found.rejected} rows rejected{', such as ' + reasons[0] if reasons else ''}); wanted at least one of "
                "each: give more texts, or another corpus.heldout_fraction"
            )
        (scratch / "manifest.json").write_text(json.dumps({"files": files, "counts": asdict(found)}, indent=2))


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """Yield a scratch folder that becomes `directory` in the end, unless another job was faster; it is gone after a failure."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", suffix=".partial", dir=directory.parent))
    scratch.chmod(0o755)  # mkdtemp's is for its owner alone, and the home may be shared
    try:
        yield scratch
        if directory.exists():
            shutil.rmtree(scratch)
        else:
            scratch.rename(directory)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
