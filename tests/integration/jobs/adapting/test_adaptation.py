"""A student's answers are adapted to what is stored: closer to its teacher, in whole versions, whatever happens meanwhile."""

import base64
from dataclasses import replace

import numpy as np
import pytest
import torch
from qdrant_client import grpc as api

import refbert
from refbert.errors import InputError
from refbert.folder import CORRECTION, WORD_TABLE, save_student
from refbert.memory import adaptation
from refbert.memory.adaptation import adapting_student, student_pages
from refbert.memory.version import current_version, roll_back
from refbert.student import RefBertForSequenceClassification, RefBertModel
from refbert.student_config import RefBertConfig
from tests.integration.jobs.adapting.memory import ASKED, TEXTS
from vector_store.errors import CollectionMismatch, StoreUnavailable
from vector_store.store import Store
from vector_store.versions import promote


def test_stored_texts_bring_answers_closer_without_training_and_without_a_store(memory, store_url):
    alone = memory.cosine()
    memory.add(TEXTS)
    adapted = memory.adapt()
    by_map, by_references = memory.cosine(), memory.cosine(references=store_url)
    assert adapted.references == len(TEXTS)
    assert alone + 0.1 < by_map < by_references
    assert adapted.alone < adapted.kriging.before < adapted.kriging.after
    assert not memory.scratch.exists()
    assert (memory.folder / WORD_TABLE).exists()


def test_a_student_of_a_memory_of_an_earlier_format_is_adapted_and_read_too(memory, store_url):
    config = RefBertConfig.from_pretrained(memory.folder)
    config.update({"memory": {"format_version": 2, "dense_index": False}})
    config.save_pretrained(memory.folder)
    memory.add(TEXTS)
    memory.adapt()
    assert memory.cosine(references=store_url) > 0.5


def test_a_text_that_is_stored_reads_what_its_neighbours_say_never_itself(memory, store_url):
    memory.add(TEXTS)
    memory.adapt()
    with refbert.load(memory.folder, store_url) as student:
        tokens = student.tokenize(TEXTS[:8])
        found = student.look_up(TEXTS[:8], tokens)
        _, corrected = student.answer(tokens, found)
    own = [student.texts.identifier(text) for text in TEXTS[:8]]
    assert all(len(ids) == 4 and name not in ids for name, ids in zip(own, found.ids, strict=True))
    assert found.states.shape[2] == 0
    assert (corrected.nearness > 0.5).all()


@pytest.mark.parametrize("number", [1, 3, 10])
def test_few_texts_make_no_answer_worse_than_the_students_own(memory, store_url, number):
    alone = memory.cosine()
    memory.add(TEXTS[:: len(TEXTS) // number][:number])
    memory.adapt()
    assert memory.cosine(references=store_url) > alone - 1e-3


def test_texts_that_are_all_alike_and_texts_without_words_can_be_adapted_to(memory, store_url):
    memory.add(["the kettle", "The Kettle !", "the kettle .", "[CLS]", "[SEP] [SEP]"])
    memory.adapt()
    assert np.isfinite(memory.cosine(["the kettle", "[PAD]"], references=store_url))


def test_more_texts_are_a_new_version_and_readers_of_the_one_before_go_on(memory, store_url):
    memory.add(TEXTS[:70])
    first = memory.adapt()
    with refbert.load(memory.folder, store_url) as before:
        said = before.encode(ASKED)
        memory.add(TEXTS[70:])
        second = memory.adapt()
        assert first.correction.version != second.correction.version
        still = before.encode(ASKED)  # its references may be new ones, which it has no residual of
        assert float((said * still).sum(1).mean()) > 0.98
    assert (
        current_version(memory.client, memory.config.store, memory.name).correction.version == second.correction.version
    )
    readers = {name for page in memory.store.pages() for point in page for name in point.residuals}
    assert readers == {first.correction.reader, second.correction.reader}

    memory.add(["a third version comes when something is stored"])
    third = memory.adapt()
    readers = {name for page in memory.store.pages() for point in page for name in point.residuals}
    assert readers == {second.correction.reader, third.correction.reader}
    assert roll_back(memory.store, memory.name) == second.correction.version
    assert (
        current_version(memory.client, memory.config.store, memory.name).correction.version == second.correction.version
    )


def test_the_version_before_stays_where_the_same_one_is_written_again(memory):
    memory.add(TEXTS[:70])
    first = memory.adapt().correction.version
    memory.add(TEXTS[70:])
    second = memory.adapt().correction.version
    assert memory.adapt().correction.version == second, "nothing was stored in between"
    assert roll_back(memory.store, memory.name) == first
    assert memory.adapt().correction.version == second, "after a rollback, too"
    assert roll_back(memory.store, memory.name) == first


def test_killed_in_the_middle_three_times_it_ends_as_an_undisturbed_one(memory, monkeypatch):
    memory.add(TEXTS)
    memory.adapt()
    undisturbed = memory.state()
    memory.store.delete_collection()
    memory.store.ensure(memory.student.texts.manifest)
    memory.add(TEXTS)

    class KilledError(Exception): ...

    computed = []
    said, write = adaptation.said_without_references, Store.set_residuals

    def dies_at(number, function):
        calls = []

        def dying(*arguments, **options):
            calls.append(arguments)
            if len(calls) == number:
                raise KilledError
            return function(*arguments, **options)

        return dying

    def counting(student, texts):
        computed.append(len(texts))
        return said(student, texts)

    for where, dying in (
        ((adaptation, "said_without_references"), dies_at(3, counting)),
        ((Store, "set_residuals"), dies_at(2, write)),
        ((adaptation, "choose_kriging"), dies_at(1, adaptation.choose_kriging)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(adaptation, "said_without_references", counting)
            patch.setattr(*where, dying)
            with pytest.raises(KilledError):
                memory.adapt()
        with pytest.raises(CollectionMismatch, match="corrects no answers of student"):
            current_version(memory.client, memory.config.store, memory.name)
    memory.adapt()
    assert sum(computed) == len(TEXTS), "a page that is on disk is not computed again"
    assert memory.state() == undisturbed


def test_a_text_that_is_deleted_meanwhile_is_no_reason_to_end(memory, monkeypatch):
    memory.add(TEXTS)
    fit = adaptation.fit_global_part

    def deleting(*arguments):
        memory.store.delete(("document", TEXTS[3]))
        return fit(*arguments)

    monkeypatch.setattr(adaptation, "fit_global_part", deleting)
    memory.adapt()
    assert len(memory.state()[1]) == len(TEXTS) - 1


@pytest.mark.parametrize("who", ["teacher", "student", "both", "zeros"])
def test_vectors_that_are_all_the_same_can_be_adapted_to(memory, store_url, who):
    memory.add(TEXTS[:40])
    if who != "teacher":
        silenced(memory)
    if who != "student":
        constant = np.full(memory.teacher.dim, 0.0 if who == "zeros" else 0.7, np.float32)
        points = [replace(point, vector=constant) for page in memory.store.pages() for point in page]
        memory.store.upsert(points)
    memory.adapt()
    with refbert.load(memory.folder, store_url) as student:
        said = student.encode(ASKED)
    assert np.isfinite(said).all()
    if who in ("teacher", "both"):  # what every stored text says is said of any other
        assert float(said.sum(1).min()) / memory.teacher.dim**0.5 > 0.95


def silenced(memory):
    """Let the student say the same of every text: nothing."""
    student = RefBertModel.from_pretrained(memory.folder)
    with torch.no_grad():
        for parameter in student.projection.parameters():
            parameter.zero_()
    student.save_pretrained(memory.folder)
    memory.student, memory.name = adapting_student(memory.config.references, memory.folder, memory.teacher, batch=16)


def test_a_damaged_vector_ends_an_adaptation_in_one_line_and_the_version_before_is_read(memory, store_url):
    memory.add(TEXTS)
    before = memory.adapt().correction.version
    asked = memory.cosine(references=store_url)
    victim = memory.student.texts.identifier(TEXTS[7])
    request = api.SetPayloadPoints(collection_name=memory.options.collection, wait=True)
    request.points_selector.points.ids.add().uuid = victim
    packed = np.float16("nan").tobytes() + bytes(memory.teacher.dim)  # a divisor that is none
    request.payload["vector"].string_value = base64.b64encode(packed).decode()
    memory.client.call(memory.client.points.SetPayload, request, 10)
    with pytest.raises(InputError, match=rf"teacher vectors of 1 of \d+ texts .* {victim} hold NaN .*delete these"):
        memory.adapt()
    assert current_version(memory.client, memory.config.store, memory.name).correction.version == before
    assert memory.cosine(references=store_url) == pytest.approx(asked, abs=0.02)
    memory.store.delete(("document", TEXTS[7]))
    assert memory.adapt().correction.version != before


def test_a_student_that_answers_beyond_all_bounds_is_not_adapted(memory):
    memory.add(TEXTS[:40])
    student = RefBertModel.from_pretrained(memory.folder)
    with torch.no_grad():
        student.projection.bias.fill_(1e6)  # finite, and no weight that is refused when it is loaded
    student.save_pretrained(memory.folder)
    memory.student, memory.name = adapting_student(memory.config.references, memory.folder, memory.teacher, batch=16)
    with pytest.raises(InputError, match=r"the student answers 40 of 40 texts .* numbers beyond 65504; train it again"):
        memory.adapt()
    with pytest.raises(CollectionMismatch, match="corrects no answers"):
        current_version(memory.client, memory.config.store, memory.name)


def test_a_memory_of_another_teacher_is_refused_and_left_as_it_is(memory):
    memory.add(TEXTS[:40])
    other = memory.student.texts.manifest.model_copy(update={"fingerprint": "f" * 32, "encoder": "another"})
    with pytest.raises(CollectionMismatch, match="fingerprint"):
        memory.store.ensure(other)
    memory.adapt()
    with pytest.raises(CollectionMismatch, match="fingerprint"):
        memory.store.require(other)


def test_an_empty_memory_is_refused_in_one_line(memory):
    with pytest.raises(InputError, match="holds no references, so there is nothing to adapt to"):
        memory.adapt()


def test_a_store_that_goes_away_leaves_the_version_before_and_what_was_computed(memory, monkeypatch):
    memory.add(TEXTS)
    before = memory.adapt().correction.version
    memory.add(["one more"])

    def away(*_):
        raise StoreUnavailable("the store is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "set_residuals", away)
        with pytest.raises(StoreUnavailable):
            memory.adapt()
    assert current_version(memory.client, memory.config.store, memory.name).correction.version == before
    assert len(list(memory.scratch.glob("*.npz"))) == 4
    assert memory.adapt().correction.version != before


def test_a_student_that_changed_since_is_refused_with_its_old_correction(memory, teacher, store_url):
    memory.add(TEXTS)
    memory.adapt()
    weights = memory.folder / "model.safetensors"
    retrained = RefBertModel.from_pretrained(memory.folder)
    with torch.no_grad():
        retrained.projection.bias += 1
    retrained.save_pretrained(memory.folder)
    assert weights.exists()
    for references in (None, store_url):
        with pytest.raises(InputError, match=r"its weights changed since; adapt a memory to it .* or delete"):
            refbert.load(memory.folder, references)
    (memory.folder / CORRECTION).unlink()
    memory.student, memory.name = adapting_student(memory.config.references, memory.folder, teacher, batch=16)
    memory.adapt()
    assert memory.cosine(references=store_url) > 0.5


def test_a_memory_that_was_not_adapted_to_the_student_is_refused_in_one_line(memory, store_url):
    memory.add(TEXTS)
    correction = memory.adapt().correction
    memory.store.forget(f"correction_{memory.name}")
    with pytest.raises(CollectionMismatch, match=r"corrects no answers of student .*`python jobs/adapt.py`"):
        refbert.load(memory.folder, store_url)
    (memory.folder / CORRECTION).write_bytes(correction.to_bytes()[:-9])
    with pytest.raises(InputError, match="correction cannot be read"):
        refbert.load(memory.folder)


def test_students_that_cannot_be_adapted_are_refused_in_one_line(memory, teacher, tmp_path):
    shape = RefBertConfig.from_pretrained(memory.folder)
    reads = RefBertConfig(**{**shape.to_dict(), "reference_mode": "concat"})
    other = RefBertConfig(**{**shape.to_dict(), "dim": shape.dim + 1})
    for name, model, line in (
        (
            "head",
            RefBertForSequenceClassification(shape),
            "classifies, and what a memory corrects are sentence vectors",
        ),
        ("reads", RefBertModel(reads), "reads the token states of its references"),
        ("other", RefBertModel(other), "is no student of"),
    ):
        save_student(tmp_path / name, model, teacher.tokenizer, text_tokens=16)
        with pytest.raises(InputError, match=line):
            adapting_student(memory.config.references, tmp_path / name, teacher, batch=16)
    narrow = memory.config.adapt.references.model_copy(update={"words_dim": 5})
    with pytest.raises(InputError, match="words_dim asks for 5; leave words_dim out"):
        adapting_student(narrow, memory.folder, teacher, batch=16)


def test_an_adaptation_during_a_promotion_is_one_version_of_one_collection(memory, monkeypatch):
    memory.add(TEXTS)
    manifest, name = memory.student.texts.manifest, memory.store.config.collection
    second = Store(memory.client, memory.config.store.model_copy(update={"collection": f"{name}-2"}))
    second.ensure(manifest)
    live = memory.config.store.model_copy(update={"collection": f"live-{name}"})
    promote(memory.client, live, live.collection, name)
    memory.store = Store(memory.client, live)
    set_residuals = Store.set_residuals

    def set_and_switch(self, *given):
        num_set = set_residuals(self, *given)
        promote(memory.client, live, live.collection, second.config.collection)
        return num_set

    monkeypatch.setattr(Store, "set_residuals", set_and_switch)
    adapted = memory.adapt()
    assert Store(memory.client, live).config.collection == f"{name}-2"
    assert adapted.references == len(TEXTS)
    version = current_version(memory.client, memory.config.store, memory.name)
    assert version.correction.to_bytes() == adapted.correction.to_bytes()
    points = [point for page in memory.store.pages() for point in page]
    assert len(points) == len(TEXTS)
    assert all(version.correction.reader in point.residuals for point in points)
    with pytest.raises(CollectionMismatch, match="corrects no answers"):
        current_version(memory.client, live, memory.name)
    assert second.names() == []


def test_what_a_killed_adaptation_has_of_a_student_is_not_taken_for_another_students(memory):
    """The folder may hold another student by the time the same command is given again."""
    memory.add(TEXTS)
    memory.scratch.mkdir()
    before = list(student_pages(memory.store, memory.student, "before", memory.scratch))
    with torch.no_grad():
        for weight in memory.student.model.parameters():
            weight.mul_(0.5)
    after = list(student_pages(memory.store, memory.student, "after", memory.scratch))
    assert [page.ids for page in after] == [page.ids for page in before]
    said = [[np.load(page.file)["student"] for page in pages] for pages in (before, after)]
    assert not np.allclose(np.concatenate(said[0]), np.concatenate(said[1]))
