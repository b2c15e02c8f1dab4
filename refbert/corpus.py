"""Turn files of text into rows: find the files of a corpus, read and check their rows.

A corpus is a file or folder, local or at a URI that pyarrow opens, a packaged corpus or a Hub data set; files may be
compressed. Of a folder everything is read but what is hidden, is no file, or is in no known form; `passed_over` counts these
files and names the first of them. A bad row comes out as `Rejected`, not as an exception: one bad row must not kill a job. A
file that cannot be read as a whole, or that lacks the text's column, raises InputError. Cuts no passages; knows nothing of
models, and nothing of who runs it where.
"""

import io
import json
import logging
import math
import os
import re
from bisect import bisect_right
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

from refbert.config import CorpusConfig
from refbert.delimited import read_delimited
from refbert.errors import InputError
from refbert.packaged import PREFIX, local_path
from refbert.passages import normalise

ENDINGS = {
    ".txt": "text",
    ".raw": "text",
    ".text": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".lz4": "lz4", ".zst": "zstd"}
"""pyarrow unpacks by a file's ending; parquet is compressed within."""
HIDDEN = (".", "__MACOSX", "_temporary")
"""Files and folders that editors, notebooks, archives and unfinished jobs leave beside others begin so."""
DELIMITERS = {"csv": ",", "tsv": "\t"}
HUB = "hub:"
DOCUMENT = "= title ="
"""Key under which a line of wikitext carries its article's title: no column of a file is called so."""

ESTIMATE_BYTES = 1 << 20
PROBED_ROWS = 1000
"""A file of which so many rows lack the text's field is taken for one that has another."""
SHOWN_NAMES = 5

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One text of a corpus, or pair of texts, with its provenance. `row` counts from 0 within `source`."""

    text: str
    label: str | None
    document: str
    source: str
    row: int
    text_pair: str | None = None
    in_document: bool = False  # other rows may be of the same named document


class Rejected(NamedTuple):
    """A row that is no text, with the reason."""

    source: str
    row: int
    reason: str


def class_name(value: Any) -> str | None:
    """Return a label as a word, the same from csv, jsonl and parquet: 1, 1.0, "1" and "1.0" are one class.

    None where it is no class: nothing, NaN, an infinite number, an empty text, a list.
    """
    if value is None or isinstance(value, list | tuple | dict | bytes):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    name = str(value).strip()
    if whole := re.fullmatch(r"([+-]?[0-9]+)\.0*", name):
        return whole[1]
    try:
        return name if name and math.isfinite(float(name)) else None
    except ValueError:
        return name


def json_record(text: str) -> dict[str, Any] | str:
    """Parse a JSON object; the reason where it is none."""
    try:
        record = json.loads(text.removeprefix("\ufeff"))
    except ValueError as error:
        return f"not JSON: {error}"
    except RecursionError:
        return "JSON that is nested too deeply"
    return record if isinstance(record, dict) else f"a JSON {type(record).__name__}, wanted an object"


def corpus_files(config: CorpusConfig) -> list[str]:
    """List the files of a corpus, sorted, as paths of its own filesystem. Raises InputError where there are none."""
    if config.path.startswith(HUB):
        return [config.path]
    files, passed = _listing(config)
    if not files:
        others = f"; passed over: {_counted(passed)}" if passed else ""
        raise InputError(
            f"corpus.path={config.path} holds no file ending in {', '.join(ENDINGS)}{others}; give other files, or "
            "corpus.format"
        )
    return files


def passed_over(config: CorpusConfig) -> str | None:
    """Say in one line which files in a corpus's folder are not read, and why; None where all are."""
    files, passed = ([], {}) if config.path.startswith(HUB) else _listing(config)
    if not passed:
        return None
    count = sum(map(len, passed.values()))
    return (
        f"{config.path}: {count} of {count + len(files)} files passed over: {_counted(passed)}; what can be read ends in "
        f"{', '.join(ENDINGS)}, also with {', '.join(COMPRESSIONS)} behind it, or is what corpus.format says"
    )


def _counted(passed: dict[str, list[str]]) -> str:
    """Number and names of the files passed over for each reason."""
    shown = {reason: ", ".join(names[:SHOWN_NAMES]) for reason, names in passed.items()}
    return "; ".join(
        f"{len(names)} {reason} ({shown[reason]}{', ...' if len(names) > SHOWN_NAMES else ''})"
        for reason, names in passed.items()
    )


def _listing(config: CorpusConfig) -> tuple[list[str], dict[str, list[str]]]:
    """The files of a corpus, sorted, and names within its folder of those that are not read, by reason."""
    import pyarrow
    from pyarrow import fs

    filesystem, path = _filesystem(config.path)
    try:
        found = filesystem.get_file_info(path)
        is_folder = found.type == fs.FileType.Directory
        inside = filesystem.get_file_info(fs.FileSelector(path, recursive=True)) if is_folder else []
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"corpus.path={config.path} cannot be listed: {error}".splitlines()[0]) from None
    if found.type == fs.FileType.NotFound:
        raise InputError(f"corpus.path={config.path} does not exist; give a file, a folder or a URI that can be read")
    if found.type == fs.FileType.File:
        return [path], {}
    files: list[str] = []
    passed: dict[str, list[str]] = {}
    for entry in sorted(inside, key=lambda entry: str(entry.path)):
        name = entry.path[len(path) :].lstrip("/")
        if entry.type == fs.FileType.Directory:
            continue
        if any(part.startswith(HIDDEN) for part in name.split("/")):
            passed.setdefault("hidden", []).append(name)
        elif entry.type != fs.FileType.File:
            passed.setdefault("pipes or devices", []).append(name)
        elif _kind(name, config) is None:
            passed.setdefault("in another form", []).append(name)
        else:
            files.append(entry.path)
    if isinstance(filesystem, fs.LocalFileSystem) and (broken := sorted(_broken_links(path))):
        passed["broken links"] = broken
    return files, passed


def _broken_links(folder: str) -> Iterator[str]:
    """Names of links in a folder that lead nowhere, as in an incomplete Hub cache: pyarrow does not list them."""
    for directory, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(directory, name)
            if os.path.islink(path) and not os.path.exists(path):
                yield os.path.relpath(path, folder)


def remote_states(config: CorpusConfig, files: Sequence[str]) -> list[tuple[int, int]]:
    """Return size in bytes and modification time in nanoseconds of each file of a URI, to notice a replaced file.

    Times are 0 on a filesystem that has none.
    """
    filesystem, _ = _filesystem(config.path)
    return [(state.size or 0, state.mtime_ns or 0) for state in filesystem.get_file_info(list(files))]


def estimated_rows(config: CorpusConfig, files: list[str]) -> int | None:
    """Return how many rows a corpus has: of parquet exactly, of lines by their length at the start; None for the Hub."""
    if config.path.startswith(HUB):
        return None
    import pyarrow
    from pyarrow import parquet

    filesystem, _ = _filesystem(config.path)
    rows = 0.0
    for file in files:
        kind = _kind(file, config)
        with filesystem.open_input_file(file) as stream:
            if kind == "parquet":
                rows += parquet.ParquetFile(stream).metadata.num_rows
                continue
            packed = COMPRESSIONS.get(Path(file).suffix)
            unpacked = pyarrow.CompressedInputStream(stream, packed) if packed else stream
            start = unpacked.read(ESTIMATE_BYTES)
            lines = sum(bool(line.strip()) for line in start.split(b"\n")) - (kind in DELIMITERS)
            rows += max(0, lines) * stream.size() / max(1, stream.tell())
    return round(rows)


def read_rows(file: str, config: CorpusConfig, start: int = 0) -> Iterator[Row | Rejected]:
    """Yield every row of one file of the corpus, good or rejected, in order. Streams: a file may exceed memory.

    The first `start` rows are skipped: whole row groups of parquet unread, lines of text and jsonl unparsed.
    Raises InputError where the file as a whole cannot be read.
    """
    passed = 0 if config.format == "wikitext" else start
    records = _hub_records(file, config, passed) if file.startswith(HUB) else _file_records(file, config, passed)
    if not start:  # else rows that were read before may have had the fields
        records = _checked_fields(records, file, config)
    if config.format == "wikitext":
        records = _articles(records, config)
    for row, record in enumerate(records, passed):
        if row < start:
            continue
        if isinstance(record, str):
            yield Rejected(file, row, record)
            continue
        if reason := _fault(record, config):
            yield Rejected(file, row, reason)
            continue
        document = _document(record, config)
        yield Row(
            normalise(record[config.text_field]),
            class_name(record.get(config.label_field)) if config.label_field else None,
            f"{file}#{row}" if document is None else document,
            file,
            row,
            normalise(record[config.text_pair_field]) if config.text_pair_field else None,
            document is not None,
        )


def _document(record: dict[str, Any], config: CorpusConfig) -> str | None:
    """Name of a record's document; None where it names none (nothing, an empty text, NaN), and is one by itself."""
    if not config.document_field:
        return record.get(DOCUMENT)
    value = record.get(config.document_field)
    return None if value in (None, "") or value != value else class_name(value) or str(value)


def _checked_fields(
    records: Iterator[dict[str, Any] | str], file: str, config: CorpusConfig
) -> Iterator[dict[str, Any] | str]:
    """Pass the records of a file on. Raises InputError where no record has a text's field; warns where none has another."""
    missing = {name for name in (config.text_field, config.text_pair_field) if name}
    optional = {name for name in (config.label_field, config.document_field) if name}
    seen: dict[str, None] = {}
    for number, record in enumerate(records):
        if (missing or optional) and not isinstance(record, str):
            missing -= record.keys()
            optional -= record.keys()
            seen |= dict.fromkeys(list(record)[:64] if len(seen) < 64 else ())
        if missing and number == PROBED_ROWS:
            break
        yield record
    if missing and seen:
        raise _no_column(file, min(missing), seen)
    if optional and seen:
        log.warning("%s: no row has %s, only %s", file, ", ".join(sorted(optional)), ", ".join(seen))


def _no_column(file: str, name: str, columns: Iterable[str]) -> InputError:
    return InputError(
        f"{file} has no column {name!r}, only {', '.join(columns)}; "
        "name the right one with corpus.text_field, text_pair_field, label_field or document_field"
    )


def _fault(record: dict[str, Any], config: CorpusConfig) -> str | None:
    """Say why a record is rejected: its texts must be non-empty strings, and encodable, as must its label and document."""
    texts = [name for name in (config.text_field, config.text_pair_field) if name]
    values = [record.get(name) for name in (*texts, config.label_field, config.document_field) if name]
    if any(re.search("[\ud800-\udfff]", value) for value in values if isinstance(value, str)):
        return "not UTF-8, or a lone surrogate, which no encoding of text can hold"
    for name in texts:
        text = record.get(name)
        if not isinstance(text, str):
            return f"{name!r} is {type(text).__name__}, wanted a text"
        if not normalise(text):
            return f"{name!r} is empty"
    label = record.get(config.label_field) if config.label_field else None
    if label is not None and class_name(label) is None:
        return f"label {str(label)[:40]!r} of type {type(label).__name__} is no class"
    document = record.get(config.document_field) if config.document_field else None
    if isinstance(document, list | tuple | dict | bytes):
        return f"document {config.document_field!r} is {type(document).__name__}, wanted a name"
    return None


def _ending(path: str) -> str:
    name = path.rsplit("/", 1)[-1]
    return "." + name.rsplit(".", 1)[-1].lower() if "." in name else ""


def _kind(path: str, config: CorpusConfig) -> str | None:
    """The form of a file, by its ending or as the config says; None for one that is not known."""
    if config.format != "auto":
        return config.format
    packed = Path(path).suffix in COMPRESSIONS
    kind = ENDINGS.get(_ending(path.rsplit(".", 1)[0] if packed else path))
    return None if packed and kind == "parquet" else kind


def _filesystem(path: str) -> tuple[Any, str]:
    """Open the filesystem of a corpus.path; a packaged corpus is unpacked on whichever machine asks for it."""
    path = local_path(path)
    import pyarrow
    from pyarrow import fs

    try:
        if "://" in path:
            return fs.FileSystem.from_uri(path)
        return fs.LocalFileSystem(), str(Path(path).expanduser().absolute())
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"corpus.path={path} is no URI that pyarrow can open: {error}") from None


def _file_records(file: str, config: CorpusConfig, start: int) -> Iterator[dict[str, Any] | str]:
    """Yield a dict per row from `start` on, or the reason why a row has none."""
    import pyarrow

    kind = _kind(file, config)
    if kind is None:
        raise InputError(
            f"{file} ends in none of {', '.join(ENDINGS)}, also with {', '.join(COMPRESSIONS)} behind it; say which it is "
            "with corpus.format"
        )
    filesystem, root = _filesystem(config.path)
    path = file if not config.path.startswith(PREFIX) else f"{root}/{file.rsplit('/', 1)[-1]}"
    try:
        if kind == "parquet":
            yield from _parquet_records(filesystem, path, file, config, start)
            return
        with filesystem.open_input_stream(path) as stream:
            if kind in DELIMITERS:
                yield from islice(_delimited_records(stream, file, kind, config), start, None)
                return
            for line in islice((line for line in _lines(stream) if line.strip()), start, None):
                yield _line_record(line, kind, config)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read as {kind}: {error}".splitlines()[0]) from None


def _parquet_records(
    filesystem: Any, path: str, file: str, config: CorpusConfig, start: int
) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet

    with filesystem.open_input_file(path) as stream:
        table = parquet.ParquetFile(stream)
        fields = (config.text_field, config.text_pair_field, config.label_field, config.document_field)
        wanted = [name for name in fields if name]
        missing = [name for name in wanted if name not in table.schema_arrow.names]
        if missing:
            raise _no_column(file, missing[0], table.schema_arrow.names)
        ends = list(accumulate(table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)))
        first = bisect_right(ends, start)  # the row group that `start` is in
        passed = ends[first - 1] if first else 0
        for batch in table.iter_batches(batch_size=1024, row_groups=range(first, len(ends)), columns=wanted):
            rows = batch.slice(max(0, start - passed))
            passed += batch.num_rows
            yield from rows.to_pylist()


def _delimited_records(stream: Any, file: str, kind: str, config: CorpusConfig) -> Iterator[dict[str, Any] | str]:
    """Rows of a csv or tsv file. A cell without characters is a missing label or document."""
    lines = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="" if kind == "csv" else "\n")
    optional = [name for name in (config.label_field, config.document_field) if name]
    wanted = [name for name in (config.text_field, config.text_pair_field, *optional) if name]
    for record in read_delimited(lines, DELIMITERS[kind], quoted=True if kind == "csv" else None):
        if isinstance(record, str):
            yield record
            continue
        if missing := [name for name in wanted if name not in record]:
            raise _no_column(file, missing[0], record)
        yield record | {name: record[name] or None for name in optional}


def _lines(stream: Any, block_bytes: int = 1 << 20) -> Iterator[bytes]:
    """Yield the lines of a pyarrow stream, which has no readline of its own over compressed or remote files."""
    rest: list[bytes] = []
    while block := stream.read(block_bytes):
        first, *lines = block.split(b"\n")
        rest.append(first)
        if lines:
            yield b"".join(rest)
            yield from lines[:-1]
            rest = lines[-1:]
    if any(rest):
        yield b"".join(rest)


def _line_record(line: bytes, kind: str, config: CorpusConfig) -> dict[str, Any] | str:
    try:
        text = line.removeprefix(BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error.reason} at byte {error.start}"
    return {config.text_field: text} if kind in ("text", "wikitext") else json_record(text)


def _articles(records: Iterator[dict[str, Any] | str], config: CorpusConfig) -> Iterator[dict[str, Any] | str]:
    """Name the document of each line, which is the last title before it, and leave titles out."""
    title = ""
    for record in records:
        text = "" if isinstance(record, str) else record.get(config.text_field)
        line = text.strip() if isinstance(text, str) else ""
        if re.fullmatch(r"= [^=].* =", line):
            title = line
        elif isinstance(record, str):
            yield record
        elif text != "" and not re.fullmatch(
            r"(= ){2,}.*(= ?){2,}", line
        ):  # no blank line, no heading within an article
            yield {**record, DOCUMENT: title}


def _hub_records(file: str, config: CorpusConfig, start: int) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    name, _, subset = file.removeprefix(HUB).partition(":")
    try:
        rows = load_dataset(name, subset or None, split=config.hub_split, streaming=True)
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError, ValueError) as error:
        raise InputError(f"data set {name!r} cannot be loaded from the Hub: {str(error).splitlines()[0]}") from None
    yield from rows.skip(start) if start else rows
