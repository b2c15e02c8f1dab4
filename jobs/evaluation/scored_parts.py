"""Offline scoring in parts: each part is a range of a file's rows, written completely or not at all; a manifest sums them up.

Runs on Ray Data; each worker has a student and, where that reads a memory, a client of it.
"""

import heapq
import io
import json
import logging
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray.data
import torch
from pyarrow import fs, parquet

from jobs.config import RunConfig
from jobs.corpus.prepared import chunked, corpus_key
from jobs.memory.store import patient_store
from jobs.memory.student_memory import open_reader
from jobs.run.attempts import DEATHS, Attempts, SetAside, watched
from jobs.run.worker import per_node, set_up_worker
from refbert.config import CorpusConfig
from refbert.corpus import Rejected, Row, estimated_rows, read_rows
from refbert.errors import InputError, UnavailableError
from refbert.folder import fingerprint
from refbert.memory.progress import progress
from refbert.memory.reader import Reader
from refbert.passages import text_of
from vector_store.schema import Neighbours, Rung

log = logging.getLogger(__name__)

COUNTS = ("read", "written", "rejected", "live", "cached", "null")
MANIFEST, REJECTED, IDENTITY = "manifest.json", "rejected.jsonl", "identity.json"
THINNEST = "thinnest.jsonl"
"""The texts whose nearest reference is farthest: where an adapted student's memory is thin."""

PARTS = "parts"
SET_ASIDE = "set_aside"
"""Whether a part was set aside because processes died at it."""

REMEDY = "Lower predict.batch, predict.part_rows or predict.num_workers"

COUNTED, REASONS = b"refbert.counts", b"refbert.rejected"
"""Keys of a part's metadata: its counts, and its rejected rows."""


class OutputFolder(NamedTuple):
    """Where a result is written: a folder of one of pyarrow's filesystems."""

    filesystem: Any
    root: str

    def path(self, *names: str) -> str:
        """Path of a file in the folder."""
        return "/".join((self.root, *names))

    def write(self, content: bytes, *names: str) -> None:
        """Write a file completely or not at all."""
        scratch = self.path(*names) + f".{uuid.uuid4().hex[:8]}.partial"
        with self.filesystem.open_output_stream(scratch) as stream:
            stream.write(content)
        self.filesystem.move(scratch, self.path(*names))

    def read(self, *names: str) -> bytes | None:
        """Read a file; None where there is none."""
        if self.filesystem.get_file_info(self.path(*names)).type == fs.FileType.NotFound:
            return None
        with self.filesystem.open_input_stream(self.path(*names)) as stream:
            return bytes(stream.read())

    def names(self, folder: str) -> list[str]:
        """Names of the files in one of its folders, sorted."""
        selector = fs.FileSelector(self.path(folder), allow_not_found=True)
        return sorted(Path(entry.path).name for entry in self.filesystem.get_file_info(selector))


def open_output(uri: str) -> OutputFolder:
    """Open a folder or pyarrow URI, made where it is not there. Raises InputError for what cannot be opened."""
    try:
        if "://" in uri:
            folder = OutputFolder(*fs.FileSystem.from_uri(uri))
        else:
            folder = OutputFolder(fs.LocalFileSystem(), str(Path(uri).expanduser().absolute()))
        folder.filesystem.create_dir(folder.path(PARTS), recursive=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"predict.output={uri} cannot be opened: {error}".splitlines()[0]) from None
    return folder


class RowRange(NamedTuple):
    """A range of a file's rows, which is written together."""

    file: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of the part's file: it says which rows are in it."""
        return f"{self.file:05d}-{self.start:012d}-{self.stop:012d}.parquet"


def scoring_identity(
    config: RunConfig, corpus: CorpusConfig, files: list[str], folder: Path, write: str, version: str | None
) -> dict[str, Any]:
    """Return by name what a result depends on: parts of one output share it. `version` is that of an adapted student."""
    return {
        "rows": corpus_key(corpus, config.teacher, files),
        "student": fingerprint(folder),
        "references": config.digest("references"),
        "version": version,
        "write": write,
        "datatype": config.predict.datatype,
        "part_rows": config.predict.part_rows,
    }


def claim_output(output: OutputFolder, identity: dict[str, Any]) -> None:
    """Write the result's identity into the output; refuse an output that holds another result."""
    before = output.read(IDENTITY)
    if before is None and output.names(PARTS):
        raise InputError(f"{output.root} holds parts of something else; give another predict.output=..., or delete it")
    if before is not None:
        held = json.loads(before)
        if differing := [key for key in identity if held.get(key) != identity[key]]:
            raise InputError(
                f"{output.root} holds a result with other {', '.join(differing)}; give another predict.output=..., or delete it"
            )
    output.write(json.dumps(identity, indent=2).encode(), IDENTITY)


def finished_counts(output: OutputFolder) -> dict[str, int] | None:
    """Return the counts of a finished output, else None; where parts were deleted since, the manifest goes too."""
    content = output.read(MANIFEST)
    if content is None:
        return None
    manifest = json.loads(content)
    if output.names(PARTS) == manifest["parts"]:
        return dict(manifest["counts"])
    output.filesystem.delete_file(output.path(MANIFEST))
    return None


class ScoringJob(NamedTuple):
    """What every worker needs."""

    config: RunConfig
    corpus: CorpusConfig
    folder: Path
    url: str | None
    output: OutputFolder
    write: str
    version: str | None = None


def score(scoring: ScoringJob, files: list[str]) -> None:
    """Score the files' parts, and show how far they are.

    A part at which processes die again and again is rejected. Raises UnavailableError where it is not the part but the
    machine; parts that were set aside are then tried again by the next job.
    """
    done = frozenset(name for name in scoring.output.names(PARTS) if name.endswith(".parquet"))
    total, counts = estimated_rows(scoring.corpus, files), Counter(dict.fromkeys(COUNTS, 0))
    aside, without_rows = SetAside("a worker", REMEDY, has_finished=bool(done)), []
    try:
        with progress("predict", total, "row") as update:
            for made in scored(scoring, files, done):
                counts.update(made.counts)
                update(made.counts["read"], **{name: counts[name] for name in COUNTS[1:]})
                if not made.set_aside:
                    aside.finished()
                    continue
                without_rows.append(made.part.name)
                rows = f"rows {made.part.start} to {made.part.stop - 1} of {files[made.part.file]}"
                aside.add(f"{rows} (delete {scoring.output.path(PARTS, made.part.name)} to try them again)")
        aside.judge()
    except UnavailableError:
        for name in without_rows:
            scoring.output.filesystem.delete_file(scoring.output.path(PARTS, name))
        raise


class ScoredPart(NamedTuple):
    """What became of one part, and whether it was set aside."""

    part: RowRange
    counts: dict[str, int]
    set_aside: bool


def scored(scoring: ScoringJob, files: list[str], done: frozenset[str]) -> Iterator[ScoredPart]:
    """Stream the files' parts through the workers; yields each when it is written."""
    predict = scoring.config.predict
    attempts = Attempts.of_run(scoring.config.run_directory)
    stage: Any = ray.data.from_items(
        [{"number": number, "file": file} for number, file in enumerate(files)], override_num_blocks=len(files)
    )
    stage.context.target_max_block_size = (
        1  # a block is a part: whoever is free takes the next, before a file is read to its end
    )
    stage = stage.map_batches(
        row_ranges,
        fn_kwargs={"corpus": scoring.corpus, "part_rows": predict.part_rows, "done": done, "attempts": attempts},
        batch_size=1,
        num_cpus=0,  # workers may hold every CPU, and would wait for ever for a reader that needs one
        concurrency=predict.num_workers,
    ).map_batches(
        ScoreAndWrite,
        fn_constructor_args=(scoring, attempts),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=predict.num_workers),
        num_cpus=0 if predict.gpus_per_worker else 1,
        num_gpus=predict.gpus_per_worker,
    )
    for block in filter(len, stage.iter_batches(batch_size=None)):  # no rows, no columns
        yield from parts_of(block)
    attempts.close()


def parts_of(block: dict[str, Any]) -> Iterator[ScoredPart]:
    """Yield the parts of which `ScoreAndWrite` has made a block."""
    for row, is_aside in enumerate(block[SET_ASIDE].tolist()):
        part = RowRange(*(int(block[field][row]) for field in RowRange._fields))
        yield ScoredPart(part, {name: int(block[name][row]) for name in COUNTS}, bool(is_aside))


def row_ranges(
    batch: dict[str, Any], corpus: CorpusConfig, part_rows: int, done: frozenset[str], attempts: Attempts
) -> Iterator[dict[str, Any]]:
    """Ray Data stage: files in, their parts out, each with its rows as JSON; of a part that is done only its number of rows."""
    for number, file in zip(batch["number"].tolist(), batch["file"], strict=True):
        rows = read_rows(str(file), corpus)
        parts = watched(chunked(rows, part_rows), attempts, f"file-{number}", str(file))
        for index, some in enumerate(parts):
            part = RowRange(number, index * part_rows, index * part_rows + len(some))
            content = "" if part.name in done else json.dumps([[type(row).__name__, row] for row in some])
            yield {
                **{key: np.array([value]) for key, value in part._asdict().items()},
                "rows": np.array([content], object),
            }


def set_aside(rows: Sequence[Row | Rejected]) -> list[Rejected]:
    """Return rows as rejected because their part kills its process."""
    reason = f"{DEATHS} processes died at the {len(rows)} rows that this one is of"
    return [Rejected(row.source, row.row, row.reason if isinstance(row, Rejected) else reason) for row in rows]


class ScoreAndWrite:
    """Ray Data stage: parts in, counts out. Looks up, scores and writes in one call, so that vectors never travel."""

    def __init__(self, scoring: ScoringJob, attempts: Attempts) -> None:
        self.attempts = attempts
        with attempts.at_start("a worker"):
            predict = scoring.config.predict
            device = set_up_worker(per_node(predict.num_workers), predict.gpus_per_worker)
            config = scoring.config.model_copy(update={"store": patient_store(scoring.config.store)})
            self.reader: Reader = open_reader(
                config, scoring.folder, scoring.url, device, batch=predict.batch, version=scoring.version
            )
            self.scoring = scoring

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score and write one part, unless it has been; returns its range and counts.

        The rows of a part at which too many processes have died are written as rejected.
        """
        part = RowRange(*(int(batch[field][0]) for field in RowRange._fields))
        counts = dict.fromkeys(COUNTS, 0) | {"read": part.stop - part.start}
        died = 0
        if content := str(batch["rows"][0]):
            rows = [Row(*row) if kind == Row.__name__ else Rejected(*row) for kind, row in json.loads(content)]
            with self.attempts.at(part.name) as died:
                counts = self._write(part, rows if died < DEATHS else set_aside(rows))
        return {
            **{name: np.array([count]) for name, count in {**part._asdict(), **counts}.items()},
            SET_ASIDE: np.array([died >= DEATHS]),
        }

    def _write(self, part: RowRange, rows: Sequence[Row | Rejected]) -> dict[str, int]:
        good = [row for row in rows if isinstance(row, Row)]
        rejected = [row for row in rows if isinstance(row, Rejected)]
        table = self.scored(good)
        written = {"read": part.stop - part.start, "written": len(good), "rejected": len(rejected)}
        counts = dict.fromkeys(COUNTS, 0) | written | Counter(table["reference"].to_pylist())
        metadata = {
            COUNTED: json.dumps(counts),
            REASONS: json.dumps([rejection._asdict() for rejection in rejected]),
        }
        buffer = io.BytesIO()
        parquet.write_table(table.replace_schema_metadata(metadata), buffer)
        self.scoring.output.write(buffer.getvalue(), PARTS, part.name)
        return counts

    def scored(self, rows: Sequence[Row]) -> pa.Table:
        """Return the rows' table. Texts of like length share a forward; the next look-up runs meanwhile."""
        labels = self.scoring.write == "labels"
        config = self.reader.model.config
        outputs = np.zeros((len(rows), config.num_labels if labels else config.dim), np.float32)
        rungs = ["null"] * len(rows)
        nearness = np.full(len(rows), -1, np.float32)
        texts, documents = [text_of(row._asdict()) for row in rows], [row.document for row in rows]
        for forward in self.reader.forwards(texts, documents):
            output = forward.output
            vectors = output.logits if labels else torch.nn.functional.normalize(output.sentence_embedding, dim=-1)
            outputs[forward.rows] = vectors.float().cpu().numpy()
            if forward.corrected:
                nearness[forward.rows] = forward.corrected.nearness.cpu().numpy()
            for place, row in enumerate(forward.rows):
                rungs[row] = rung(forward.found, place)
        return self.table(rows, rungs, outputs, nearness)

    def table(self, rows: Sequence[Row], rungs: list[str], outputs: np.ndarray, nearness: np.ndarray) -> pa.Table:
        """Put rows and `outputs`, (rows, dim) embeddings or (rows, labels) logits, into columns.

        Of an adapted student, `nearness` (rows,) is the cosine of the nearest reference, -1 without one.
        """
        columns: dict[str, Any] = {
            "source": pa.array([row.source for row in rows], pa.string()),
            "row": pa.array([row.row for row in rows], pa.int64()),
            "text": pa.array([row.text for row in rows], pa.string()),
        }
        if self.scoring.corpus.text_pair_field:
            columns["text_pair"] = pa.array([row.text_pair for row in rows], pa.string())
        columns["reference"] = pa.array(rungs, pa.string())
        if self.reader.correction:
            columns["nearness"] = pa.array(nearness)
        if self.scoring.write == "embeddings":
            flat = pa.array(outputs.astype(self.scoring.config.predict.datatype).ravel())
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, outputs.shape[1])
            return pa.table(columns)
        return pa.table({**columns, **label_columns(outputs, self.reader.model.config.id2label)})


def label_columns(logits: np.ndarray, names: dict[int, str]) -> dict[str, Any]:
    """`label` and a score for each class from logits (rows, labels); of a regression its number as `score`."""
    if logits.shape[1] == 1:
        return {"score": pa.array(logits[:, 0])}
    probabilities = torch.from_numpy(logits).softmax(-1).numpy()
    best = [names[label] for label in logits.argmax(1).tolist()]
    scores = {f"score_{names[label]}": pa.array(probabilities[:, label]) for label in range(logits.shape[1])}
    return {"label": pa.array(best, pa.string()), **scores}


def rung(found: Neighbours | None, row: int) -> Rung:
    """Which rung of the ladder a row's reference came from; null where there was none to read."""
    return found.rungs[row] if found is not None and found.ids[row] else "null"


def finish(output: OutputFolder, files: list[str], identity: dict[str, Any], thinnest: int = 0) -> dict[str, int]:
    """Add up the counts in the parts' metadata; write rejected.jsonl and, last, the manifest. Returns the counts.

    Of an adapted student so many texts of the lowest nearness go to thinnest.jsonl, the farthest from all that is stored first.
    """
    for name in (names := output.names(PARTS)):
        if name.endswith(".partial"):  # of a worker that was killed
            output.filesystem.delete_file(output.path(PARTS, name))
    written = [name for name in names if name.endswith(".parquet")]
    counts, rejected = Counter(dict.fromkeys(COUNTS, 0)), []
    for name in written:
        metadata = parquet.read_schema(output.path(PARTS, name), filesystem=output.filesystem).metadata
        counts.update(json.loads(metadata[COUNTED]))
        rejected += json.loads(metadata[REASONS])
    output.write("".join(json.dumps(row) + "\n" for row in rejected).encode(), REJECTED)
    if identity.get("version"):
        lines = (json.dumps(row) + "\n" for row in thinnest_rows(output, written, thinnest))
        output.write("".join(lines).encode(), THINNEST)
    manifest = {"counts": dict(counts), "files": files, "parts": written, **identity}
    output.write(json.dumps(manifest, indent=2).encode(), MANIFEST)
    return dict(counts)


def thinnest_rows(output: OutputFolder, parts: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Return the rows of the lowest nearness, the lowest first. Rows that read no reference say nothing, and are left out."""
    lowest: list[dict[str, Any]] = []
    for name in parts:
        with output.filesystem.open_input_file(output.path(PARTS, name)) as file:
            part = parquet.ParquetFile(file)
            columns = [column for column in part.schema_arrow.names if column not in ("embedding", "label")]
            rows = part.read(columns=columns).to_pylist()
        read = [row for row in rows if row.pop("reference") != "null"]
        lowest = heapq.nsmallest(count, [*lowest, *read], key=lambda row: float(row["nearness"]))
    return lowest


def as_line(counts: dict[str, int]) -> str:
    """Counts as one line: what became of the rows, and which references they read."""
    rows, references = COUNTS[:3], COUNTS[3:]
    return (
        ", ".join(f"{name} {counts[name]}" for name in rows)
        + "; references: "
        + ", ".join(f"{name} {counts[name]}" for name in references)
    )
