"""The data order: a function of corpus, batch sizes and seed, the same for any number of workers, resumable anywhere."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.training.stream import DistillStream
from refbert.config import ReferenceConfig
from refbert.memory.batch import student_batch
from refbert.memory.manifest import manifest_of
from refbert.memory.texts import reference_texts
from refbert.sampler import ShuffleSampler
from vector_store.schema import Neighbours

TEXTS = [f"text {number} of the corpus" for number in range(20)]


def passages() -> pa.Table:
    rows = [{"text": text, "document": text, "source": "s", "split": "train"} for text in TEXTS]
    return pa.Table.from_pylist(rows)


def make_stream(teacher, rank=0, world_size=1, prefetch=2, per_step=None) -> DistillStream:
    references = ReferenceConfig()
    texts = reference_texts(teacher, manifest_of(teacher, references), references)
    return DistillStream(
        passages(), ShuffleSampler(len(TEXTS), 3, seed=5), texts, None, None,
        rank=rank, world_size=world_size, per_step=per_step, prefetch=prefetch, dropout=0.1,
    )  # fmt: skip


def test_an_epoch_holds_every_row_once_and_the_next_is_shuffled_anew():
    order = ShuffleSampler(20, 3, seed=0)
    rows = np.concatenate([order.rows(number) for number in range(14)])[:40]
    assert sorted(rows[:20]) == sorted(rows[20:]) == list(range(20))
    assert not np.array_equal(rows[:20], rows[20:])
    assert not np.array_equal(rows[:20], np.concatenate([ShuffleSampler(20, 20, seed=1).rows(0)]))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_number_of_workers_sees_the_same_micro_batches(teacher, world_size):
    alone = make_stream(teacher)
    wanted = [next(alone)[0].input_ids for _ in range(6)]
    workers = [make_stream(teacher, rank, world_size) for rank in range(world_size)]
    got = [next(workers[number % world_size])[0].input_ids for number in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))


@pytest.mark.parametrize("stop_at", [0, 1, 6, 7, 13])
def test_a_restored_stream_continues_as_the_original(teacher, stop_at):
    """20 rows in micro-batches of 3: an epoch ends within the seventh."""
    original = make_stream(teacher)
    for _ in range(stop_at):
        next(original)
    restored = make_stream(teacher)
    next(restored)  # already looking ahead elsewhere
    restored.load_state_dict(original.state_dict())
    for _ in range(8):
        assert torch.equal(next(original)[0].input_ids, next(restored)[0].input_ids)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_a_step_is_shared_by_workers_that_do_not_divide_it(teacher, world_size):
    workers = [make_stream(teacher, rank, world_size, per_step=4) for rank in range(world_size)]
    for step in range(3):
        assert {worker.state_dict()["micro_batches"] for worker in workers} == {4 * step}
        numbers = []
        for place in range(4):
            worker = workers[place % world_size]
            numbers.append(worker.number)
            next(worker)
        assert numbers == [4 * step + place for place in range(4)]


def test_a_stream_restores_onto_another_number_of_workers(teacher):
    alone = make_stream(teacher)
    for _ in range(4):
        next(alone)
    workers = [make_stream(teacher, rank, 2) for rank in range(2)]
    for worker in workers:
        worker.load_state_dict(alone.state_dict())
    for number in range(4):
        assert torch.equal(next(alone)[0].input_ids, next(workers[number % 2])[0].input_ids)


def found_with(ranks: list[list[int]], count: int) -> Neighbours:
    """An answer whose tokens are of these neighbours."""
    shape = np.array(ranks).shape
    return Neighbours(
        ids=[["a"], ["b"]], texts=[[None], [None]], scores=np.ones((2, count), np.float32),
        states=np.ones((*shape, 4), np.float16), token_ids=np.ones(shape, np.int32), ranks=np.array(ranks, np.int16),
        rungs=["live", "live"],
    )  # fmt: skip


def test_rows_that_do_not_read_get_no_reference():
    found = found_with([[0, 0, 0, -1, -1], [0, 0, -1, -1, -1]], count=1)
    ids = torch.ones(2, 3, dtype=torch.long)
    batch = student_batch(ids, ids, found, 4, np.array([False, True]))
    assert batch.reference_mask.sum(1).tolist() == [0, 2]
    assert batch.reference_states.shape == (2, 2, 4)  # cut at the longest that is read
    assert batch.reference_spans is None


def test_a_batch_says_which_token_is_of_which_reference():
    found = found_with([[0, 0, 1, -1, -1], [0, 1, 1, -1, -1]], count=2)
    ids = torch.ones(2, 3, dtype=torch.long)
    batch = student_batch(ids, ids, found, 4, np.array([False, True]))
    assert batch.reference_mask.tolist() == [[False] * 3, [True] * 3]
    assert batch.reference_spans.tolist() == [[[False] * 3] * 2, [[True, False, False], [False, True, True]]]
