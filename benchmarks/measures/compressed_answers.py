"""Look-ups behind servers that compress their answers and that do not: what a channel that accepts gzip costs.

A Qdrant server (1.18.3) gzips every answer for clients that accept it, and grpcio's channels do by default. Here a process
passes calls on to the embedded server, and gzips or not: the same way twice, so the difference is compression's.
"""

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from measures.collection import PATIENT_MS, fill, opened
from measures.goals import Goal, Part, Rows, in_turns, median_ratio
from measures.points import BATCH
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.pipeline import pipelined
from vector_store.retriever import Retriever
from vector_store.schema import Manifest, Point, Query, SparseVector
from vector_store.server.access import stored_key

NUM_POINTS, TOKENS, DIM, VOCABULARY = 2000, 32, 384, 3000
IN_FLIGHT = 2
BATCHES_PER_TURN = 8
MESSAGE_BYTES = 64 * 2**20

NOTE = (
    f"Batches of {BATCH} look-ups by keywords, {IN_FLIGHT} in flight, references of {TOKENS} x {DIM} float16 states (24 kB) of "
    "noise: states hardly compress, as real ones. Both contenders behind a process that passes bytes on."
)


def measure(quick: bool, folder: Path) -> Part:
    """Measure both contenders in turns."""
    manifest = Manifest(
        encoder="noise", fingerprint="noise", tokenizer="noise", layer=1, text_tokens=TOKENS, tokens=TOKENS, encoder_dim=DIM,
        dim=DIM, words_dim=0, bm25_k1=1.2, bm25_b=0.75, bm25_average_tokens=TOKENS,
    )  # fmt: skip
    num_points = NUM_POINTS // 4 if quick else NUM_POINTS
    points = list(_points(num_points))
    queries = [Query(point.id, point.keywords, None, None) for point in points]
    batches = [queries[start : start + BATCH] for start in range(0, num_points - BATCH + 1, BATCH)]
    with opened(folder, "noise") as (client, config), ExitStack() as stack:
        fill(client, config, manifest, points)
        contenders: dict[str, Callable[[int], Any]] = {}
        for name, compression in (("plain", False), ("gzip", True)):
            url = stack.enter_context(passing_on(client.url, compression))
            own = StoreConfig(
                url=url, collection="noise", cache_bytes=1, lookup_deadline_ms=PATIENT_MS, compression=compression
            )
            retriever = Retriever(stack.enter_context(connect(own, url, stored_key(folder))), own, manifest, "keywords")
            contenders[name] = _block(retriever, batches)
            contenders[name](0)
        taken = in_turns(contenders, 4 if quick else 20)
    rows: Rows = [
        {
            "contender": name,
            "lookups_per_s": BATCHES_PER_TURN * BATCH / float(np.median(seconds)),
            "ms_per_batch": 1000 * float(np.median(seconds)) / BATCHES_PER_TURN,
            "over_plain": median_ratio(taken["plain"], seconds),
        }
        for name, seconds in taken.items()
    ]
    faster = median_ratio(taken["gzip"], taken["plain"])
    return Part(rows, [Goal("lookups_plain_over_gzip_answers", faster, 1.0, ">=")], NOTE, {"points": num_points})


def _block(retriever: Retriever, batches: Sequence[Sequence[Query]]) -> Callable[[int], Any]:
    def block(turn: int) -> None:
        chosen = [batches[(turn * BATCHES_PER_TURN + i) % len(batches)] for i in range(BATCHES_PER_TURN)]
        for found in pipelined(retriever.neighbours, chosen, IN_FLIGHT):
            if set(found.rungs) != {"live"}:
                raise RuntimeError(f"look-ups degraded while they were measured: {retriever.counts}")

    return block


def _points(num: int) -> Iterator[Point]:
    random = np.random.default_rng(0)
    for number in range(num):
        indices = np.unique(random.zipf(1.3, 20) % VOCABULARY).astype(np.uint32)
        states = random.standard_normal((TOKENS, DIM)).astype(np.float16)
        yield Point(
            id=str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))),
            states=states,
            token_ids=random.integers(0, 30_000, TOKENS).astype(np.int32),
            keywords=SparseVector(indices, np.ones(len(indices), np.float32)),
            sentence=None,
            vector=states.mean(0, dtype=np.float32),
            text=f"text {number}",
            source="noise",
            document=str(number),
            split="train",
        )


# ---------------------------------------------------------------- the process between


@contextmanager
def passing_on(url: str, compresses: bool) -> Iterator[str]:
    """Start a process that passes calls on to the server at `url`; yields its address."""
    command = [sys.executable, "-m", "measures.compressed_answers", url, "gzip" if compresses else "plain"]
    here = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()  # which ends it


class PassOn(grpc.GenericRpcHandler):
    """Every method of any service, as bytes, with the caller's key."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Pass a call's bytes on and its answer's back; an error keeps its status."""
        call = self._channel.unary_unary(details.method)
        key = [(name, value) for name, value in details.invocation_metadata if name == "api-key"]

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return call(request, metadata=key)
            except grpc.RpcError as error:
                return context.abort(error.code(), error.details())

        return grpc.unary_unary_rpc_method_handler(answer)


def _serve(url: str, compression: grpc.Compression) -> None:
    limits = [("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.max_send_message_length", MESSAGE_BYTES)]
    options = [*limits, ("grpc.enable_http_proxy", 0), ("grpc.compression_enabled_algorithms_bitset", 1)]
    with grpc.insecure_channel(url.removeprefix("http://"), options) as channel:
        server = grpc.server(futures.ThreadPoolExecutor(8), options=limits, compression=compression)
        server.add_generic_rpc_handlers((PassOn(channel),))
        print(f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
        server.start()
        sys.stdin.read()
        server.stop(0).wait()


if __name__ == "__main__":
    _serve(sys.argv[1], grpc.Compression.Gzip if sys.argv[2] == "gzip" else grpc.Compression.NoCompression)
