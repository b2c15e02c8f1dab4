"""A labelled task as a prepared corpus: its training split is what the memory stores, its development splits are held out.

Training rows that nearly repeat a development row are stored under a split of their own: the leak guard. `arms` has look-ups
leave that split out, but for one evaluation that shows what the guard does. Copies of training rows (refbert/augmentation.py),
which are only trained on, have a split of their own too.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.config import RunConfig
from jobs.corpus.prepared import (
    DISTINCT,
    PASSAGE_SCHEMA,
    REJECTED,
    CorpusCounts,
    PreparedCorpus,
    first_rows,
    open_prepared,
    sums_of,
)
from refbert.atomic import checksum, digest, first_whole_folder
from refbert.augmentation import Augmenter
from refbert.config import TaskConfig
from refbert.leaks import Leaks, find_leaks
from refbert.passages import Text, text_of
from refbert.tasks import Example, TaskData, load_task
from refbert.teacher import Teacher

NEAR_DUPLICATE = "near-duplicate"
"""The stored split of training rows that nearly repeat a development row."""

AUGMENTED = "augmented"
"""The stored split of copies of training rows."""


@dataclass(frozen=True)
class TaskCorpus:
    """A task, and its training split prepared for the memory: rows with a label first, then their copies, without.

    `leaked` (train,) marks training rows that nearly repeat an evaluated one; `repeated` (rows,), for each development split,
    its rows that have a near-duplicate in training.
    """

    data: TaskData
    prepared: PreparedCorpus
    leaked: NDArray[np.bool_]
    repeated: dict[str, NDArray[np.bool_]]

    def texts(self, split: str) -> list[Text]:
        """Return the texts, or pairs, of one split."""
        return [example_text(example) for example in self.data.split(split)]

    def labels(self, split: str) -> NDArray[np.float32]:
        """Return the labels of one split (rows,): numbers of classes, or scores of a regression; NaN for copies."""
        return np.array([example.label for example in self.data.split(split)], np.float32)

    @property
    def num_labelled(self) -> int:
        """Training rows that are no copies."""
        return sum(example.label is not None for example in self.data.split("train"))


def example_text(example: Example) -> Text:
    """Return what an encoder reads of an example."""
    return example.text if example.text_pair is None else (example.text, example.text_pair)


def prepare_task(task: TaskConfig, home: Path) -> TaskCorpus:
    """Read a task, look for leaks, and prepare its training split, or find it prepared."""
    data = load_task(task)
    evaluated = {name: data.split(name) for name in data.dev_splits}
    found = {name: find_leaks(_texts(data.split("train")), _texts(split)) for name, split in evaluated.items()}
    leaked = _marked(len(data.split("train")), *(leaks.train_rows for leaks in found.values()))
    repeated = {name: _marked(len(evaluated[name]), leaks.evaluation_rows) for name, leaks in found.items()}
    rows = _passages(data, leaked)
    directory = home / "corpora" / f"{data.task.name}-{_rows_digest(rows)}"
    if not (directory / "manifest.json").exists():
        _write(rows, found, directory)
    return TaskCorpus(data, open_prepared(directory), leaked, repeated)


def augmented(config: RunConfig, corpus: TaskCorpus, teacher: Teacher) -> TaskCorpus:
    """Return the task with copies of its training rows behind them, made or found prepared.

    A copy is of its row's document, which keeps it from reading that row. Words are replaced by their neighbours in the
    teacher's token embeddings.
    """
    augment = config.task_stage.augment
    key = digest(corpus.prepared.directory.name, teacher.fingerprint, augment.model_dump(mode="json"), config.seed)
    directory = config.home / "corpora" / f"{corpus.data.task.name}-{key}"
    if not (directory / "manifest.json").exists():
        given = corpus.prepared.table("train")
        _write(pa.concat_tables([given, _copies(given, Augmenter(teacher, augment), config.seed)]), {}, directory)
    prepared = open_prepared(directory)
    rows = corpus.data.split("train")
    copies = [
        Example(row["text"], row["text_pair"], None, row["document"], number)
        for number, row in enumerate(prepared.table("train").slice(len(rows)).to_pylist())
    ]
    data = corpus.data._replace(splits={**corpus.data.splits, "train": [*rows, *copies]})
    return TaskCorpus(data, prepared, np.append(corpus.leaked, np.zeros(len(copies), bool)), corpus.repeated)


def _copies(rows: pa.Table, augmenter: Augmenter, seed: int) -> pa.Table:
    passages = rows.to_pylist()
    made = augmenter.copies([text_of(passage) for passage in passages], seed)
    return pa.Table.from_pylist(
        [
            {
                **passage,
                "text": copy if isinstance(copy, str) else copy[0],
                "text_pair": None if isinstance(copy, str) else copy[1],
                "label": None,
                "split": AUGMENTED,
            }
            for passage, copies in zip(passages, made, strict=True)
            for copy in copies
        ],
        schema=PASSAGE_SCHEMA,
    )


def _texts(examples: Sequence[Example]) -> list[tuple[str, str | None]]:
    return [(example.text, example.text_pair) for example in examples]


def _marked(size: int, *rows: set[int]) -> NDArray[np.bool_]:
    marks = np.zeros(size, bool)
    marks[sorted(set().union(*rows))] = True
    return marks


def _passages(data: TaskData, leaked: NDArray[np.bool_]) -> pa.Table:
    """The training split with the columns of a prepared corpus."""
    return pa.Table.from_pylist(
        [
            {
                "text": example.text,
                "text_pair": example.text_pair,
                "label": str(example.label),
                "document": example.document,
                "source": f"{data.task.name}/train",
                "split": NEAR_DUPLICATE if leak else "train",
            }
            for example, leak in zip(data.split("train"), leaked, strict=True)
        ],
        schema=PASSAGE_SCHEMA,
    )


def _rows_digest(rows: pa.Table) -> str:
    return checksum("".join(map(json.dumps, rows.to_pylist())).encode())[:16]


def _write(rows: pa.Table, leaks: dict[str, Leaks], directory: Path) -> None:
    with first_whole_folder(directory) as scratch:
        with pa.OSFile(str(scratch / "train.arrow"), "wb") as file, pa.ipc.new_file(file, PASSAGE_SCHEMA) as writer:
            writer.write_table(rows)
        distinct = first_rows(rows)
        np.save(scratch / DISTINCT, distinct)
        (scratch / REJECTED).touch()
        labels = tuple(sorted(set(rows["label"].to_pylist()) - {None}))
        counts = CorpusCounts(0, rows.num_rows, len(distinct), 0, labels)
        manifest = {
            "sums": sums_of(scratch),
            "counts": asdict(counts),
            "near_duplicates": {
                split: {
                    "pairs": [[leak.train, leak.evaluation, round(leak.similarity, 3)] for leak in found.duplicates],
                    "shared_sides": len(found.shared_sides),
                }
                for split, found in leaks.items()
            },
        }
        (scratch / "manifest.json").write_text(json.dumps(manifest, indent=2))
