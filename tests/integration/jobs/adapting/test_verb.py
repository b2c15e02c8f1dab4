"""jobs/adapt.py from a corpus to a version: filled, adapted and measured; or with new texts read by the version there is."""

import json
import shutil

import numpy as np
import pytest

import refbert
from jobs import adapt as adapt_job
from jobs import distill
from refbert.correction import Correction
from refbert.errors import InputError
from refbert.folder import CORRECTION, WORD_TABLE, load_word_table
from refbert.passages import split_of
from tests.integration.jobs.adapting.memory import ASKED, TEXTS
from tests.integration.jobs.in_process import compute_in_process, without_ray
from vector_store.config import StoreConfig
from vector_store.schema import Parts
from vector_store.store import Store


def test_the_verb_fills_adapts_and_says_what_held_out_texts_gained(
    prepared_home, tiny_run, student_folder, monkeypatch, index_pauses
):
    compute_in_process(monkeypatch)
    config = tiny_run(name="adapted", adapt={"landmarks": 50, "references": {"count": 4}})
    shutil.copytree(student_folder, config.run_directory / "student")
    adapt_job.run(config)
    index_pauses.assert_one()
    report = json.loads((config.run_directory / "adapted.json").read_text())
    held = report["heldout"]
    assert held["alone"] < held["global"]
    assert held["alone"] < held["references"]
    assert report["references"] > 250
    correction = Correction.from_bytes((config.run_directory / "student" / CORRECTION).read_bytes())
    assert (correction.student, correction.version) == (report["student"], report["version"])
    assert report["correction_bytes"] == correction.num_bytes
    with refbert.load(config.run_directory / "student", config.store_directory) as student:
        assert np.isfinite(student.encode(["The film is slow: far too long."])).all()


def test_a_domain_of_a_few_texts_without_a_held_out_one_is_adapted_to_and_an_empty_one_is_refused(
    home, tiny_run, student_folder, store_url, monkeypatch
):
    compute_in_process(monkeypatch)
    without_ray(monkeypatch, store_url)
    config = tiny_run(name="few", adapt={"collection": "few", "references": {"count": 4}})
    shutil.copytree(student_folder, config.run_directory / "student")
    file = config.run_directory / "few.jsonl"
    few = [text for text in TEXTS if split_of(text, 0.05) == "train"][:9]
    corpus = config.corpus.model_copy(
        update={"path": str(file), "label_field": None, "document_field": None, "heldout_fraction": 0.05}
    )
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*few, few[0], few[0]]))
    adapt_job.run(config.model_copy(update={"corpus": corpus}))
    report = json.loads((config.run_directory / "adapted.json").read_text())
    assert (report["references"], report["heldout"]) == (9, {})
    file.write_text(json.dumps({"text": " "}) + "\n")
    with pytest.raises(InputError, match=r"gave 0 training and 0 held-out passages \(1 rows rejected"):
        adapt_job.run(config.model_copy(update={"corpus": corpus}))
    with refbert.load(config.run_directory / "student", store_url) as student:
        assert student.correction.version == report["version"]


def test_new_texts_are_read_by_the_version_there_is_without_a_refit(
    prepared_home, tiny_run, student_folder, monkeypatch
):
    compute_in_process(monkeypatch)
    config = tiny_run(name="adapted", adapt={"landmarks": 50, "references": {"count": 4}})
    shutil.copytree(student_folder, config.run_directory / "student")
    adapt_job.run(config)
    report = (config.run_directory / "adapted.json").read_text()
    more = config.run_directory / "more.jsonl"
    more.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    corpus = config.corpus.model_copy(update={"path": str(more), "label_field": None, "document_field": None})
    adapt_job.run(
        config.model_copy(update={"corpus": corpus, "adapt": config.adapt.model_copy(update={"refit": False})})
    )
    assert (config.run_directory / "adapted.json").read_text() == report
    with refbert.load(config.run_directory / "student", config.store_directory) as student:
        found = student.look_up(ASKED, student.tokenize(ASKED))
        assert {text for texts in found.texts for text in texts} == {None}
        assert np.isfinite(found.residuals).all()
        store = StoreConfig(url=student.source._client.url, collection=config.adapt.collection)
        ids = [student.texts.identifier(text) for text in TEXTS[:20]]
        read = Parts(states=False, vector=True, residual_of=student.correction.reader)
        kept = Store(student.source._client, store).fetch(ids, read)
        said = student.forward(student.tokenize(TEXTS[:20]), None).sentence_embedding.numpy()
        stored = np.isfinite(kept.vectors[:, 0, 0])  # the others are held out
        wanted = (kept.vectors[:, 0] - said)[stored]
        assert len(wanted) > 10
        np.testing.assert_allclose(kept.residuals[stored, 0], wanted, atol=np.abs(wanted).max() / 20)


def test_a_student_with_frozen_words_is_trained_resumed_and_adapted_with_one_table(
    prepared_home, tiny_run, in_process, monkeypatch
):
    student = {
        **tiny_run().student.model_dump(exclude={"reference_mode", "embedding_size"}),
        "reference_mode": "none", "token_embeddings": "words", "embedding_size": 40,
    }  # fmt: skip
    loss = {
        "hidden": 0,
        "relation": 0,
        "contrastive": 0,
        "sentence": 5,
        "similarity": 20,
    }  # of vectors, and of nothing else
    config = tiny_run(
        name="frozen", student=student, references={"criterion": "none", "states": False}, loss=loss,
        store={"collection": "vectors"}, train={**tiny_run().train.model_dump(), "targets": "memory"},
        adapt={"landmarks": 50, "references": {"count": 4}},
    )  # fmt: skip
    distill.run(config)
    folder = config.run_directory / "student"
    table = load_word_table(folder)
    assert table.dim == 40
    (config.run_directory / "manifest.json").unlink()
    shutil.rmtree(folder)
    distill.run(config)  # from the last checkpoint
    assert all(np.array_equal(*parts) for parts in zip(load_word_table(folder), table, strict=True))
    adapt_job.run(config)
    held = json.loads((config.run_directory / "adapted.json").read_text())["heldout"]
    assert held["alone"] < held["references"]
    assert not (folder / WORD_TABLE).exists()
    with refbert.load(folder, config.store_directory) as reader:
        assert reader.texts.manifest.words_dim == 40
        assert np.isfinite(reader.encode(["The film is slow."])).all()
