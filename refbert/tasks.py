"""Read a labelled task into examples: GLUE's nine, or anyone's own files.

A GLUE folder is in the form that GLUE's download script leaves (TSV without quoting), or in jsonl with the Hub's column names;
without a folder the Hub is asked. Bad rows come out as `Rejected`, not as exceptions; a file without one good row raises
InputError. Knows no models.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from refbert.atomic import checksum
from refbert.config import TaskConfig
from refbert.corpus import ENDINGS, Rejected, class_name, json_record
from refbert.delimited import read_delimited
from refbert.errors import InputError, UnavailableError
from refbert.glue import GLUE, Split, Task
from refbert.passages import normalise

HUB_DATASET = "nyu-mll/glue"
GLUE_ENDINGS = (".tsv", ".jsonl", ".txt")
CUSTOM_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

logger = logging.getLogger(__name__)

Record = dict[str, Any] | str  # a row's values by column, or the reason why it has none
Source = tuple[str, Iterable[Record]]  # the file, and its rows


class Example(NamedTuple):
    """One row of a task, its texts normalised as a memory's are. `row` counts from 0 within its file, bad rows included.

    Rows of one `document` share a text (a premise, a passage) where the task is built of such groups.
    """

    text: str
    text_pair: str | None
    label: int | float | None
    document: str
    row: int


class TaskData(NamedTuple):
    """A task's examples by split. `official`: each split that was found has GLUE's number of rows. `note`: what is not so."""

    task: Task
    splits: dict[str, list[Example]]
    rejected: dict[str, list[Rejected]]
    official: bool
    note: str
    source: str

    def split(self, name: str) -> list[Example]:
        """Return one split. Raises InputError where it was not found."""
        if name not in self.splits:
            raise InputError(
                f"{self.task.name} has no {name} in {self.source}: looked for {_sought(self.task, name)}, "
                f"found only {', '.join(self.splits)}; {_hint(self.task, Path(self.source).expanduser())}"
            )
        return self.splits[name]

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """The development splits that were found."""
        return tuple(name for name in self.task.dev_splits if name in self.splits)


def load_task(config: TaskConfig) -> TaskData:
    """Read every split that is there. Raises InputError where there is neither training nor development data."""
    if config.name == "custom":
        task, sources = _custom_task(config)
        where = config.path or " and ".join(filter(None, (config.train, config.dev)))
    else:
        task, where = GLUE[config.name], config.path or f"the Hub's {HUB_DATASET}"
        sources = _hub_sources(task) if config.path is None else _folder_sources(task, Path(config.path).expanduser())

    splits: dict[str, list[Example]] = {}
    rejected: dict[str, list[Rejected]] = {}
    for split in task.splits:
        if split.name in sources:
            splits[split.name], rejected[split.name] = _read_split(task, split, *sources[split.name])

    found = [split for split in task.splits if split.name in splits]
    odd = [
        f"{split.name} has {len(splits[split.name])} rows, GLUE's {split.rows}"
        for split in found
        if len(splits[split.name]) != split.rows
    ]
    notes = list(odd) if task.hub else ["not a task of GLUE"]
    notes += [f"no {split.name} found" for split in task.splits if split.labelled and split not in found]
    notes += [f"{len(bad)} bad rows in {name}, the first: {bad[0].reason}" for name, bad in rejected.items() if bad]
    if config.max_train and len(splits.get("train", ())) > config.max_train:
        notes.append(f"{config.max_train} of {len(splits['train'])} training rows sampled")
        splits["train"] = sample(splits["train"], config.max_train, config.seed)
    note = "; ".join(notes)
    if note:
        logger.info("%s: %s", task.name, note)
    return TaskData(task, splits, rejected, bool(task.hub) and not odd, note, where)


def sample(examples: list[Example], size: int, seed: int) -> list[Example]:
    """Return `size` of the examples, in their order: those of the least hashes of seed and texts.

    So a sample does not depend on the order of rows, and is part of every larger sample of the same seed.
    """

    def rank(example: Example) -> str:
        return checksum(f"{seed}\n{example.text}\n{example.text_pair or ''}".encode())

    return sorted(sorted(examples, key=rank)[:size], key=lambda example: example.row)


def _read_split(task: Task, split: Split, file: str, records: Iterable[Record]) -> tuple[list[Example], list[Rejected]]:
    examples: list[Example] = []
    rejected: list[Rejected] = []
    for row, record in enumerate(records):
        example = record if isinstance(record, str) else _example(task, split, row, record)
        if isinstance(example, str):
            rejected.append(Rejected(file, row, example))
        else:
            examples.append(example)
    if not examples:
        reason = f"{len(rejected)} bad rows, the first: {rejected[0].reason}" if rejected else "no rows at all"
        raise InputError(f"{file} has no example of {task.name}, but {reason}; give a file in the task's form")
    return examples, rejected


def _example(task: Task, split: Split, row: int, record: dict[str, Any]) -> Example | str:
    """One example, or the reason why the row is none."""
    texts: list[str] = []
    for names in task.texts:
        text = _value(record, names)
        if text is None:
            return f"no {names[0]!r}"
        if not isinstance(text, str):
            return f"{names[0]!r} is {type(text).__name__}, wanted a text"
        if any("\ud800" <= character <= "\udfff" for character in text):
            return f"{names[0]!r} is not valid UTF-8"
        texts.append(normalise(text))
    if split.labelled and not any(texts):  # a test is answered row by row, whatever it holds
        return f"{task.texts[0][0]!r} is empty"
    label = _label(task, _value(record, task.label))
    if split.labelled and isinstance(label, str):
        return label
    document = f"{split.name}/{row}"
    if task.group:
        document = checksum(texts[task.group == "text_pair"].encode())[:16]
    elif task.document:
        document = document if record.get(task.document) is None else str(record[task.document])
    pair = texts[1] if len(texts) == 2 else None
    return Example(texts[0], pair, None if isinstance(label, str) else label, document, row)


def _value(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((record[name] for name in names if name in record), None)


def _label(task: Task, value: Any) -> int | float | str:
    """A label as a number, or the reason why it is none. GLUE's files write names or numbers; -1 is a hidden label."""
    name = class_name(value)
    shown = "" if value is None else str(value).strip()
    if task.regression:
        number = math.nan if name is None else _number(name)
        return number if math.isfinite(number) and not (task.hub and number < 0) else f"label {shown!r} is no score"
    if name in task.labels:
        return task.labels.index(name)
    if task.hub and name and name.isdecimal() and int(name) < len(task.labels):
        return int(name)
    return f"label {shown!r} is none of {', '.join(task.labels)}"


def _number(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return math.nan


def _sought(task: Task, split: str) -> str:
    files = next((part.files for part in task.splits if part.name == split), ())
    endings = GLUE_ENDINGS if task.hub else CUSTOM_ENDINGS
    return " or ".join(f"{file}{endings[0]} (or {', '.join(endings[1:])})" for file in files) or "no such file"


def _hint(task: Task, path: Path) -> str:
    others = sorted(entry.name for entry in path.glob(f"{task.name}-*") if entry.is_dir())
    return f"there is {', '.join(others)}, to be given as its path" if others else "give a path that has it"


def _find(folder: Path, stem: str, endings: tuple[str, ...]) -> Path | None:
    return next((file for ending in endings if (file := folder / f"{stem}{ending}").is_file()), None)


def _folder_sources(task: Task, path: Path) -> dict[str, Source]:
    """Find a GLUE task's files in `path`, or in the folder of its name there."""
    folder = path / task.name if (path / task.name).is_dir() else path
    found: dict[str, Source] = {}
    for split in task.splits:
        for stem in split.files:
            file = _find(folder, stem, GLUE_ENDINGS)
            if file is None or split.name in found:
                continue
            records = _read(file, task.header, task.texts[0][0])
            if stem == "msr_paraphrase_train":
                records = _msr_part(records, folder / "dev_ids.tsv", split.name)
            found[split.name] = (str(file), records)
    if not {"train", *task.dev_splits} & set(found):
        raise InputError(
            f"no {task.name} in {folder}: looked for {_sought(task, 'train')}, and dev; {_hint(task, path)}"
        )
    return found


def _msr_part(records: Iterator[Record], dev_ids: Path, split: str) -> Iterator[Record]:
    """Rows of MRPC's own training file that are in GLUE's train or dev split, which dev_ids.tsv tells apart."""
    if not dev_ids.is_file():
        raise InputError(f"{dev_ids} is missing: it says which pairs of msr_paraphrase_train are GLUE's dev split")
    held_out = {tuple(line.split("\t")) for line in dev_ids.read_text(encoding="utf-8-sig").splitlines()}
    for record in records:
        ids = () if isinstance(record, str) else (record.get("#1 ID"), record.get("#2 ID"))
        if (ids in held_out) == (split == "dev"):
            yield record


def _hub_sources(task: Task) -> dict[str, Source]:
    from datasets import load_dataset

    found: dict[str, Source] = {}
    for split in task.splits:
        config, _, name = split.hub.rpartition("/")
        try:
            rows = load_dataset(HUB_DATASET, config or task.hub, split=name)
        except (OSError, ValueError) as error:
            raise UnavailableError(
                f"GLUE's {config or task.hub} cannot be loaded from the Hub: {str(error).splitlines()[0]}; "
                "give a folder in GLUE's TSV form as the task's path"
            ) from None
        found[split.name] = (f"{HUB_DATASET}/{config or task.hub}/{name}", rows)
    return found


def _custom_task(config: TaskConfig) -> tuple[Task, dict[str, Source]]:
    """The task that a user's files define: its classes are those of the training rows, sorted; of dev if there are none."""
    splits = (Split("train", ("train",)), Split("dev", ("dev", "validation")), Split("test", ("test",)))
    files: dict[str, Path] = {}
    for split in splits:
        given = getattr(config, split.name)
        candidates = [
            _find(Path(config.path).expanduser(), stem, CUSTOM_ENDINGS) for stem in split.files if config.path
        ]
        file = Path(given).expanduser() if given else next(filter(None, candidates), None)
        if given and not Path(given).expanduser().is_file():
            raise InputError(f"{split.name}={given} does not exist; give a file ({', '.join(CUSTOM_ENDINGS)})")
        if file is not None:
            files[split.name] = file
    if not {"train", "dev"} & set(files):
        raise InputError(
            f"no task in {config.path}: looked for train and dev with ending {', '.join(CUSTOM_ENDINGS)}; "
            "name your files so, or give train=FILE and dev=FILE"
        )
    rows = {name: list(_read(file)) for name, file in files.items()}
    learned = "train" if "train" in rows else "dev"
    good = [record for record in rows[learned] if not isinstance(record, str)]
    columns = dict.fromkeys(name for record in good for name in record)
    pair = config.text_pair_field or ("text_pair" if "text_pair" in columns else None)
    for wanted in filter(None, (config.text_field, pair, config.label_field, config.document_field)):
        if wanted not in columns:
            raise InputError(
                f"{files[learned]} has no column {wanted!r}, only {', '.join(columns) or 'bad rows'}; "
                "name the right one with text_field, text_pair_field, label_field or document_field"
            )
    texts = tuple((name,) for name in (config.text_field, pair) if name)
    names = {name for record in good if (name := class_name(record.get(config.label_field))) is not None}
    in_numbers = all(math.isfinite(_number(name)) for name in names)
    labels = () if config.regression else tuple(sorted(names, key=_number if in_numbers else None))
    if not config.regression and len(labels) < 2:
        raise InputError(
            f"{files[learned]} has {len(labels)} classes in {config.label_field!r} ({', '.join(labels) or 'no label'}), "
            "wanted two or more; give rows of other classes, another label_field, or regression=true where labels are "
            "numbers to be met"
        )
    metrics = config.metrics or (("pearson", "spearman") if config.regression else ("accuracy",))
    if "f1" in metrics and len(labels) != 2:
        raise InputError(f"metric f1 is of two classes, found {len(labels)}: {', '.join(labels)}; take macro_f1")
    task = Task("custom", labels, metrics, texts, (config.label_field,), splits, document=config.document_field)
    return task, {name: (str(file), rows[name]) for name, file in files.items()}


def _read(file: Path, header: tuple[str, ...] = (), text: str = "") -> Iterator[Record]:
    """Yield each row of a file as a dict, or the reason why it is none.

    `header` names the columns of a TSV file whose first line has no column `text`. Bytes that are not UTF-8 become lone
    surrogates, so that they cost their own row only.
    """
    if file.suffix == ".parquet":
        yield from _parquet_records(file)
        return
    try:
        newline = "" if file.suffix == ".csv" else "\n"  # a carriage return within a TSV row is white space of its text
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as lines:
            if ENDINGS.get(file.suffix) == "jsonl":
                yield from (json_record(line) for line in lines if line.strip())
            elif file.suffix == ".csv":
                yield from read_delimited(lines, ",", header=header, named_by=text)
            else:  # GLUE's TSV files are not quoted: a quotation mark is text
                yield from read_delimited(lines, "\t", False if text else None, header, text)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}; give a {file.suffix[1:]} file") from None


def _parquet_records(file: Path) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read: {str(error).splitlines()[0]}; give a parquet file") from None
