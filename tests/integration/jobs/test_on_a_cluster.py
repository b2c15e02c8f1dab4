"""Jobs on a cluster whose only copies go away at random moments, for a while and for good (tests/qdrant_cluster.py)."""

import json
import threading
import time
from collections import Counter

import numpy as np
import pytest
import torch

import refbert
from jobs import distill, evaluate
from jobs.corpus.prepared import prepare
from jobs.evaluation.measurements import evaluate_student
from jobs.memory.fill import fill_memory
from jobs.memory.student_memory import check_memory, student_memory_options, student_run
from jobs.run.failures import UNAVAILABLE, exit_code, known_cause
from jobs.sections import ServeConfig
from jobs.service.metrics import Metrics
from jobs.service.student import ServedStudent
from refbert.config import AdaptConfig
from refbert.folder import save_correction, save_student
from refbert.memory import adaptation
from refbert.memory.adaptation import adapt, adapting_student
from refbert.memory.manifest import manifest_of
from refbert.memory.texts import reference_texts
from refbert.student import RefBertModel
from refbert.student_config import RefBertConfig
from refbert.teacher import load_teacher
from tests.qdrant_cluster import Cluster
from vector_store.__main__ import main
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import StoreError, StoreUnavailable
from vector_store.store import Store

TEXTS = [f"the {thing} of {name} is old" for thing in ("kettle", "lamp", "violin") for name in "abcdefghij"]


@pytest.fixture
def cluster(engine_url):
    with Cluster(engine_url, num_nodes=3) as cluster:
        yield cluster


@pytest.fixture
def random(request):
    return np.random.default_rng(request.config.getoption("--chaos-seed"))


@pytest.fixture
def num_ends(is_long):
    """At how many moments a node goes away for good."""
    return 3 if is_long else 1


@pytest.fixture(scope="module")
def teacher(tiny_run):
    return load_teacher(tiny_run().teacher)


class Outages:
    """Kill node 1, which has the only copy of a shard, at some of a method's calls; those while it is away do not count.

    A call that comes while the node starts waits: it could succeed without being counted.
    """

    def __init__(self, cluster, calls, back_after_s=None):
        self.cluster, self.calls, self.back_after_s = cluster, calls, back_after_s
        self.counts, self.timers = Counter(), []
        self.is_away, self.changing = False, threading.Lock()
        cluster.before_call = self

    def __call__(self, method):
        with self.changing:
            if self.is_away:
                return
            self.counts[method] += 1
            if (method, self.counts[method]) not in self.calls:
                return
            self.is_away = True
        self.cluster.kill(1)
        if self.back_after_s is not None:
            self.timers.append(timer := threading.Timer(self.back_after_s, self._back))
            timer.start()

    def _back(self):
        with self.changing:
            self.cluster.start(1)
            self.is_away = False

    def end(self):
        self.cluster.before_call = lambda method: None
        for timer in self.timers:
            timer.join()


def drawn(random, method, most, number=3):
    return {(method, int(call)) for call in 1 + random.choice(most, number, replace=False)}


def store_of(cluster, **options):
    return {"url": cluster.url, "shard_number": 2, "write_deadline_s": 60, "lookup_deadline_ms": 5000, **options}


# ---------------------------------------------------------------- ingest and training


@pytest.mark.timeout(900)
def test_ingest_and_training_go_on_after_their_only_copy_was_away(
    prepared_home, tiny_run, in_process, cluster, random, away_s
):
    config = tiny_run(name="outages", store=store_of(cluster), ingest={"batch": 32}, train__targets="teacher")
    calls = drawn(random, "Upsert", 8) | drawn(random, "QueryBatch", 6)
    outages = Outages(cluster, calls, away_s)
    distill.run(config)
    outages.end()
    assert len(outages.timers) == 6
    with connect(config.store, config.store.url) as client:
        store = Store(client, config.store)
        assert store.count() == prepare(config).counts.train
        assert sum(len(page) for page in store.pages()) == prepare(config).counts.train
    lines = [json.loads(line) for line in (config.run_directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[-1]["store/null"] == 0, "every text was trained with its reference"


@pytest.mark.timeout(900)
def test_ingest_ends_with_one_line_when_its_only_copy_stays_away_and_goes_on_when_it_is_back(
    prepared_home, tiny_run, in_process, cluster, random, num_ends
):
    for call in drawn(random, "Upsert", 8, num_ends):
        options = store_of(cluster, write_deadline_s=1.5, collection=f"ends-{call[1]}")
        config = tiny_run(name="ends", store=options, ingest={"batch": 32})
        url = config.store.url
        outages = Outages(cluster, {call})
        with pytest.raises(StoreUnavailable) as caught:
            fill_memory(config, url)
        outages.end()
        known = known_cause(caught.value)
        assert exit_code(known) == UNAVAILABLE
        assert "\n" not in str(known)
        assert f"{cluster.nodes[1].url} does not answer at all" in str(known)
        assert "the same command again" in str(known)
        cluster.start(1)
        counts = fill_memory(config, url)
        assert counts["read"] == counts["skipped"] + counts["written"] == prepare(config).counts.train
        assert counts["written"] > 0
        with connect(config.store, url) as client:
            assert Store(client, config.store).count() == prepare(config).counts.train


@pytest.mark.timeout(900)
def test_training_goes_on_without_references_when_the_only_copy_stays_away(
    prepared_home, tiny_run, in_process, cluster, random, num_ends
):
    for method, call in drawn(random, "QueryBatch", 4, num_ends):
        config = tiny_run(
            name=f"degrades-{call}", store=store_of(cluster, cache_bytes=1, write_deadline_s=20),
            train__targets="teacher", train__store_patience_s=0.2,
        )  # fmt: skip
        fill_memory(config, config.store.url)
        outages = Outages(cluster, {(method, call)})
        distill.run(config)
        outages.end()
        assert outages.is_away
        assert (config.run_directory / "manifest.json").exists()
        last = json.loads((config.run_directory / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 8
        assert last["store/null"] > 0
        cluster.start(1)


@pytest.mark.timeout(900)
def test_training_that_learns_from_the_memory_ends_without_its_only_copy_and_the_same_command_goes_on(
    prepared_home, tiny_run, in_process, cluster, random, num_ends
):
    for method, call in drawn(random, "QueryBatch", 4, num_ends):
        config = tiny_run(
            name=f"learns-{call}",
            store=store_of(cluster, cache_bytes=1, write_deadline_s=1.5),
            train__store_patience_s=0.2,
        )
        assert config.train.targets == "memory"
        fill_memory(config, config.store.url)
        outages = Outages(cluster, {(method, call)})
        with pytest.raises(StoreUnavailable, match="does not answer at all") as caught:
            distill.run(config)
        outages.end()
        assert exit_code(known_cause(caught.value)) == UNAVAILABLE
        assert not (config.run_directory / "manifest.json").exists()
        cluster.start(1)
        distill.run(config)
        lines = [json.loads(line) for line in (config.run_directory / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, 9))
        assert lines[-1]["store/null"] == 0


# ---------------------------------------------------------------- adapting and serving


@pytest.fixture
def adapted(tiny_run, teacher, cluster, tmp_path, monkeypatch):
    """A memory on the cluster with an untrained student: its options, the student's folder, and how to adapt."""
    monkeypatch.setattr(adaptation, "PAGE", 5)
    torch.manual_seed(0)
    shape = RefBertConfig(
        vocab_size=len(teacher.tokenizer), dim=teacher.dim, reference_mode="none", hidden_size=24, num_hidden_layers=1,
        num_attention_heads=4, intermediate_size=48,
    )  # fmt: skip
    folder = tmp_path / "student"
    save_student(folder, RefBertModel(shape), teacher.tokenizer, text_tokens=16)
    options = AdaptConfig(collection="domain", landmarks=2, references={"count": 4})
    store = StoreConfig(**store_of(cluster, collection="domain"))
    serving = ServeConfig(memory_check_s=1.0)
    config = tiny_run().model_copy(
        update={"adapt": options, "references": options.references, "store": store, "serve": serving}
    )
    student, name = adapting_student(config.references, folder, teacher, batch=16)
    with connect(store, store.url) as client:
        memory = Store(client, store)
        memory.ensure(student.texts.manifest)
        points = []
        for text, (ids, states) in zip(TEXTS, teacher.encode_texts(TEXTS), strict=True):
            row = {"text": text, "source": "s", "document": text, "split": "train"}
            identifier = student.texts.identifier(text)
            points.append(student.texts.point(row, identifier, ids, states.mean(0, dtype=np.float32), None))
        memory.upsert(points)

        def adapt_it(store=memory):
            made = adapt(store, student, name, tmp_path / "scratch", options, 0)
            save_correction(folder, made.correction)
            return made.correction

        yield config, folder, memory, adapt_it, client


def residuals_of(memory, reader):
    return {point.id: point.residuals[reader].tobytes() for page in memory.pages() for point in page}


def test_adapting_goes_on_after_its_only_copy_was_away(adapted, cluster, random, away_s):
    _, _, memory, adapt_it, _ = adapted
    undisturbed = adapt_it()
    wanted = residuals_of(memory, undisturbed.reader)
    memory.drop_residuals(undisturbed.reader)
    outages = Outages(cluster, drawn(random, "UpdateBatch", 6), away_s)
    correction = adapt_it()
    outages.end()
    assert len(outages.timers) == 3
    assert correction.to_bytes() == undisturbed.to_bytes()
    assert residuals_of(memory, correction.reader) == wanted


def test_adapting_without_its_only_copy_ends_and_the_same_command_goes_on(adapted, cluster, random, num_ends):
    config, _, memory, adapt_it, client = adapted
    for call in drawn(random, "UpdateBatch", 6, num_ends):
        outages = Outages(cluster, {call})
        with pytest.raises(StoreUnavailable, match="does not answer at all"):
            adapt_it(Store(client, config.store.model_copy(update={"write_deadline_s": 0.5})))
        outages.end()
        cluster.start(1)
        correction = adapt_it()
        assert len(residuals_of(memory, correction.reader)) == len(TEXTS)
        memory.drop_residuals(correction.reader)


def served(config, folder):
    config, folder = student_run(config, str(folder))
    return ServedStudent(config, folder, torch.device("cpu"), Metrics())


def vectors(student, texts):
    found = [None] * len(texts)
    for batch in student.prepare(texts, [False] * len(texts)):
        for row, result in zip(batch.rows, student.forward(batch), strict=True):
            found[row] = result.vector
    return np.stack(found)


def until(student, state):
    deadline = time.monotonic() + 20
    while student.memory.status.state != state:
        assert time.monotonic() < deadline, student.memory.status
        time.sleep(0.02)


def test_a_service_starts_without_its_memorys_node_and_reads_it_once_it_is_back(adapted, cluster, caplog):
    config, folder, _, adapt_it, _ = adapted
    adapt_it()
    asked = ["the lamp of z is old", "the violin of z is new"]
    with refbert.load(folder) as alone:
        by_the_folder = alone.encode(asked)
    cluster.kill(1)
    cluster.kill(0)
    check_memory(*student_run(config, str(folder)), config.store.url)
    assert "starting without references" in caplog.text
    student = served(config, folder)
    assert student.memory.status.state == "away"
    assert student.memory.reader.source is None
    np.testing.assert_allclose(vectors(student, asked), by_the_folder, atol=1e-4)
    cluster.start(0)
    cluster.start(1)
    until(student, "ok")
    vectors(student, asked)
    assert student.memory.reader.source.counts["live"] == len(asked)
    student.memory.close()


def test_a_service_answers_every_text_while_its_only_copy_comes_and_goes(adapted, cluster, random, away_s):
    config, folder, _, adapt_it, _ = adapted
    adapt_it()
    student = served(config, folder)
    for _ in range(3):
        time.sleep(random.uniform(0, 0.2))
        cluster.kill(1)
        back_at = time.monotonic() + away_s
        while time.monotonic() < back_at:
            assert np.isfinite(vectors(student, [f"asked at {time.monotonic()}"])).all()
        cluster.start(1)
        until(student, "ok")
    student.memory.close()


def test_a_service_answers_every_text_after_its_only_copy_went_for_good(adapted, cluster, random, num_ends):
    config, folder, _, adapt_it, _ = adapted
    adapt_it()
    asked = ["the lamp of z is old", "the violin of z is new"]
    with refbert.load(folder) as alone:
        by_the_folder = alone.encode(asked)
    for call in drawn(random, "QueryBatch", 6, num_ends):
        student = served(config, folder)
        outages = Outages(cluster, {call})
        deadline = time.monotonic() + 20
        while not (outages.is_away and student.memory.status.state == "away"):
            assert time.monotonic() < deadline, student.memory.status
            assert np.isfinite(vectors(student, [f"asked at {time.monotonic()}"])).all()
        outages.end()
        assert student.memory.reader.source.counts["null"] > 0, (
            "the store was taken for one that is away, not for a broken one"
        )
        np.testing.assert_allclose(vectors(student, asked), by_the_folder, atol=1e-4)
        student.memory.close()
        cluster.start(1)


def test_a_service_whose_student_reads_states_starts_with_null_answers_too(tiny_run, teacher, cluster, tmp_path):
    config = tiny_run(store=store_of(cluster), serve={"memory_check_s": 1.0})
    manifest = manifest_of(teacher, config.references)
    folder = tmp_path / "student"
    torch.manual_seed(0)
    shape = RefBertConfig(
        vocab_size=len(teacher.tokenizer), dim=teacher.dim, hidden_size=24, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=48, **student_memory_options(config, manifest),
    )  # fmt: skip
    model = RefBertModel(shape)
    save_student(folder, model, teacher.tokenizer, **student_memory_options(config, manifest))
    texts = reference_texts(teacher, manifest, config.references)
    with connect(config.store, config.store.url) as client:
        store = Store(client, config.store)
        store.ensure(manifest)
        points = []
        for text, (ids, states) in zip(TEXTS, teacher.encode_texts(TEXTS), strict=True):
            row = {"text": text, "source": "s", "document": text, "split": "train"}
            points.append(texts.point(row, texts.identifier(text), ids, states.mean(0, dtype=np.float32), states))
        store.upsert(points)
    cluster.kill(1)
    student = served(config, folder)
    assert student.memory.status.state == "away"
    assert "shard" in student.memory.status.reason
    null = vectors(student, ["the lamp of z is old"])
    assert np.isfinite(null).all()
    cluster.start(1)
    until(student, "ok")
    assert np.abs(vectors(student, ["the lamp of z is old"]) - null).max() > 1e-6
    student.memory.close()


# ---------------------------------------------------------------- keys


def test_evaluating_serving_and_info_need_a_key_that_may_only_read(
    prepared_home, tiny_run, in_process, engine_url, monkeypatch, capsys
):
    with Cluster(engine_url, api_key="writes", read_only_key="reads") as cluster:
        config = tiny_run(
            name="keys",
            store={"url": cluster.url, "lookup_deadline_ms": 5000},
            train__steps=2,
            serve={"memory_check_s": 1.0},
        )
        monkeypatch.setenv("QDRANT_API_KEY", "writes")
        distill.run(config)
        monkeypatch.setenv("QDRANT_API_KEY", "reads")
        # Ray's workers may have been started with another key, by a test before.
        trained = json.loads((config.run_directory / "manifest.json").read_text())["training"]
        monkeypatch.setattr(evaluate, "measure", lambda job: {**list(evaluate_student(job))[-1], "distill": trained})
        evaluate.run(config)
        report = json.loads((config.run_directory / "report.json").read_text())
        assert report["fidelity"]["nearest"]["sentence_cosine"] != report["fidelity"]["null"]["sentence_cosine"]
        student = served(config, config.run_directory / "student")
        assert student.memory.status.state == "ok"
        assert np.isfinite(vectors(student, ["a text"])).all()
        assert student.memory.reader.source.counts["live"] == 1
        student.memory.close()
        assert main(["info", cluster.url]) == 0
        assert f"{prepare(config).counts.train} points" in capsys.readouterr().out
        with pytest.raises(StoreError, match="this key may not write"):
            fill_memory(config, config.store.url)
