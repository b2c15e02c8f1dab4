"""A copy of a student's folder alone: it answers as the original, without the run's directory and without Ray."""

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
ANSWER = (
    WITHOUT_RAY
    + """
import numpy, refbert
folder, place, answer, *texts = sys.argv[1:]
with refbert.load(folder, place or None) as student:
    numpy.save(answer, student.encode(texts))
"""
)


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


@pytest.fixture
def environment(tmp_path):
    """What a machine has that knows nothing of the run: the libraries, and the user's own criterion."""
    (tmp_path / "own.py").write_text(OWN)
    paths = [str(tmp_path), str(REPOSITORY)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "REFBERT_HOME": str(tmp_path / "nothing")}


@pytest.fixture
def copied(student, tmp_path):
    return shutil.copytree(student, tmp_path / "copy")


@pytest.mark.parametrize("student", ["keywords", "dense", "own.longest"], indirect=True)
def test_a_copy_answers_as_the_original_without_the_run_and_without_ray(
    student, copied, store_directory, environment, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    with refbert.load(student, store_directory) as reader:
        wanted = reader.encode(TEXTS)
    with embedded_server(store_directory) as url:
        place = url if "dense" in student.parent.name else str(store_directory)
        words = [sys.executable, "-c", ANSWER, copied, place, tmp_path / "answer.npy", *TEXTS]
        subprocess.run(words, env=environment, cwd=tmp_path, check=True)
        np.testing.assert_array_equal(np.load(tmp_path / "answer.npy"), wanted)
    null = refbert.load(copied).encode(TEXTS)
    assert (np.abs(null - wanted).max(1) > 1e-4).all()


@pytest.mark.parametrize("student", ["keywords"], indirect=True)
def test_the_cards_snippet_runs_in_the_copied_folder_as_it_is_printed(
    copied, store_directory, environment, monkeypatch
):
    monkeypatch.setattr("jobs.evaluation.model_card.markdown", lambda report, title, pictures: "")
    export = Export(inputs=(), outputs=(), opset=20, tolerance=1e-4, difference=0.0, bytes=1)
    for memory in (None, RefBertConfig.from_pretrained(copied).memory):
        card = model_card({"teacher": {"name": "t"}}, "mine", memory, export, None)
        (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        with embedded_server(store_directory) as url:
            code = WITHOUT_RAY + snippet.replace("http://host:6334", url)
            done = subprocess.run(
                [sys.executable, "-c", code], env=environment, cwd=copied, capture_output=True, text=True, check=False
            )
        assert done.returncode == 0, done.stderr
        assert len(np.fromstring(done.stdout.strip().strip("[]"), sep=" ")) == 48


@pytest.mark.parametrize("student", ["keywords"], indirect=True)
def test_what_cannot_be_read_is_refused_in_one_line(student, copied, store_directory, tmp_path, monkeypatch):
    monkeypatch.setattr("refbert.memory.reader.FIRST_ANSWER_S", 0.5)
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
