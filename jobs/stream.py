"""The training data: an endless, deterministic order of passages, each with its reference already looked up.

The order is a function of the seed alone. The run is cut into micro-batches, numbered from 0; each step is made of the next
global_batch / micro_batch of them, and worker r takes every world-th of a step's from the r-th on. So any number of workers
sees the same micro-batches in the same steps, and one number is the whole resumable state. References are looked up in the
background while the step runs, and where the neighbours are planned, only fetched.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import count
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.memory import NeighbourSource, ReferenceTexts
from jobs.neighbour_plan import NeighbourPlan
from jobs.prepared import PassageRows
from refbert.corpus import text_of
from refbert.distillation import DistillBatch
from refbert.errors import InputError
from refbert.fine_tuning import BucketedOrder
from vector_store.pipeline import IN_FLIGHT
from vector_store.retriever import Retriever
from vector_store.schema import Neighbours
from vector_store.store import Store


class Order:
    """Which rows of a corpus make up each micro-batch, over all epochs. Keeps the permutations of two epochs."""

    def __init__(self, num_rows: int, micro_batch: int, seed: int) -> None:
        self.num_rows = num_rows
        self.micro_batch = micro_batch
        self.seed = seed
        self._shuffle = lru_cache(maxsize=2)(self._make_shuffle)

    def rows(self, number: int) -> NDArray[np.int64]:
        """Return the (micro_batch,) row numbers of one micro-batch; it may cross an epoch's end."""
        places = range(number * self.micro_batch, (number + 1) * self.micro_batch)
        return np.array([self._shuffle(place // self.num_rows)[place % self.num_rows] for place in places])

    def _make_shuffle(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)


class DistillStream:
    """Micro-batches of one worker, in order, with `prefetch` of them being looked up ahead.

    `labels` (rows,) and `logits` (rows, labels) of a labelled task go with their rows. `counts` says what `next` has given
    so far: rows, tokens and bytes of references; `wait_s` how long it waited for look-ups: what the prefetch did not hide.
    `number` is the next micro-batch's. A step has `per_step` of them, at least one per worker; by default just one.
    """

    def __init__(
        self,
        passages: pa.Table,
        order: Order | BucketedOrder,
        texts: ReferenceTexts,
        source: NeighbourSource | None,
        targets: Store | None,
        plan: NeighbourPlan | None = None,
        *,
        labels: NDArray[np.float32] | None = None,
        logits: NDArray[np.float32] | None = None,
        rank: int,
        world_size: int,
        per_step: int | None = None,
        prefetch: int,
        dropout: float,
    ) -> None:
        self.passages = PassageRows(passages)
        self.order = order
        self.texts = texts
        self.source = source
        self.targets = targets
        self.plan = plan
        self.labels, self.logits = labels, logits
        self.rank, self.world_size = rank, world_size
        self.per_step = per_step or world_size
        self.dropout = dropout
        self.wait_s = 0.0
        self.counts = {"rows": 0, "tokens": 0, "bytes": 0}
        self._executor = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="lookup")
        self._ahead: deque[tuple[int, Future[DistillBatch]]] = deque()
        self._prefetch = prefetch
        self._go_on_from(0)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> DistillBatch:
        while len(self._ahead) <= self._prefetch:
            number = next(self._numbers)
            self._ahead.append((number, self._executor.submit(self.make, number)))
        started_s = time.monotonic()
        batch = self._ahead[0][1].result()
        self.wait_s += time.monotonic() - started_s
        self._ahead.popleft()
        self.number = self._ahead[0][0]
        self.counts["rows"] += len(batch.mask)
        self.counts["tokens"] += int(batch.mask.sum())
        self.counts["bytes"] += batch.reference_states.nbytes
        return batch

    def state_dict(self) -> dict[str, int]:
        """Return how many micro-batches all workers together have had, between two steps."""
        return {"micro_batches": self.number - self.rank}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after `state`'s micro-batches, by whichever number of workers they were read."""
        for _, future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._go_on_from(state["micro_batches"])

    def _go_on_from(self, start: int) -> None:
        self.number = start + self.rank
        self._numbers: Iterator[int] = (
            number
            for step in count(start, self.per_step)
            for number in range(step + self.rank, step + self.per_step, self.world_size)
        )

    def close(self) -> None:
        """Stop looking ahead."""
        self._executor.shutdown(cancel_futures=True)

    def make(self, number: int) -> DistillBatch:
        """Build one micro-batch by its number alone."""
        numbers = self.order.rows(number)
        rows = self.passages.at(numbers)
        texts = [text_of(row) for row in rows]
        ids, mask, segments = self.texts.tokenize(texts)
        own_ids = [self.texts.identifier(text) for text in texts] if self.targets else []
        found: Neighbours | None = None
        own: Neighbours | None = None
        if self.plan is not None:
            assert isinstance(self.source, Retriever)  # no other has plans
            found, own = self.source.planned(self.plan.choices(numbers), own_ids)
        elif self.source is not None:
            queries = self.texts.queries(texts, ids, mask, [row["document"] for row in rows])
            if self.targets is None:
                found = self.source.neighbours(queries)
            else:
                found, own = self.source.neighbours_and_points(queries)
        if self.targets is not None and (own is None or not own.mask.any(1).all()):
            own = self._own_points(own_ids)
        reading = np.random.default_rng([self.order.seed, number]).random(len(rows)) >= self.dropout
        batch = reference_batch(ids, mask, found, self.texts.manifest.dim, reading, segments)
        batch.labels = None if self.labels is None else torch.from_numpy(self.labels[numbers])
        batch.logits = None if self.logits is None else torch.from_numpy(self.logits[numbers])
        if self.targets is not None:
            assert own is not None
            width = ids.shape[1]
            batch.target_states = torch.from_numpy(own.states[:, :width].astype(np.float32))
            batch.target_mask = torch.from_numpy(own.mask[:, :width])
        return batch

    def _own_points(self, ids: Sequence[str]) -> Neighbours:
        """Fetch targets patiently: a missing reference costs quality, a missing target would teach nothing."""
        assert self.targets is not None
        own = self.targets.fetch(ids)
        missing = int((~own.mask.any(1)).sum())
        if missing:
            raise InputError(
                f"the memory lacks {missing} of {len(ids)} training texts, and train.targets=memory learns from them; "
                "run `python jobs/ingest.py` with this config, or set train.targets=teacher"
            )
        return own


def reference_batch(
    ids: Tensor,
    mask: Tensor,
    found: Neighbours | None,
    dim: int,
    reading: NDArray[np.bool_] | None = None,
    token_type_ids: Tensor | None = None,
) -> DistillBatch:
    """Put inputs and found references into tensors; rows that are not `reading` get the null reference.

    The references of a row lie one after another along the token axis, padded to the longest row.
    """
    batch = len(ids)
    if found is None:
        null = ids.new_zeros(batch, 1), torch.zeros(batch, 1, dim), ids.new_zeros(batch, 1)
        return DistillBatch(ids, mask, *null, token_type_ids=token_type_ids)
    seen = found.mask if reading is None else found.mask & reading[:, None]
    longest = max(1, int(seen.sum(1).max(initial=0)))
    return DistillBatch(
        ids,
        mask,
        torch.from_numpy(found.token_ids[:, :longest].astype(np.int64)),
        torch.from_numpy(found.states[:, :longest].astype(np.float32)),
        torch.from_numpy(seen[:, :longest]),
        reference_spans=_spans(found, seen)[:, :, :longest] if found.count > 1 else None,
        token_type_ids=token_type_ids,
    )


def _spans(found: Neighbours, seen: NDArray[np.bool_]) -> Tensor:
    """(batch, count, tokens): whether a token that is seen is of the first, the second, ... reference."""
    return torch.from_numpy((found.ranks[:, None] == np.arange(found.count)[:, None]) & seen[:, None])
