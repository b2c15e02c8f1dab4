"""The training data: an endless stream of micro-batches in a fixed order, each with its references already looked up.

The order is a function of corpus, batch sizes and seed alone. Micro-batches are numbered from 0, and each optimizer step has
the next global_batch / micro_batch of them (a task's student: one), which the workers share out in turn. So any number of
workers sees the same micro-batches in the same steps, and one number is the whole state to resume from. Look-ups run in the
background while a step computes; with a neighbour plan nothing is searched, and the planned references are only fetched. A
micro-batch brings its targets where they are known without a teacher: what is stored of the texts, a task's logits and labels.
Runs no model and computes no loss.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Self, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.corpus.prepared import PassageRows
from jobs.memory.neighbour_plan import NeighbourPlan
from refbert.batch import Batch
from refbert.distillation import Targets
from refbert.errors import InputError
from refbert.memory.batch import student_batch
from refbert.memory.retrieval import NeighbourSource
from refbert.memory.texts import ReferenceTexts
from refbert.passages import text_of
from refbert.sampler import Sampler
from vector_store.pipeline import IN_FLIGHT
from vector_store.schema import Neighbours, Parts
from vector_store.store import Store

BatchAndTargets: TypeAlias = tuple[Batch, Targets | None]
"""A micro-batch and what is learned from it, None where only a teacher can say."""


class DistillStream:
    """Micro-batches of one worker, in order, with `prefetch` of them being looked up ahead.

    `targets` has the teacher's states of every text; with `sentences_alone` only their mean is read. `labels` (rows,) and
    `logits` (rows, labels) of a labelled task go with their rows. `counts` says what `next` has given so far: rows, tokens and
    bytes of references; `wait_s` how long it waited for look-ups: what the prefetch did not hide. `number` is the next
    micro-batch's. A step has `per_step` of them, at least one per worker; by default just one.
    """

    def __init__(
        self,
        passages: pa.Table,
        sampler: Sampler,
        texts: ReferenceTexts,
        source: NeighbourSource | None,
        targets: Store | None,
        plan: NeighbourPlan | None = None,
        *,
        labels: NDArray[np.float32] | None = None,
        logits: NDArray[np.float32] | None = None,
        rank: int,
        world_size: int,
        sentences_alone: bool = False,
        per_step: int | None = None,
        prefetch: int,
        dropout: float,
    ) -> None:
        self.passages = PassageRows(passages)
        self.sampler = sampler
        self.texts = texts
        self.source = source
        self.targets = targets
        self.plan = plan
        self.labels, self.logits = labels, logits
        self.sentences_alone = sentences_alone
        self.rank, self.world_size = rank, world_size
        self.per_step = per_step or world_size
        self.dropout = dropout
        self.wait_s = 0.0
        self.counts = {"rows": 0, "tokens": 0, "bytes": 0}
        self._executor = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="lookup")
        self._ahead: deque[tuple[int, Future[BatchAndTargets]]] = deque()
        self._prefetch = prefetch
        self._seek(0)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> BatchAndTargets:
        while len(self._ahead) <= self._prefetch:
            number = next(self._numbers)
            self._ahead.append((number, self._executor.submit(self.make, number)))
        started_s = time.monotonic()
        batch, targets = self._ahead[0][1].result()
        self.wait_s += time.monotonic() - started_s
        self._ahead.popleft()
        self.number = self._ahead[0][0]
        self.counts["rows"] += len(batch.mask)
        self.counts["tokens"] += int(batch.mask.sum())
        self.counts["bytes"] += batch.reference_states.nbytes
        return batch, targets

    def state_dict(self) -> dict[str, int]:
        """Return how many micro-batches all workers together have had, between two steps."""
        return {"micro_batches": self.number - self.rank}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after `state`'s micro-batches, however many workers read them."""
        for _, future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._seek(state["micro_batches"])

    def _seek(self, start: int) -> None:
        self.number = start + self.rank
        self._numbers: Iterator[int] = (
            number
            for step in count(start, self.per_step)
            for number in range(step + self.rank, step + self.per_step, self.world_size)
        )

    def close(self) -> None:
        """Stop prefetching."""
        self._executor.shutdown(cancel_futures=True)

    def make(self, number: int) -> BatchAndTargets:
        """Build one micro-batch by its number alone."""
        numbers = self.sampler.rows(number)
        rows = self.passages.at(numbers)
        texts = [text_of(row) for row in rows]
        ids, mask, segments = self.texts.tokenize(texts)
        own_ids = [self.texts.identifier(text) for text in texts] if self.targets else []
        beside = [] if self.sentences_alone else own_ids  # look-ups bring states, not vectors
        found: Neighbours | None = None
        own: Neighbours | None = None
        if self.plan is not None:
            assert self.source is not None
            found, stored = self.source.planned(self.plan.choices(numbers), beside)
            own = stored if beside else None
        elif self.source is not None:
            queries = self.texts.queries(texts, ids, mask, [row["document"] for row in rows])
            if not beside:
                found = self.source.neighbours(queries)
            else:
                found, own = self.source.neighbours_and_points(queries)
        if self.targets is not None and (own is None or not own.mask.any(1).all()):
            own = self._own_points(own_ids)
        reading = np.random.default_rng([self.sampler.seed, number]).random(len(rows)) >= self.dropout
        batch = student_batch(ids, mask, found, self.texts.manifest.dim, reading, segments)
        return batch, self._targets(numbers, mask, own)

    def _targets(self, rows: NDArray[np.int64], mask: Tensor, own: Neighbours | None) -> Targets | None:
        """Gather what is known without a teacher: stored states of the texts or their mean, a task's answers and labels; None
        without any."""
        if own is None and self.labels is None and self.logits is None:
            return None
        layers: tuple[Tensor, ...] = ()
        sentence = None
        if own is not None and self.sentences_alone:
            assert own.vectors is not None
            sentence = torch.from_numpy(own.vectors[:, 0])
        elif own is not None:
            width = mask.shape[1]
            layers = (torch.from_numpy(own.states[:, :width].astype(np.float32)),)
            mask = torch.from_numpy(own.mask[:, :width])
        return Targets(
            layers,
            mask,
            sentence=sentence,
            logits=None if self.logits is None else torch.from_numpy(self.logits[rows]),
            labels=None if self.labels is None else torch.from_numpy(self.labels[rows]),
        )

    def _own_points(self, ids: Sequence[str]) -> Neighbours:
        """Fetch targets patiently: a missing reference costs quality, a missing target would teach nothing."""
        assert self.targets is not None
        own = self.targets.fetch(ids, Parts(states=False, vector=True) if self.sentences_alone else None)
        missing = int((~own.mask.any(1)).sum())
        if missing:
            raise InputError(
                f"the memory lacks {missing} of {len(ids)} training texts, and train.targets=memory learns from them; "
                "run `python jobs/ingest.py` with this config, or set train.targets=teacher"
            )
        return own
