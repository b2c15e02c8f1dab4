"""Which memory a given student reads: its folder says so, or the config.yaml of an earlier release beside it."""

import pytest
import yaml

from jobs.memory.student_memory import student_memory_options, student_run
from refbert import RefBertConfig
from refbert.errors import InputError
from vector_store.schema import Manifest

MANIFEST = Manifest(
    encoder="t", fingerprint="f", tokenizer="t", layer=2, text_tokens=16, tokens=16, encoder_dim=48, dim=48,
    bm25_k1=1.2, bm25_b=0.75, bm25_average_tokens=24,
)  # fmt: skip


@pytest.fixture
def theirs(tiny_run, tmp_path):
    """The run that trained the student, and where its config.yaml lies."""
    config = tiny_run(name="theirs", references={"count": 3}, store__collection="theirs", teacher__tokens=24)
    return config, tmp_path / "config.yaml"


def student(folder, **says):
    RefBertConfig(**says).save_pretrained(folder / "student")
    return str(folder / "student")


def test_a_folder_that_says_how_it_reads_is_believed_before_the_config_beside_it(tiny_run, theirs, tmp_path):
    config, beside = theirs
    beside.write_text(yaml.safe_dump(tiny_run(references={"count": 5}).model_dump(mode="json")))
    ours = tiny_run(name="ours")
    read, folder = student_run(ours, student(tmp_path, **student_memory_options(config, MANIFEST)))
    assert folder == tmp_path / "student"
    assert (read.references, read.store.collection) == (config.references, "theirs")
    assert (read.name, read.store.url) == ("ours", ours.store.url)


def test_the_config_beside_a_student_of_an_earlier_release_says_how_it_reads(tiny_run, theirs, tmp_path):
    config, beside = theirs
    beside.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    for says in ({"memory": MANIFEST.model_dump(mode="json")}, {}):
        read, _ = student_run(tiny_run(), student(tmp_path, **says))
        assert (read.references, read.store.collection, read.teacher.tokens) == (config.references, "theirs", 24)


def test_a_student_of_which_nothing_says_how_it_reads_is_refused(tiny_run, tmp_path):
    for says in ({"memory": MANIFEST.model_dump(mode="json")}, {}):
        with pytest.raises(InputError, match=r"an earlier release wrote it; copy the config.yaml"):
            student_run(tiny_run(), student(tmp_path, **says))


def test_a_student_without_memory_says_its_token_budget(theirs, tiny_run, tmp_path):
    says = student_memory_options(theirs[0], None)
    assert says == {"text_tokens": 24}
    ours = tiny_run()
    assert student_run(ours, student(tmp_path, **says)) == (ours, tmp_path / "student")
