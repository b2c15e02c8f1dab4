"""Write points to a collection: bounded bytes per upsert, a bounded number of upserts in flight, every point accounted for.

A point counts as written only when the store has acknowledged it. A point that the collection cannot hold is rejected with the
reason, and does not affect the others. The caller gives the manifest and makes the points; creates no collection.
"""

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

from vector_store.client import Client
from vector_store.codec import check, encode
from vector_store.config import StoreConfig
from vector_store.errors import InvalidPoint
from vector_store.protocol import api
from vector_store.schema import Manifest, Point


class Rejection(NamedTuple):
    """A point that is not stored, and why."""

    point: Point
    reason: str


class Written(NamedTuple):
    """Result of writing: how many points are stored, and which are not."""

    written: int
    rejected: list[Rejection]


class _Prepared(NamedTuple):
    point: Point
    message: api.PointStruct


class Writer:
    """Writes to one collection in the background; use it in a `with` block. One thread at a time may use it.

    `wait_s` is how long the caller has waited for the store (back-pressure), `sent_bytes` the bytes of all upserts.
    """

    def __init__(self, client: Client, config: StoreConfig, manifest: Manifest) -> None:
        self._client = client
        self._config = config
        self._manifest = manifest
        self._senders = ThreadPoolExecutor(config.upserts_in_flight, thread_name_prefix="upsert")
        self._slots = threading.BoundedSemaphore(config.upserts_in_flight)
        self._batch: list[_Prepared] = []
        self._batch_bytes = 0
        self._sent: list[Future[Written]] = []
        self._rejected: list[Rejection] = []
        self._num_succeeded = 0  # leading upserts of `_sent`
        self.wait_s = 0.0
        self.sent_bytes = 0

    def submit(self, points: Iterable[Point]) -> None:
        """Add points; sends an upsert whenever one is full, and waits while too many are in flight.

        Raises the error of an earlier upsert, StoreUnavailable where the store is gone, so that a caller does not read a long
        source to its end in vain.
        """
        for point in points:
            try:
                prepared = self._prepare(point)
            except InvalidPoint as error:
                self._rejected.append(Rejection(point, str(error)))
                continue
            point_bytes = prepared.message.ByteSize()
            if self._batch_bytes + point_bytes > self._config.upsert_bytes:
                self._send_batch()
                self._raise_failure()
            self._batch.append(prepared)
            self._batch_bytes += point_bytes

    def finish(self) -> Written:
        """Send the rest, wait for all upserts, and return the result of all points since the last `finish`.

        StoreUnavailable where the store is gone.
        """
        self._send_batch()
        sent, self._sent, self._num_succeeded = self._sent, [], 0
        rejected, self._rejected = self._rejected, []
        started_s = time.monotonic()
        results = [future.result() for future in sent]
        self.wait_s += time.monotonic() - started_s
        return _sum([Written(0, rejected), *results])

    def close(self) -> None:
        """Wait for the upserts in flight, and ignore their results; points that were not sent yet are dropped."""
        self._senders.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send_batch(self) -> None:
        self.sent_bytes += self._batch_bytes
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if batch:
            started_s = time.monotonic()
            self._slots.acquire()
            self.wait_s += time.monotonic() - started_s
            sent = self._senders.submit(self._send, batch)
            sent.add_done_callback(lambda _: self._slots.release())
            self._sent.append(sent)

    def _raise_failure(self) -> None:
        while self._num_succeeded < len(self._sent) and self._sent[self._num_succeeded].done():
            self._sent[self._num_succeeded].result()
            self._num_succeeded += 1

    def _prepare(self, point: Point) -> _Prepared:
        check(point, self._manifest)
        message = encode(point, self._manifest)
        if message.ByteSize() >= self._config.message_bytes:
            raise InvalidPoint(
                f"point {point.id} takes {message.ByteSize()} bytes, store.message_bytes is "
                f"{self._config.message_bytes}; raise it or store fewer tokens"
            )
        return _Prepared(point, message)

    def _send(self, batch: list[_Prepared]) -> Written:
        request = api.UpsertPoints(
            collection_name=self._config.collection, wait=True, points=[prepared.message for prepared in batch]
        )
        try:
            self._client.call(self._client.points.Upsert, request, self._config.write_deadline_s)
        except InvalidPoint as error:
            if len(batch) == 1:
                return Written(0, [Rejection(batch[0].point, str(error))])
            alone = [self._send([prepared]) for prepared in batch]  # so that only the invalid ones are rejected
            return _sum(alone)
        return Written(len(batch), [])


def _sum(results: list[Written]) -> Written:
    return Written(
        sum(result.written for result in results), [rejection for result in results for rejection in result.rejected]
    )
