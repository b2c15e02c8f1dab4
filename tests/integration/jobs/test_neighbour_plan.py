"""With a plan, training reads the very references that it would have looked up, and a killed build goes on."""

import uuid
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pytest
import torch
from qdrant_client import grpc as api

from jobs.corpus.prepared import PASSAGE_SCHEMA, CorpusCounts, PreparedCorpus
from jobs.memory import neighbour_plan as plans
from jobs.memory.neighbour_plan import NeighbourPlan, neighbour_plan
from jobs.memory.store import MemoryAddress
from jobs.training.stream import DistillStream
from refbert.memory.manifest import manifest_of
from refbert.memory.retrieval import open_retriever
from refbert.memory.texts import reference_texts
from refbert.sampler import ShuffleSampler
from refbert.teacher import load_teacher
from vector_store.client import connect
from vector_store.server.process import embedded_server
from vector_store.store import Store

WORDS = [
    "a",
    "good",
    "bad",
    "film",
    "plot",
    "actor",
    "scene",
    "story",
    "with",
    "of",
    "the",
    "music",
    "light",
    "dull",
    "end",
]
MICRO_BATCH = 7


@pytest.fixture(scope="module")
def server_url(tmp_path_factory):
    with embedded_server(tmp_path_factory.mktemp("store")) as url:
        yield url


class Memory:
    """A corpus of 100 passages, two to a document, all stored in a collection of its own."""

    def __init__(self, url, directory, config) -> None:
        self.config = config
        self.teacher = load_teacher(config.teacher)
        self.address = MemoryAddress(url, manifest_of(self.teacher, config.references))
        self.texts = reference_texts(self.teacher, self.address.manifest, config.references)
        counts = CorpusCounts(rejected=0, train=100, heldout=0, distinct=100, labels=())
        self.corpus = PreparedCorpus(directory, counts, "a hundred passages")
        random = np.random.default_rng(0)
        texts = [" ".join(random.choice(WORDS, random.integers(3, 9))) + f" {i}" for i in range(100)]
        self.rows = [
            {"text": text, "label": None, "document": f"d{i // 2}", "source": "s", "split": "train"}
            for i, text in enumerate(texts)
        ]
        with pa.OSFile(str(directory / "train.arrow"), "wb") as file, pa.ipc.new_file(file, PASSAGE_SCHEMA) as writer:
            writer.write_table(pa.Table.from_pylist(self.rows, PASSAGE_SCHEMA))
        self.client = connect(config.store, url)
        self.store = Store(self.client, config.store)
        self.store.ensure(self.address.manifest)
        self.add(self.rows)

    def add(self, rows) -> None:
        encoded = self.teacher.encode_texts([row["text"] for row in rows])
        self.store.upsert(
            [
                self.texts.point(
                    row, self.texts.identifier(row["text"]), token_ids, states.mean(0, dtype=np.float32), states
                )
                for row, (token_ids, states) in zip(rows, encoded, strict=True)
            ]
        )

    def plan(self, config=None):
        config = config or self.config
        return neighbour_plan(config.store, config.references, self.address, self.corpus, self.texts)

    def stream(self, plan, targets=True, **options) -> DistillStream:
        source = open_retriever(self.client, self.config.store, self.texts, self.config.references.criterion)
        return DistillStream(
            self.corpus.table("train"), ShuffleSampler(100, MICRO_BATCH, seed=3), self.texts, source,
            self.store if targets else None, plan, rank=0, world_size=1, prefetch=3, dropout=0.1,
            **options,
        )  # fmt: skip


@pytest.fixture
def make_memory(server_url, tmp_path, tiny_run):
    memories = []

    def make(criterion="keywords", count=1):
        config = tiny_run(
            references={"criterion": criterion, "count": count, "dense_index": True, "plan": True},
            store={"collection": f"test-{uuid.uuid4()}", "lookup_deadline_ms": 10_000},
        )
        memories.append(Memory(server_url, tmp_path, config))
        return memories[-1]

    yield make
    for memory in memories:
        memory.store.delete_collection()
        memory.client.close()


@pytest.mark.parametrize("is_planned", [False, True])
def test_where_no_states_are_learned_their_stored_mean_alone_is_read(make_memory, is_planned):
    memory = make_memory()
    plan = NeighbourPlan(memory.plan()) if is_planned else None
    stream = memory.stream(plan, sentences_alone=True)
    batch, targets = stream.make(0)
    assert batch.reference_mask.any(), "references are read as ever"
    assert targets.layers == ()
    texts = [row["text"] for row in stream.passages.at(stream.sampler.rows(0))]
    wanted = np.stack([states.mean(0, dtype=np.float32) for _, states in memory.teacher.encode_texts(texts)])
    np.testing.assert_allclose(targets.sentence.numpy(), wanted, atol=2e-2)


def tensors(batch):
    return [getattr(batch, field.name) for field in fields(batch)]


@pytest.mark.parametrize("criterion", ["keywords", "dense", "hybrid", "random"])
@pytest.mark.parametrize(("targets", "count"), [(True, 1), (False, 1), (True, 3)])
def test_every_planned_batch_of_an_epoch_equals_the_live_one(make_memory, criterion, targets, count):
    memory = make_memory(criterion, count)
    plan = NeighbourPlan(memory.plan())
    assert len(plan) == 100
    live, planned = memory.stream(None, targets), memory.stream(plan, targets)
    for _ in range(100 // MICRO_BATCH + 1):  # over the epoch's end
        (one, one_targets), (other, other_targets) = next(live), next(planned)
        assert one.reference_mask.any()
        assert (one.reference_spans is not None) == (count > 1)
        assert (one_targets is not None) == targets
        pairs = [*zip(tensors(one), tensors(other), strict=True)]
        if targets:
            pairs += [(one_targets.layers[0], other_targets.layers[0]), (one_targets.mask, other_targets.mask)]
        for ours, theirs in pairs:
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    for stream in (live, planned):
        stream.close()
        assert stream.source.counts["live"] >= 100
        assert stream.source.counts["null"] == stream.source.counts["missing"] == 0


def test_a_plan_is_rebuilt_only_when_something_that_it_depends_on_changes(make_memory, monkeypatch):
    memory = make_memory()
    path = memory.plan()
    with monkeypatch.context() as patch:
        patch.setattr(plans, "_build", None)
        assert memory.plan() == path
    others = [
        memory.config.model_copy(update={"references": memory.config.references.model_copy(update=change)})
        for change in ({"exclude_same_document": False}, {"count": 2})
    ]
    assert len({path, *map(memory.plan, others)}) == 3
    memory.add([{**memory.rows[0], "text": "one more text"}])
    grown = memory.plan()
    assert grown != path
    assert sorted(file.suffix for file in path.parent.iterdir()) == [".lock"] * 4 + [".npy"] * 4


@pytest.mark.parametrize(("torn_bytes", "count"), [(0, 1), (13, 1), (30, 2)])
def test_a_killed_build_resumes_and_gives_the_same_plan(make_memory, monkeypatch, torn_bytes, count):
    memory = make_memory(count=count)
    path = memory.plan()
    whole = path.read_bytes()
    path.unlink()
    draft = path.with_suffix(".draft")
    draft.write_bytes(whole[: len(whole) - 40 * count * plans.CHOICE.itemsize - torn_bytes])
    starts = []
    monkeypatch.setattr(plans, "pipelined", lambda call, items: (starts.append(items.start), map(call, items))[1])
    assert memory.plan() == path
    assert path.read_bytes() == whole
    assert starts == [60 - bool(torn_bytes)]
    assert not draft.exists()


def test_a_build_killed_in_its_header_starts_over(make_memory):
    memory = make_memory()
    path = memory.plan()
    whole = path.read_bytes()
    path.unlink()
    path.with_suffix(".draft").write_bytes(whole[:50])
    assert memory.plan().read_bytes() == whole


def test_a_neighbour_deleted_after_planning_becomes_a_counted_null_reference(make_memory):
    memory = make_memory()
    plan = NeighbourPlan(memory.plan())
    ((gone, _),) = plan.choices(np.array([0]))[0]
    delete = api.DeletePoints(collection_name=memory.config.store.collection, wait=True)
    delete.points.points.ids.add().uuid = gone
    memory.client.call(memory.client.points.Delete, delete, 10)
    stream = memory.stream(plan, targets=False)
    found, _ = stream.source.planned(plan.choices(np.arange(100)))
    assert not found.ids[0]
    assert found.rungs[0] == "live"
    assert stream.source.counts["missing"] == sum(choice.id == gone for (choice,) in plan.choices(np.arange(100)))
    stream.close()


def test_a_text_without_neighbours_is_planned_without_any(make_memory, monkeypatch):
    memory = make_memory()
    row = {**memory.rows[0], "text": "zebra"}
    table = pa.Table.from_pylist([row], PASSAGE_SCHEMA)
    monkeypatch.setattr(PreparedCorpus, "table", lambda *_: table)
    assert NeighbourPlan(memory.plan()).choices(np.array([0])) == [[]]


def test_planned_batches_without_targets_have_none_whatever_is_learned(make_memory):
    memory = make_memory()
    stream = memory.stream(NeighbourPlan(memory.plan()), targets=False, sentences_alone=True)
    batch, targets = stream.make(0)
    assert batch.reference_mask.any()
    assert targets is None
