"""The prepared corpus: passages in random-access files, read and split once per corpus, teacher and token budget.

Ray Data streams the files into parts, which survive a kill (see `parts`). From these the driver writes two Arrow files, `train`
and `heldout`; the numbers of the training rows that are the first of their text; the rows that could not be read, with their
reasons; and the counts. Ingest, training and evaluation read the passages by memory map: the order in which a training takes
them depends on its seed and batch sizes alone. Writing the files takes memory for a part, a bucket of digests and nine bytes
per training passage.
"""

import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray

from jobs.config import RunConfig
from jobs.corpus.parts import BLOCK_ROWS, SCHEMA, CorpusPart, ReadAndSplit
from refbert.atomic import checksum, digest, first_whole_folder
from refbert.config import CorpusConfig, TeacherConfig
from refbert.corpus import corpus_files, passed_over, remote_states
from refbert.errors import InputError
from refbert.memory.progress import progress
from refbert.packaged import PREFIX
from refbert.passages import Text, text_digest, text_of

log = logging.getLogger(__name__)

PASSAGE_SCHEMA = SCHEMA.remove(SCHEMA.get_field_index("rejected"))
FORMAT_VERSION = 4
"""Changes when earlier preparations can no longer be read."""

REJECTED = "rejected.jsonl"
DISTINCT = "distinct.npy"
BUCKET_ROWS = 1 << 22
"""Texts whose digests are compared at once: 100 MB of them."""

SHOWN_REASONS = 3
MOST_BLOCKS = 2000
"""Tasks that read files: with more files than that, a task reads several, one after another."""


@dataclass(frozen=True)
class CorpusCounts:
    """Rows rejected, passages of the rest by split, `distinct` training texts, and the labels that occur."""

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
    content: str
    """Digest of the training rows in their order; the same wherever their files lie."""

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


class PassageRows:
    """Random access to the passages of a table in many chunks, as a large corpus has.

    `pa.Table.take` puts all chunks of a column together first: 1.5 s for one micro-batch of 2 million texts, and an error past
    2 GiB of text. Here each row is taken from its own chunk.
    """

    def __init__(self, passages: pa.Table) -> None:
        self._batches = passages.to_batches()
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])

    def at(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return the passages at these row numbers, in their order."""
        found: list[Any] = [None] * len(rows)
        chunks = np.searchsorted(self._ends, rows, side="right")
        for chunk in np.unique(chunks):
            places = np.flatnonzero(chunks == chunk)
            batch = self._batches[chunk]
            within = rows[places] - (self._ends[chunk] - batch.num_rows)
            for place, passage in zip(places, batch.take(pa.array(within)).to_pylist(), strict=True):
                found[place] = passage
        return found


def texts_in(passages: pa.Table, rows: NDArray[np.int64] | None = None) -> Iterator[Text]:
    """Yield the text of each passage, or of these rows, some in Python at a time."""
    columns = passages.select(["text", "text_pair"])
    if rows is None:
        return (text_of(row) for batch in columns.to_batches(BLOCK_ROWS) for row in batch.to_pylist())
    reader = PassageRows(columns)
    starts = range(0, len(rows), BLOCK_ROWS)
    return (text_of(row) for start in starts for row in reader.at(rows[start : start + BLOCK_ROWS]))


def chunked(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Cut an iterable into lists of at most `size`."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def prepare(config: RunConfig, heldout: bool = True) -> PreparedCorpus:
    """Read the corpus, or what is left of it to read. Raises InputError where nothing usable is in it: no training passage, or,
    where `heldout` ones are needed, none of those."""
    files = corpus_files(config.corpus)
    directory = _directory(config, files)
    if not (directory / "manifest.json").exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{directory}.lock")
        with lock:  # a second job waits for the first one's
            if not (directory / "manifest.json").exists():
                if others := passed_over(config.corpus):
                    log.warning(others)
                try:
                    _write(config.corpus, config.teacher, files, directory)
                finally:
                    Path(lock.lock_file).unlink(missing_ok=True)
    found = open_prepared(directory)
    if heldout and not found.counts.heldout:
        raise _too_few(config.corpus, found.counts)
    return found


def already_prepared(config: RunConfig) -> PreparedCorpus | None:
    """Return the prepared corpus; None where it has not been prepared yet."""
    directory = _directory(config, corpus_files(config.corpus))
    return open_prepared(directory) if (directory / "manifest.json").exists() else None


def open_prepared(directory: Path) -> PreparedCorpus:
    """Open a finished preparation. InputError where a file of it is damaged: all are read, at a gigabyte a second."""
    try:
        manifest = json.loads((directory / "manifest.json").read_text())
        counts = CorpusCounts(**{**manifest["counts"], "labels": tuple(manifest["counts"]["labels"])})
        content, sums = manifest.get("content", directory.name), manifest.get("sums", {})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(directory / "manifest.json", f"cannot be read ({error})") from error
    for name, wanted in sums.items():
        path = directory / name
        if not path.exists():
            raise _damaged(path, "is missing")
        if checksum(path) != wanted:
            raise _damaged(path, "is damaged: its content is not what was written")
    return PreparedCorpus(directory, counts, content)


def sums_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that a prepared corpus is read from, for its manifest."""
    return {
        path.name: checksum(path)
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json" and path.is_file()
    }


def _damaged(path: Path, found: str) -> InputError:
    return InputError(f"{path} {found}; delete {path.parent}, and the corpus is prepared again")


def _directory(config: RunConfig, files: list[str]) -> Path:
    return config.home / "corpora" / corpus_key(config.corpus, config.teacher, files)


def first_rows(passages: pa.Table) -> NDArray[np.int64]:
    """Return the row numbers of each text's (or pair's) first occurrence, ascending: digests stand for texts, 16 bytes each.

    Digests are dealt out to files by their first bytes, so that one file of them at a time is in memory.
    """
    num_buckets = 1 + passages.num_rows // BUCKET_ROWS
    entry = np.dtype([("digest", "S16"), ("row", np.int64)])
    is_first = np.zeros(passages.num_rows, np.bool_)
    with ExitStack() as stack:
        buckets = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(num_buckets)]
        first = 0
        for texts in chunked(texts_in(passages), BLOCK_ROWS):
            entries = np.zeros(len(texts), entry)
            entries["digest"] = digests = np.array([text_digest(text)[:16] for text in texts], "S16")
            entries["row"] = np.arange(first, first + len(texts))
            bucket_of = digests.view(">u8")[::2] % num_buckets
            for bucket in np.unique(bucket_of):
                buckets[bucket].write(entries[bucket_of == bucket].tobytes())
            first += len(texts)
        for file in buckets:
            file.seek(0)
            entries = np.frombuffer(file.read(), entry)
            is_first[entries["row"][np.unique(entries["digest"], return_index=True)[1]]] = True
    return np.flatnonzero(is_first)


def corpus_key(corpus: CorpusConfig, teacher: TeacherConfig, files: list[str]) -> str:
    """Return 16 hex digits that change with the options and with each file's size and time, wherever it lies."""
    packaged = corpus.path.startswith(PREFIX)  # its checksum identifies it, wherever and whenever it was unpacked
    states = [()] * len(files) if packaged else _file_states(corpus, files)
    named = [[Path(file).name if packaged else file, *state] for file, state in zip(files, states, strict=True)]
    options = json.dumps({"corpus": corpus.model_dump(mode="json")}, sort_keys=True)
    return digest(FORMAT_VERSION, checksum(options.encode())[:12], teacher.model, teacher.tokens, named)


def _file_states(corpus: CorpusConfig, files: list[str]) -> Sequence[tuple[float, ...]]:
    if "://" in corpus.path:
        return remote_states(corpus, files)
    return [(os.path.getsize(file), os.path.getmtime(file)) if os.path.exists(file) else () for file in files]


def _write(corpus: CorpusConfig, teacher: TeacherConfig, files: list[str], directory: Path) -> None:
    parts = Path(f"{directory}.parts")
    parts.mkdir(exist_ok=True)
    for leftover in directory.parent.glob(f"{directory.name}.*.partial"):  # of a merging that was killed
        shutil.rmtree(leftover)
    try:
        with first_whole_folder(directory) as scratch:
            found = _merge_parts(corpus, _read_parts(corpus, teacher, files, parts), scratch)
            sums = sums_of(scratch)
            manifest = {"files": files, "counts": asdict(found), "content": sums["train.arrow"][:16], "sums": sums}
            (scratch / "manifest.json").write_text(json.dumps(manifest, indent=2))
    except InputError:
        shutil.rmtree(parts)  # the mistake is in the files: there is nothing to resume
        raise
    shutil.rmtree(parts)


def _read_parts(corpus: CorpusConfig, teacher: TeacherConfig, files: list[str], folder: Path) -> list[CorpusPart]:
    """Read what has no finished parts yet; return the parts of the whole corpus, in the order of files."""
    import ray.data  # here: `--show` waits for no Ray

    for draft in folder.glob("*.draft"):
        draft.unlink()
    source = ray.data.from_items(
        [{"number": number, "file": file} for number, file in enumerate(files)],
        override_num_blocks=min(len(files), MOST_BLOCKS),
    )
    stage = source.map_batches(ReadAndSplit(folder, corpus, teacher.model, teacher.tokens), batch_size=1, num_cpus=0.5)
    stage.context.execution_options.preserve_order = True  # the same files give the same order, always
    stage.context.target_max_block_size = 1  # a row is handed over as soon as its part is there
    found: list[CorpusPart] = []
    passages, most = 0, corpus.max_texts
    with progress("read", unit="passage") as update:
        for block in stage.iter_batches(batch_size=None):
            for path, num in zip(block["path"].tolist(), block["passages"].tolist(), strict=True):
                found.append(CorpusPart.named(Path(path)))
                passages += num
                update(num)
            if most and passages >= most:
                break
    return found


def _merge_parts(corpus: CorpusConfig, parts: list[CorpusPart], scratch: Path) -> CorpusCounts:
    """Write the files of a prepared corpus from its parts, one part in memory at a time."""
    import pyarrow.compute as pc  # here: `--show` needs none of it

    counts: Counter[str] = Counter()
    labels: set[str] = set()
    reasons: list[str] = []
    limit = corpus.max_texts
    with (
        open(scratch / REJECTED, "w", encoding="utf-8") as rejected,
        pa.OSFile(str(scratch / "train.arrow"), "wb") as train_file,
        pa.OSFile(str(scratch / "heldout.arrow"), "wb") as heldout_file,
        pa.ipc.new_file(train_file, PASSAGE_SCHEMA) as train,
        pa.ipc.new_file(heldout_file, PASSAGE_SCHEMA) as heldout,
    ):
        for read in parts:
            block = read.table().combine_chunks()
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
    with pa.memory_map(str(scratch / "train.arrow")) as file:
        distinct = first_rows(pa.ipc.open_file(file).read_all())
    np.save(scratch / DISTINCT, distinct)
    found = CorpusCounts(counts["rejected"], counts["train"], len(distinct), counts["heldout"], tuple(sorted(labels)))
    if found.rejected:
        log.warning("%d rows skipped, such as: %s; all of them are in %s", found.rejected, "; ".join(reasons), REJECTED)
    if not found.train:
        raise _too_few(corpus, found, reasons)
    return found


def _too_few(corpus: CorpusConfig, found: CorpusCounts, reasons: Sequence[str] = ()) -> InputError:
    return InputError(
        f"corpus.path={corpus.path} gave {found.train} training and {found.heldout} held-out passages "
        f"({found.rejected} rows rejected{', such as ' + reasons[0] if reasons else ''}); wanted at least one of "
        "each: give more texts, or another corpus.heldout_fraction"
    )
