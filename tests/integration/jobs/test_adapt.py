"""A student's answers are adapted to what is stored: closer to its teacher, in whole versions, whatever happens meanwhile."""

import base64
import json
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from qdrant_client import grpc as api

import refbert
from jobs import adapt as adapt_job
from jobs import distill
from jobs.config import AdaptConfig, ServeConfig
from jobs.evaluation.explanation_report import print_explanation, write_explanation
from jobs.memory import adaptation
from jobs.memory.adaptation import adapt
from jobs.memory.student_memory import adapting_student, student_run
from jobs.service import memory_watch
from jobs.service.errors import NonFiniteAnswer, kind_of, name_of
from jobs.service.metrics import Metrics
from jobs.service.schema import Explanation
from jobs.service.student import ServedStudent
from refbert.corpus import split_of
from refbert.correction import Correction
from refbert.errors import InputError
from refbert.folder import CORRECTION, WORD_TABLE, load_word_table, save_correction, save_student
from refbert.memory import replica
from refbert.memory.explanation import explained
from refbert.memory.version import current_version, roll_back
from refbert.student import RefBertForSequenceClassification, RefBertModel
from refbert.student_config import RefBertConfig
from refbert.teacher import load_teacher
from tests.integration.jobs.in_process import compute_in_process, without_ray
from tests.integration.jobs.untaught import save_untaught_student
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import CollectionMismatch, StoreUnavailable
from vector_store.retriever import Retriever
from vector_store.schema import Parts
from vector_store.server.process import embedded_server
from vector_store.store import Store
from vector_store.versions import promote

THINGS = ("kettle", "lamp", "bicycle", "violin", "garden", "river", "engine", "letter")
TEXTS = [f"the {thing} of {name} is {how}" for thing in THINGS for name in ("Ann", "Bob", "Cleo") for how in (
    "old", "new", "broken", "on the table", "what we talked about", "lost in the rain",
)]  # fmt: skip
ASKED = [f"the {thing} of Dan is {how}" for thing in THINGS for how in ("old", "broken", "lost in the rain")]


@pytest.fixture(scope="module")
def store_url(tmp_path_factory):
    with embedded_server(tmp_path_factory.mktemp("adapt-store")) as url:
        yield url


@pytest.fixture(scope="module")
def teacher(tiny_run):
    return load_teacher(tiny_run().teacher)


@pytest.fixture
def student_folder(teacher, tmp_path):
    """A student that has learned nothing, without a word table."""
    save_untaught_student(tmp_path / "student", teacher)
    return tmp_path / "student"


class Memory:
    """An adapted memory in the making: its options, its store, and the student whose answers it corrects."""

    def __init__(self, config, client, folder, teacher):
        self.options: AdaptConfig = config.adapt
        self.config = config
        self.client, self.folder, self.teacher = client, folder, teacher
        self.store = Store(client, config.store)
        self.student, self.name = adapting_student(config, folder, teacher, batch=16)
        self.store.ensure(self.student.texts.manifest)
        self.scratch = folder.parent / "scratch"

    def add(self, texts):
        points = []
        for text, (ids, states) in zip(texts, self.teacher.encode_texts(texts), strict=True):
            row = {"text": text, "source": "s", "document": text, "split": "train"}
            made = self.student.texts
            points.append(made.point(row, made.identifier(text), ids, states.mean(0, dtype=np.float32), None))
        self.store.upsert(points)

    def adapt(self):
        adapted = adapt(self.store, self.student, self.name, self.scratch, self.options, 0)
        save_correction(self.folder, adapted.correction)
        return adapted

    def cosine(self, texts=ASKED, references=None):
        """How near the answers of the student's folder are to the teacher's, in the mean."""
        wanted = np.stack([states.mean(0, dtype=np.float32) for _, states in self.teacher.encode_texts(texts)])
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        with refbert.load(self.folder, references) as student:
            return float((student.encode(texts) * wanted).sum(1).mean())

    def state(self):
        version = current_version(self.client, self.config.store, self.name)
        points = [point for page in self.store.pages() for point in page]
        residuals = {point.id: point.residuals[version.correction.reader].tobytes() for point in points}
        return version.correction.to_bytes(), residuals


@pytest.fixture
def memory(tiny_run, store_url, student_folder, teacher, request, monkeypatch):
    monkeypatch.setattr(adaptation, "PAGE", 40)
    options = AdaptConfig(collection=f"c{abs(hash(request.node.name))}", landmarks=2, references={"count": 4})
    store = StoreConfig(url=store_url, collection=options.collection, lookup_deadline_ms=5000)
    config = tiny_run().model_copy(update={"adapt": options, "references": options.references, "store": store})
    with connect(store, store_url) as client:
        yield Memory(config, client, student_folder, teacher)


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
    memory.student, memory.name = adapting_student(memory.config, memory.folder, memory.teacher, batch=16)


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
    memory.student, memory.name = adapting_student(memory.config, memory.folder, memory.teacher, batch=16)
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


# ---------------------------------------------------------------- who is adapted


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
    memory.student, memory.name = adapting_student(memory.config, memory.folder, teacher, batch=16)
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
            adapting_student(memory.config, tmp_path / name, teacher, batch=16)
    narrow = memory.config.adapt.references.model_copy(update={"words_dim": 5})
    with pytest.raises(InputError, match="words_dim asks for 5; leave words_dim out"):
        adapting_student(memory.config.model_copy(update={"references": narrow}), memory.folder, teacher, batch=16)


@pytest.mark.parametrize("rows_of_a_graph", [10**9, 10])
def test_a_replica_finds_what_the_store_finds_and_does_not_ask_it(memory, store_url, monkeypatch, rows_of_a_graph):
    monkeypatch.setattr(replica, "HNSW_ROWS", rows_of_a_graph)
    memory.add(TEXTS)
    memory.adapt()
    texts = [*ASKED, *TEXTS[:8]]  # the last are stored: they read what others say
    with (
        refbert.load(memory.folder, store_url) as asks_store,
        refbert.load(memory.folder, store_url, replica=True) as copy,
    ):
        wanted, found = (reader.look_up(texts, reader.tokenize(texts)) for reader in (asks_store, copy))
        for row, (ids, others) in enumerate(zip(wanted.ids, found.ids, strict=True)):
            assert len(others) == len(set(others)) == 4
            assert asks_store.texts.identifier(texts[row]) not in others
            np.testing.assert_allclose(found.scores[row], wanted.scores[row], atol=2e-3)
            assert ids == others or len(set(np.round(wanted.scores[row], 2))) < 5  # equal scores have no order
        same = [row for row, ids in enumerate(wanted.ids) if ids == found.ids[row]]
        assert len(same) > 5
        for name in ("vectors", "residuals", "token_ids", "ranks"):
            np.testing.assert_allclose(getattr(found, name)[same], getattr(wanted, name)[same], atol=2e-3)
        monkeypatch.setattr(type(asks_store.source._client), "ask", lambda *_: pytest.fail("asked the store"))
        answered = asks_store.forward(asks_store.tokenize(texts), wanted).sentence_embedding.numpy()
        answered /= np.linalg.norm(answered, axis=1, keepdims=True)
        np.testing.assert_allclose(copy.encode(texts)[same], answered[same], atol=2e-3)


def test_a_memory_that_is_not_asked_by_words_alone_has_no_replica(memory, store_url):
    memory.add(TEXTS[:20])
    by_keywords = memory.options.references.model_copy(update={"criterion": "keywords"})
    memory.config = memory.config.model_copy(update={"references": by_keywords})
    memory.student, memory.name = adapting_student(memory.config, memory.folder, memory.teacher, batch=16)
    memory.adapt()
    with pytest.raises(
        InputError, match=r"replica finds references by criterion dense.*asked by 'keywords'.*replica_rows=0"
    ):
        refbert.load(memory.folder, store_url, replica=True)


# ---------------------------------------------------------------- the service


@pytest.fixture
def served(memory):
    """Serve the memory's student as a replica does, without Ray; each call answers texts."""
    memory.add(TEXTS[:70])
    memory.adapt()
    config = memory.config.model_copy(update={"serve": ServeConfig(memory_check_s=0.05)})
    config, folder = student_run(config, str(memory.folder))
    student = ServedStudent(config, folder, torch.device("cpu"), Metrics())
    yield student
    student.memory.close()


def answers(student, texts, explain=False):
    found = [None] * len(texts)
    for batch in student.prepare(texts, [explain] * len(texts)):
        for row, result in zip(batch.rows, student.forward(batch), strict=True):
            found[row] = result
    return found


def vectors(student, texts):
    return np.stack([result.vector for result in answers(student, texts)])


def test_a_service_follows_an_adaptation_under_load_without_a_failed_answer(served, memory, store_url):
    before = vectors(served, ASKED)
    stop, failures, count = threading.Event(), [], []

    def ask():
        while not stop.is_set():
            try:
                assert np.isfinite(vectors(served, ASKED[:8])).all()
                count.append(1)
            except BaseException as error:
                failures.append(error)
                raise

    asking = threading.Thread(target=ask)
    asking.start()
    memory.add(TEXTS[70:])
    version = memory.adapt().correction.version
    deadline = time.monotonic() + 20
    while served.memory.reader.correction.version != version and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    asking.join()
    assert not failures
    assert len(count) > 3
    assert served.memory.status.state == "ok"
    after = vectors(served, ASKED)
    with refbert.load(memory.folder, store_url) as reader:
        np.testing.assert_allclose(after, reader.encode(ASKED), atol=1e-4)
    assert float((before * after).sum(1).mean()) < 0.9999


def test_a_services_own_copy_of_its_memory_is_taken_anew_when_the_memory_changes(memory, monkeypatch):
    monkeypatch.setattr(memory_watch, "RECOPY_S", 0.0)
    memory.add(TEXTS[:40])
    memory.adapt()
    config = memory.config.model_copy(update={"serve": ServeConfig(memory_check_s=60, replica_rows=len(TEXTS) - 1)})
    student = ServedStudent(*student_run(config, str(memory.folder)), torch.device("cpu"), Metrics())
    try:
        assert len(student.memory.reader.source) == 40
        asked = answers(student, [TEXTS[0], ASKED[0]], explain=True)
        assert [{read.rung for read in result.references} for result in asked] == [{"own"}, {"live"}]
        memory.add(TEXTS[40:60])  # not read by the version that there is
        student.memory.check()
        assert (len(student.memory.reader.source), student.memory.reader.source.num_unread) == (60, 20)
        assert np.isfinite(vectors(student, ASKED)).all()
        memory.store.delete(("document", TEXTS[0]))
        version = memory.adapt().correction.version
        student.memory.check()
        assert (len(student.memory.reader.source), student.memory.reader.source.num_unread) == (59, 0)
        assert student.memory.reader.correction.version == version
        memory.add(TEXTS)  # more than it may copy
        memory.adapt()
        student.memory.check()
        assert isinstance(student.memory.reader.source, Retriever)
    finally:
        student.memory.close()


def test_a_stored_text_is_answered_with_its_teachers_own_vector(served, memory, teacher):
    (result,) = answers(served, [TEXTS[0]], explain=True)
    own = teacher.encode_texts([TEXTS[0]])[0][1].mean(0, dtype=np.float32)
    assert float(result.vector @ own) / np.linalg.norm(own) > 0.9999
    assert result.nearness == 1.0
    assert {read.rung for read in result.references} == {"own"}
    (other,) = answers(served, ["nothing like it was ever stored"], explain=True)
    assert other.nearness < 1
    assert {read.rung for read in other.references} == {"live"}
    assert 'refbert_references_total{rung="own",step="own"} 1.0' in served.metrics.text()
    assert "refbert_nearness_count 2.0" in served.metrics.text()


def test_a_service_explains_what_each_reference_changed(served):
    explanation = served.explain(ASKED[0])
    read = explanation["references"]
    assert len(read) == 4
    assert all(one["text"] and one["weight"] is not None for one in read)
    strongest = max(read, key=lambda one: abs(one["weight"]))
    assert strongest["without"]["cosine_distance"] > 0
    assert explanation["without_references"]["cosine_distance"] > 0
    assert 0 < explanation["correction"]["nearness"] <= 1
    timing = {"lookup": 0, "student": 0, "queue": 0}
    answer = Explanation.model_validate(explanation | {"model": "m", "timing_ms": timing})
    assert answer.references[0].weight == read[0]["weight"]


def test_an_explanation_is_printed_with_weights_and_nearness(served, capsys, tmp_path):
    explanation = explained(served.memory.reader, ASKED[0])
    print_explanation(explanation)
    printed = capsys.readouterr().out
    assert "weight" in printed
    assert f"the nearest is at {explanation['correction']['nearness']:.3f}" in printed
    assert explanation["references"][0]["text"] in printed
    summary = write_explanation(explanation, tmp_path, "explanation")
    assert summary["cosine_distance"] == explanation["without_references"]["cosine_distance"]


def test_without_its_memory_a_service_answers_by_the_folders_copy(served, memory, monkeypatch):
    memory.store.delete_collection()
    deadline = time.monotonic() + 20
    while served.memory.status.state == "ok" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.memory.status.state == "refused"
    assert "corrects no answers of student" in served.memory.status.reason or "exist" in served.memory.status.reason
    with refbert.load(memory.folder) as alone:
        np.testing.assert_allclose(vectors(served, ASKED), alone.encode(ASKED), atol=1e-4)


# ---------------------------------------------------------------- the verb


def test_the_verb_fills_adapts_and_says_what_held_out_texts_gained(
    prepared_home, tiny_run, student_folder, monkeypatch
):
    compute_in_process(monkeypatch)
    config = tiny_run(name="adapted", adapt={"landmarks": 50, "references": {"count": 4}})
    shutil.copytree(student_folder, config.run_directory / "student")
    adapt_job.run(config)
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
    config = tiny_run(
        name="frozen", student=student, references={"criterion": "none"},
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


def test_an_answer_that_is_not_finite_is_an_error_by_name_and_no_vector(served, monkeypatch):
    part = served.memory.reader.correction.part
    monkeypatch.setattr(part, "bias", torch.full_like(part.bias, torch.nan))
    with pytest.raises(NonFiniteAnswer, match=r"answered with numbers that are not finite; .* deploy another"):
        answers(served, ["a text that is not stored"])
    assert kind_of(NonFiniteAnswer("x")).status == 500
    assert name_of(NonFiniteAnswer("x")) == "NonFiniteAnswer"


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
        set_residuals(self, *given)
        promote(memory.client, live, live.collection, second.config.collection)

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
