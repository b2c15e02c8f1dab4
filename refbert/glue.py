"""GLUE as data: its nine tasks, their files and label names, and the files that its server takes.

The tasks are those of Wang et al. 2019 (arXiv 1804.07461), Table 1, numbers of rows those of the files. Columns have the names
of GLUE's own TSV files (CoLA's name none and get some here), then the Hub's where these differ. Reads no examples: `tasks.py`
does.
"""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from refbert.errors import InputError


class Split(NamedTuple):
    """A part of a task: its files (without ending), its name on the Hub, GLUE's number of rows, the file to submit."""

    name: str
    files: tuple[str, ...]
    hub: str = ""
    rows: int | None = None
    submission: str | None = None

    @property
    def labelled(self) -> bool:
        """Whether a row must have a label: GLUE hides those of its tests."""
        return self.name.startswith(("train", "dev"))


class Task(NamedTuple):
    """What one task asks. `texts` and `label` name columns: GLUE's own first, then the Hub's where it differs."""

    name: str
    labels: tuple[str, ...]  # in the Hub's order; none for a regression
    metrics: tuple[str, ...]  # their mean is the task's one figure
    texts: tuple[tuple[str, ...], ...]
    label: tuple[str, ...]
    splits: tuple[Split, ...]
    hub: str = ""  # GLUE's name for it on the Hub; empty for a task that is not GLUE's
    answers: Literal["numbers", "words"] = "numbers"  # how GLUE's files write a class
    header: tuple[str, ...] = ()  # columns of files that do not name them
    group: Literal["text", "text_pair"] | None = None  # the text that rows of one document share
    document: str | None = None  # the column that names a row's document

    @property
    def regression(self) -> bool:
        """Whether labels are numbers to be met."""
        return not self.labels

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """Names of the development splits: one, or MNLI's two."""
        return tuple(split.name for split in self.splits if split.name.startswith("dev"))


def _splits(name: str, train: int, dev: int, test: int) -> tuple[Split, ...]:
    return (
        Split("train", ("train",), "train", train),
        Split("dev", ("dev",), "validation", dev),
        Split("test", ("test",), "test", test, f"{name}.tsv"),
    )


SENTENCES = (("sentence1",), ("sentence2",))

GLUE: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "CoLA", ("unacceptable", "acceptable"), ("matthews",), (("sentence",),), ("label",),
            _splits("CoLA", 8551, 1043, 1063), "cola", header=("source", "label", "star", "sentence"),
        ),
        Task(
            "SST-2", ("negative", "positive"), ("accuracy",), (("sentence",),), ("label",),
            _splits("SST-2", 67349, 872, 1821), "sst2",
        ),
        Task(  # `msr_paraphrase_*` is the authors' own form: GLUE's dev split is the pairs that dev_ids.tsv names
            "MRPC", ("not_equivalent", "equivalent"), ("accuracy", "f1"),
            (("#1 String", "sentence1"), ("#2 String", "sentence2")), ("Quality", "label"),
            (
                Split("train", ("train", "msr_paraphrase_train"), "train", 3668),
                Split("dev", ("dev", "msr_paraphrase_train"), "validation", 408),
                Split("test", ("test", "msr_paraphrase_test"), "test", 1725, "MRPC.tsv"),
            ),
            "mrpc",
        ),
        Task(
            "STS-B", (), ("pearson", "spearman"), SENTENCES, ("score", "label"),
            _splits("STS-B", 5749, 1500, 1379), "stsb",
        ),
        Task(
            "QQP", ("not_duplicate", "duplicate"), ("accuracy", "f1"), (("question1",), ("question2",)),
            ("is_duplicate", "label"), _splits("QQP", 363846, 40430, 390965), "qqp",
        ),
        Task(
            "MNLI", ("entailment", "neutral", "contradiction"), ("accuracy",),
            (("sentence1", "premise"), ("sentence2", "hypothesis")), ("gold_label", "label"),
            (
                Split("train", ("train",), "train", 392702),
                Split("dev_matched", ("dev_matched", "dev"), "validation_matched", 9815),
                Split("dev_mismatched", ("dev_mismatched",), "validation_mismatched", 9832),
                Split("test_matched", ("test_matched",), "test_matched", 9796, "MNLI-m.tsv"),
                Split("test_mismatched", ("test_mismatched",), "test_mismatched", 9847, "MNLI-mm.tsv"),
                Split("diagnostic", ("diagnostic", "../diagnostic/diagnostic"), "ax/test", 1104, "AX.tsv"),
            ),
            "mnli", "words", group="text",
        ),
        Task(
            "QNLI", ("entailment", "not_entailment"), ("accuracy",), (("question",), ("sentence",)), ("label",),
            _splits("QNLI", 104743, 5463, 5463), "qnli", "words", group="text_pair",
        ),
        Task(
            "RTE", ("entailment", "not_entailment"), ("accuracy",), SENTENCES, ("label",),
            _splits("RTE", 2490, 277, 3000), "rte", "words", group="text",
        ),
        Task(
            "WNLI", ("not_entailment", "entailment"), ("accuracy",), SENTENCES, ("label",),
            _splits("WNLI", 635, 71, 146), "wnli", group="text",
        ),
    )
}  # fmt: skip


def write_submission(folder: Path, task: Task, split: str, predictions: Sequence[int] | Sequence[float]) -> Path:
    """Write the file that GLUE's server takes for one test split, and return its path.

    Predictions are in the order of the split's rows: class numbers, or similarities, which are clipped to 0..5. Raises
    InputError where GLUE takes no such file, or where there is not one prediction for each of its rows.
    """
    wanted = next((part for part in task.splits if part.name == split and part.submission), None)
    if wanted is None or wanted.submission is None:
        takes = ", ".join(part.name for part in task.splits if part.submission) or "nothing"
        raise InputError(f"GLUE takes no {split!r} of {task.name}, only {takes}; choose one of those")
    if len(predictions) != wanted.rows:
        raise InputError(
            f"{wanted.submission} wants {wanted.rows} rows, found {len(predictions)} predictions; predict GLUE's own {split}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / wanted.submission
    lines = [f"{row}\t{_answer(task, prediction)}\n" for row, prediction in enumerate(predictions)]
    path.write_text("index\tprediction\n" + "".join(lines), encoding="utf-8")
    return path


def zip_submission(folder: Path, path: Path) -> Path:
    """Pack the eleven files of a whole submission. Raises InputError that names the missing ones: the server wants all."""
    names = [split.submission for task in GLUE.values() for split in task.splits if split.submission]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}: GLUE's server wants every file; write constant predictions for a task "
            "that is left out"
        )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(folder / name, name)
    return path


def _answer(task: Task, prediction: int | float) -> str:
    if task.regression:
        if not math.isfinite(prediction):
            raise InputError(
                f"{task.name}: a prediction is {prediction}, wanted a number of 0 to 5; look at the training"
            )
        return f"{min(max(float(prediction), 0.0), 5.0):.3f}"
    label = task.labels[int(prediction)]
    return label if task.answers == "words" else str(int(prediction))
