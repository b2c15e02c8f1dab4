"""A copy of a student's folder alone: it answers as the original, without the run's directory and without Ray."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import refbert
from jobs.evaluation.model_card import model_card
from jobs.memory.student_memory import student_memory_options
from refbert import RefBertConfig, RefBertModel
from refbert.config import ReferenceConfig, TeacherConfig
from refbert.errors import InputError
from refbert.export import Export
from refbert.folder import WORD_TABLE, save_student
from refbert.memory.manifest import manifest_of
from refbert.memory.texts import reference_texts
from refbert.teacher import load_teacher
from tests.conftest import REPOSITORY
from vector_store.client import connect
from vector_store.errors import CollectionMismatch, StoreError
from vector_store.server.process import embedded_server
from vector_store.store import Store

STORED = [
    f"{what} {verb} {how}." for what in ("The film", "A phone") for verb in ("is", "was") for how in ("bad", "good")
]
TEXTS = [
    "The film is much too long, and it says nothing at all that we had not heard before.",
    "a good phone",
    "it was bad",
]
OWN = """
from vector_store.retriever import Retriever

def longest(client, store, manifest):
    return Retriever(client, store, manifest, "keywords")
"""
WITHOUT_RAY = "import sys; sys.modules |= dict.fromkeys(('ray', 'deepspeed', 'fastapi', 'jobs', 'cluster'))\n"
MACHINE = """
import contextlib, io, json, os, traceback
for line in sys.stdin:
    asked = json.loads(line)
    os.chdir(asked["folder"])
    sys.argv[1:] = asked["words"]
    printed, failed = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(printed):
            exec(asked["code"], {"__name__": "__main__"})
    except BaseException:
        failed = traceback.format_exc()
    print(json.dumps([printed.getvalue(), failed]), flush=True)
"""
ANSWER = """
import sys, numpy, refbert
folder, place, answer, *texts = sys.argv[1:]
with refbert.load(folder, place or None) as student:
    numpy.save(answer, student.encode(texts))
"""


@pytest.fixture(scope="module")
def store_directory(tmp_path_factory):
    """A store's directory, served."""
    directory = tmp_path_factory.mktemp("store")
    with embedded_server(directory):
        yield directory


@pytest.fixture(scope="module")
def student(request, tiny_teacher_path, tiny_run, store_directory, tmp_path_factory):
    """A run's student/ folder, of the criterion that the test asks for; its memory is a collection of its own."""
    references = ReferenceConfig(criterion=request.param, dense_index=request.param == "dense", dropout=0)
    config = tiny_run(name=request.param, references=references.model_dump(), store__collection=f"of-{request.param}")
    teacher = load_teacher(TeacherConfig(model=tiny_teacher_path, tokens=16))
    manifest = manifest_of(teacher, references)
    texts = reference_texts(teacher, manifest, references)
    rows = [{"text": text, "source": "s", "document": str(row), "split": "train"} for row, text in enumerate(STORED)]
    with embedded_server(store_directory) as url, connect(config.store, url) as client:
        store = Store(client, config.store)
        store.ensure(manifest)
        encoded = zip(rows, teacher.encode_texts(STORED), strict=True)
        store.upsert(
            [
                texts.point(row, texts.identifier(row["text"]), ids, states.mean(0, dtype=np.float32), states)
                for row, (ids, states) in encoded
            ]
        )
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    model = RefBertModel(RefBertConfig(dim=teacher.dim, initializer_range=0.2, reference_readout=True, **shape))
    folder = tmp_path_factory.mktemp(request.param) / "student"
    save_student(folder, model, teacher.tokenizer, texts.table, **student_memory_options(config, manifest))
    return folder


@pytest.fixture(scope="module")
def own_criterion(tmp_path_factory):
    """A folder with a user's own criterion."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(OWN)
    return folder


@pytest.fixture(scope="module")
def run_elsewhere(own_criterion):
    """Run code in a process that has the libraries, the user's own criterion, no Ray, and knows nothing of the run.

    Returns what it printed. One process for all: each imports for ten seconds.
    """
    paths = os.pathsep.join([str(own_criterion), str(REPOSITORY)])
    environment = {**os.environ, "PYTHONPATH": paths, "REFBERT_HOME": str(own_criterion / "nothing")}
    words = [sys.executable, "-c", WITHOUT_RAY + MACHINE]
    with subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout

        def run(code, folder, *words):
            asked = {"code": code, "folder": str(folder), "words": [str(word) for word in words]}
            print(json.dumps(asked), file=process.stdin, flush=True)
            printed, failed = json.loads(process.stdout.readline())
            assert failed is None, failed
            return printed

        yield run
        process.stdin.close()


@pytest.fixture
def copied(student, tmp_path):
    return shutil.copytree(student, tmp_path / "copy")


@pytest.mark.parametrize("student", ["keywords", "dense", "own.longest"], indirect=True)
def test_a_copy_answers_as_the_original_without_the_run_and_without_ray(
    student, copied, store_directory, run_elsewhere, own_criterion, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(own_criterion)
    with refbert.load(student, store_directory) as reader:
        wanted = reader.encode(TEXTS)
    with embedded_server(store_directory) as url:
        place = url if "dense" in student.parent.name else str(store_directory)
        run_elsewhere(ANSWER, tmp_path, copied, place, tmp_path / "answer.npy", *TEXTS)
        np.testing.assert_array_equal(np.load(tmp_path / "answer.npy"), wanted)
    null = refbert.load(copied).encode(TEXTS)
    assert (np.abs(null - wanted).max(1) > 1e-4).all()


@pytest.mark.parametrize("student", ["keywords"], indirect=True)
def test_the_cards_snippet_runs_in_the_copied_folder_as_it_is_printed(
    copied, store_directory, run_elsewhere, monkeypatch
):
    monkeypatch.setattr("jobs.evaluation.model_card.markdown", lambda report, title, pictures: "")
    export = Export(inputs=(), outputs=(), opset=20, tolerance=1e-4, difference=0.0, bytes=1)
    report = {"teacher": {"name": "t"}, "fidelity": {}}
    for memory in (None, RefBertConfig.from_pretrained(copied).memory):
        card = model_card(report, "mine", memory, export, None)
        snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        (snippet,) = (
            each for each in snippets if "import refbert" in each
        )  # the other: tests/unit/refbert/test_remote_code.py
        with embedded_server(store_directory) as url:
            printed = run_elsewhere(snippet.replace("http://host:6334", url), copied)
        assert len(np.fromstring(printed.strip().strip("[]"), sep=" ")) == 48


@pytest.mark.parametrize("student", ["keywords"], indirect=True)
def test_what_cannot_be_read_is_refused_in_one_line(student, copied, store_directory, tmp_path, monkeypatch):
    monkeypatch.setattr("refbert.memory.opening.FIRST_ANSWER_S", 0.5)
    with pytest.raises(StoreError, match="there is no store in"):
        refbert.load(copied, tmp_path)
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9"):
        refbert.load(copied, "http://127.0.0.1:9")
    config = RefBertConfig.from_pretrained(copied)
    config.memory["fingerprint"] = "another"
    config.save_pretrained(copied)
    with pytest.raises(CollectionMismatch, match="another"):
        refbert.load(copied, store_directory)
    config = RefBertConfig.from_pretrained(student)
    config.references["criterion"] = "not_there.at_all"
    config.save_pretrained(copied)
    with pytest.raises(InputError, match=r"not_there.at_all cannot be imported .* with its module on the path"):
        refbert.load(copied, store_directory)


@pytest.mark.parametrize("student", ["dense"], indirect=True)
def test_a_dense_memory_is_asked_with_the_table_that_travels_with_the_student(copied, store_directory):
    (copied / WORD_TABLE).unlink()
    with pytest.raises(InputError, match=r"word_table.safetensors is missing.*copy the whole student/ folder"):
        refbert.load(copied, store_directory)


@pytest.mark.parametrize("student", ["keywords"], indirect=True)
def test_a_reader_that_was_closed_says_so(student, store_directory):
    with refbert.load(student, store_directory) as reader:
        reader.encode(TEXTS)
    with pytest.raises(InputError, match="was closed"):
        reader.encode(TEXTS)
