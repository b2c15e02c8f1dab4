"""Filling the memory on real Ray and the real engine: complete, once, resumable, and refusing what does not belong."""

import json
import os
import re
import shutil
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import ray

from jobs import ingest
from jobs.config import RunConfig
from jobs.corpus.prepared import PreparedCorpus, prepare
from jobs.memory import fill
from jobs.memory.fill import fill_memory, lacks_any, stored_projection
from jobs.memory.load_progress import LOAD, is_filled, load_progress
from jobs.memory.store import running_store
from jobs.run.attempts import Attempts
from refbert.errors import InputError, UnavailableError
from refbert.memory.manifest import manifest_of
from refbert.memory.texts import reference_id
from refbert.teacher import load_teacher
from tests.integration.jobs.in_process import die_at
from vector_store.client import connect
from vector_store.errors import CollectionMismatch, StoreUnavailable
from vector_store.store import Store

pytestmark = pytest.mark.usefixtures("ray_cluster", "home")


class Filled(NamedTuple):
    """A memory that was filled once, for every test that leaves it as it is."""

    config: RunConfig
    corpus: PreparedCorpus
    counts: dict[str, int]
    url: str


@pytest.fixture(scope="module")
def filled(ray_cluster, prepared_corpora, tmp_path_factory, tiny_run) -> Iterator[Filled]:
    home = tmp_path_factory.mktemp("filled-home")
    shutil.copytree(prepared_corpora, home / "corpora")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFBERT_HOME", str(home))
        config = tiny_run(ingest={"batch": 32})
        corpus = prepare(config)
        with running_store(config) as url:
            yield Filled(config, corpus, fill_memory(config, url, corpus), url)


def test_every_training_passage_is_stored_with_its_teachers_states(filled):
    config, corpus, counts, url = filled
    assert corpus.counts.train + corpus.counts.heldout == 400
    assert counts == {"read": corpus.counts.train, "skipped": 0, "duplicate": 0, "rejected": 0} | {
        "written": corpus.counts.train
    }
    teacher = load_teacher(config.teacher)
    texts = corpus.table("train")["text"].to_pylist()[:20]
    with connect(config.store, url) as client:
        found = Store(client, config.store).fetch([reference_id(teacher.fingerprint, text) for text in texts])
    for row, (ids, states) in enumerate(teacher.encode_texts(texts)):
        assert found.mask[row].sum() == len(ids)
        assert np.array_equal(found.token_ids[row, : len(ids)], ids)
        np.testing.assert_allclose(found.states[row, : len(ids)], states, atol=5e-3)


def test_a_corpus_is_recognised_by_its_content_and_not_by_file_times(tiny_run, tmp_path):
    """What a checkpoint compares: the times of files change with every copy and every mount."""
    file = tmp_path / "corpus.txt"
    texts = [f"a real sentence, number {number}" for number in range(60)]
    contents = []
    for written in (texts, texts, texts[::-1]):
        file.write_text("\n".join(written))
        os.utime(file, (len(contents), len(contents)))
        contents.append(prepare(tiny_run(corpus={"path": str(file), "heldout_fraction": 0.2})).content)
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.usefixtures("in_process")
def test_every_row_is_counted_and_rejected_ones_are_listed_with_their_reason(tiny_run, tmp_path):
    more = " with many more words than any other text of this corpus has in it"
    good = [f'{{"text": "a real sentence, number {number}{more * (number >= 50)}"}}' for number in range(60)]
    repeated = ['{"text": "a real  sentence, number 3"}'] * 200
    bad = ['{"text": 5}', "not json"]
    (tmp_path / "corpus.jsonl").write_text("\n".join([*good, *repeated, *bad]))
    # The store's own limit refuses the long ones, which the encoder takes.
    config = tiny_run(
        corpus={"path": str(tmp_path / "corpus.jsonl"), "heldout_fraction": 0.2},
        store={"message_bytes": 2000, "upsert_bytes": 1900},
    )
    corpus = prepare(config)
    with running_store(config) as url:
        counts = fill_memory(config, url, corpus)
        with connect(config.store, url) as client:
            held = Store(client, config.store).count()
    assert counts["read"] == counts["skipped"] + counts["duplicate"] + counts["written"] + counts["rejected"]
    assert counts["read"] == corpus.counts.train + 2
    assert counts["written"] == held
    assert counts["duplicate"] == corpus.counts.train - corpus.counts.distinct
    letters = [json.loads(line) for line in (config.run_directory / "rejected.jsonl").read_text().splitlines()]
    assert len(letters) == counts["rejected"] > 2
    assert "'text' is int, wanted a text" in letters[0]["reason"]
    assert "not JSON" in letters[1]["reason"]
    assert all("store.message_bytes" in letter["reason"] and letter["text"] for letter in letters[2:])


@pytest.mark.usefixtures("prepared_home", "in_process")
def test_a_memory_of_projected_int8_states_holds_the_projected_states(tiny_run):
    config = tiny_run(references={"dim": 16, "datatype": "int8", "tokens": 8}, train={"targets": "teacher"},
                      loss={"relation_heads": 4, "reference_negatives": False}, student__reference_readout=False)  # fmt: skip
    teacher, corpus = load_teacher(config.teacher), prepare(config)
    with running_store(config) as url, connect(config.store, url) as client:
        fill_memory(config, url)
        store = Store(client, config.store)
        projection = stored_projection(store, teacher)
        texts = corpus.table("train")["text"].to_pylist()[:20]
        found = store.fetch([reference_id(teacher.fingerprint, text) for text in texts])
        for row, (ids, states) in enumerate(teacher.encode_texts(texts)):
            kept = min(8, len(ids))
            assert found.mask[row].sum() == kept
            np.testing.assert_allclose(found.states[row, :kept], projection.apply(states[:kept]), atol=0.15)
        assert store.manifest().projection == projection.fingerprint
        first = store.count()
        again = fill_memory(tiny_run(**{**config.model_dump(), "seed": 7}), url)  # another draw, the stored matrix
        assert (again["written"], again["skipped"], store.count()) == (0, first, first)


def test_held_out_texts_are_never_stored(filled):
    config, corpus, _, url = filled
    teacher = load_teacher(config.teacher)
    with connect(config.store, url) as client:
        ids = [reference_id(teacher.fingerprint, text) for text in corpus.table("heldout")["text"].to_pylist()]
        assert ids
        assert not Store(client, config.store).existing(ids)


def test_another_teachers_memory_is_refused_and_left_alone(filled, tiny_run):
    config, _, counts, url = filled
    other = tiny_run(teacher__model="pypi:all-MiniLM-L6-v2")
    with pytest.raises(CollectionMismatch, match=r"fingerprint=.*another store\.collection"):
        fill_memory(other, url)
    with connect(config.store, url) as client:
        assert Store(client, config.store).count() == counts["written"]


@pytest.mark.usefixtures("prepared_home")
def test_a_missing_store_is_reported_in_one_line(tiny_run):
    config = tiny_run(store={"url": "http://127.0.0.1:9", "write_deadline_s": 1})
    with pytest.raises(StoreUnavailable, match=r"127.0.0.1:9 did not answer.*address of its gRPC port") as error:
        ingest.run(config)
    assert "\n" not in str(error.value)


def test_unreadable_rows_are_counted_and_skipped(tiny_run, tmp_path, caplog):
    good = "".join(f'{{"text": "a real sentence, number {number}"}}\n' for number in range(50))
    (tmp_path / "corpus.jsonl").write_text(f'{good}{{"text": 5}}\nnot json\n')
    config = tiny_run(corpus={"path": str(tmp_path / "corpus.jsonl"), "heldout_fraction": 0.2})
    counts = prepare(config).counts
    assert (counts.train + counts.heldout, counts.rejected) == (50, 2)
    assert "2 rows skipped" in caplog.text


def test_long_texts_become_passages_of_one_document(tiny_run, tmp_path):
    (tmp_path / "corpus.txt").write_text("\n".join("word " * 100 + f"end{number}" for number in range(20)))
    config = tiny_run(corpus={"path": str(tmp_path), "heldout_fraction": 0.1, "long_texts": "split"})
    table = prepare(config).table("train")
    teacher = load_teacher(config.teacher)
    lengths = [len(ids) for ids in teacher.tokenizer(table["text"].to_pylist())["input_ids"]]
    assert max(lengths) <= 16
    assert len(table) > 20 * 100 / 14 * 0.5
    assert len(set(table["document"].to_pylist())) <= 20


@pytest.mark.parametrize(("content", "message"), [("", "gave 0 training and 0 held-out"), ("\n\n", "gave 0 training")])
def test_an_empty_corpus_is_refused_and_leaves_nothing_behind(tiny_run, tmp_path, content, message):
    (tmp_path / "corpus.txt").write_text(content)
    config = tiny_run(corpus={"path": str(tmp_path / "corpus.txt")})
    with pytest.raises(InputError, match=message):
        prepare(config)
    assert not list((config.home / "corpora").glob("*"))


def test_the_manifest_names_the_teacher_that_wrote_the_memory(filled):
    config, _, _, url = filled
    with connect(config.store, url) as client:
        assert Store(client, config.store).manifest() == manifest_of(load_teacher(config.teacher), config.references)


def chunks_done(config, store, corpus, done: int) -> None:
    """Leave a full memory as a job that was killed after so many chunks would."""
    store.attach(LOAD, json.dumps({}).encode())
    made = load_progress(store, corpus, config.ingest.batch)
    made.points_before = 0
    for chunk in range(done):
        made.finish(chunk, config.ingest.batch)
    store.attach(LOAD, made.state("loading", store.count(), {}))


@pytest.fixture
def chunks_asked(in_process, monkeypatch) -> list[int]:
    """How many chunks each load in this test has sent to encoders: it has none on Ray."""
    asked: list[int] = []
    whole = fill.stored_chunks

    def counted(config, address, corpus, pending, *others):
        asked.append(len(pending))
        return whole(config, address, corpus, pending, *others)

    monkeypatch.setattr(fill, "stored_chunks", counted)
    return asked


def test_a_killed_load_resumes_after_its_finished_chunks_and_encodes_nothing_again(filled, chunks_asked):
    config, corpus, _, url = filled
    num_chunks = -(-corpus.counts.distinct // config.ingest.batch)
    with connect(config.store, url) as client:
        store = Store(client, config.store)
        chunks_done(config, store, corpus, done=7)
        counts = fill_memory(config, url, corpus)
        found = counts["read"], counts["skipped"], counts["written"]
        assert found == (corpus.counts.train, corpus.counts.distinct, 0)
        assert chunks_asked == [num_chunks - 7]
        assert is_filled(store, corpus)
        assert not list((corpus.directory / "loads").iterdir())


def test_a_memory_counts_as_filled_until_something_is_deleted(filled, chunks_asked):
    """Then every text is looked up again, whatever a killed load had finished; what was deleted waits to be readmitted."""
    config, corpus, _, url = filled
    num_chunks = -(-corpus.counts.distinct // config.ingest.batch)
    with connect(config.store, url) as client:
        store = Store(client, config.store)
        assert is_filled(store, corpus)
        num_deleted = store.delete(("source", corpus.table("train")["source"][0].as_py()))
        assert num_deleted > 0
        assert not is_filled(store, corpus)
        assert not lacks_any(store, store.manifest(), corpus), "a distillation does not fill it with deleted texts"
        chunks_done(config, store, corpus, done=num_chunks)
        counts = fill_memory(config, url, corpus)
        assert (counts["written"], counts["skipped"]) == (0, corpus.counts.distinct)
        assert chunks_asked == [num_chunks]
        assert is_filled(store, corpus)
        assert store.count() == corpus.counts.distinct - num_deleted
        assert store.readmit() == num_deleted
        assert fill_memory(config, url, corpus)["written"] == num_deleted
        assert store.count() == corpus.counts.distinct


@pytest.mark.usefixtures("prepared_home", "in_process")
def test_a_batch_that_kills_its_process_is_set_aside_with_its_rows_and_tried_again_by_the_next_job(
    tiny_run, monkeypatch, caplog
):
    config, corpus = tiny_run(ingest={"batch": 32}), prepare(tiny_run())
    attempts = Attempts.of_run(config.run_directory)
    die_at(attempts, "chunk-1")
    with running_store(config) as url:
        with monkeypatch.context() as patch:
            patch.setattr(Attempts, "of_run", lambda directory: attempts)
            counts = fill_memory(config, url)
        assert (counts["rejected"], counts["written"]) == (32, corpus.counts.distinct - 32)
        rows = corpus.distinct_rows()[32:64]
        letters = [json.loads(line) for line in (config.run_directory / "rejected.jsonl").read_text().splitlines()]
        assert [letter["source"] for letter in letters] == [f"train.arrow row {row}" for row in rows]
        assert letters[0]["reason"] == "3 processes died at the 32 rows that this one is of"
        assert f"rows {rows[0]} to {rows[-1]} of {corpus.directory.name}/train.arrow set aside" in caplog.text
        again = fill_memory(config, url)
        assert (again["rejected"], again["written"]) == (0, 32)
        with connect(config.store, url) as client:
            assert Store(client, config.store).count() == corpus.counts.distinct


@pytest.mark.usefixtures("prepared_home", "in_process")
def test_a_load_ends_where_every_batch_kills_its_process_and_leaves_them_to_the_next_job(tiny_run, monkeypatch):
    config = tiny_run(ingest={"batch": 32})
    attempts = Attempts.of_run(config.run_directory)
    for chunk in range(4):
        die_at(attempts, f"chunk-{chunk}")
    with running_store(config) as url:
        with monkeypatch.context() as patch:
            patch.setattr(Attempts, "of_run", lambda directory: attempts)
            with pytest.raises(UnavailableError, match=r"an encoder died 3 times at rows .*Lower ingest\.batch"):
                fill_memory(config, url)
        assert fill_memory(config, url)["written"] == prepare(config).counts.distinct


@pytest.mark.long
@pytest.mark.usefixtures("prepared_home")
def test_rays_own_restarts_end_at_a_batch_that_kills_its_process(tiny_run, monkeypatch):
    class Fatal(fill.EncodeAndStore):
        def _store(self, chunk, places):
            if chunk == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._store(chunk, places)

    monkeypatch.setattr(fill, "EncodeAndStore", Fatal)
    config = tiny_run(ingest={"batch": 64})
    with running_store(config) as url:
        counts = fill_memory(config, url)
    stored = counts["written"] + counts["skipped"]  # what a repeated task had stored before its process died is found
    assert (counts["rejected"], stored) == (64, prepare(config).counts.distinct - 64)
    assert not (config.run_directory / "attempts").exists()


def stage_rows() -> dict[str, float]:
    """What this machine's metrics port says of each stage's rows."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=60).read().decode()
    found: Counter[str] = Counter()
    for stage, value in re.findall(r'^ray_refbert_stage_rows_total\{.*stage="(\w+)".*\} (\S+)$', text, re.MULTILINE):
        found[stage] += float(value)
    return found


def test_encoders_are_added_while_rows_wait_and_metrics_count_the_rows_of_every_stage(tiny_run):
    config = tiny_run(ingest={"batch": 8, "num_encoders": 1, "max_encoders": 2})
    before = stage_rows()
    with running_store(config) as url:
        written = fill_memory(config, url)["written"]
    assert written == prepare(config).counts.distinct
    wanted = {"read": 400, "encode": written, "store": written}
    deadline = time.monotonic() + 120
    while any(stage_rows()[stage] - before[stage] < rows for stage, rows in wanted.items()):
        assert time.monotonic() < deadline, f"wanted {wanted} more than {before}, found {stage_rows()}"
        time.sleep(0.5)
