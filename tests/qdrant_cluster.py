"""A Qdrant cluster in the tests' own process: nodes that answer as a real one (1.18.3) was seen to answer.

    with Cluster(engine_url, num_nodes=3) as cluster:      # engine_url: an embedded server's, which holds the points
        cluster.kill(1)

Each copy of a shard is a collection of the embedded server, so shards have statistics of their own and copies can differ.
Nodes are gRPC servers on loopback; what one says of another that is dead or hangs, how writes end and what is left of them is
docs/store.md's table. Seconds that a real cluster takes are multiplied by `pace`. What was not seen is not imitated: an
updated collection is seen at once, a full disk and moving shards do not occur, snapshots are UNIMPLEMENTED. `hop_s` is the
time from one node to another, each way.
"""

import argparse
import contextlib
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from qdrant_client import grpc as api

from tests.qdrant_node import Node
from tests.store_clients import keyed_channel
from vector_store.codec import as_written
from vector_store.server.process import embedded_server

ACTIVE, DEAD = api.ReplicaState.Active, api.ReplicaState.Dead

UNAVAILABLE = "Tonic status error: code: 'The service is currently unavailable'"
READ_FAILED = f"Service internal error: 1 of 1 read operations failed: {UNAVAILABLE}"
WRITE_FAILED = (
    "Service internal error: {failed} out of {shards} shards failed to apply operation. First error captured: "
    + UNAVAILABLE
)
CONSENSUS_FAILED = "Service internal error: Waiting for consensus operation commit failed. Timeout set at: 10 seconds"

CONSENSUS_S, READ_FAILS_S, RECOVERY_S = 10.0, 0.4, 2.0
ALIAS_LAG_S = 0.007


@dataclass
class Held:
    """A collection: how it was created, and for each shard the state of its copies by node."""

    settings: api.CreateCollection
    shards: list[dict[int, int]]
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held while a shard is written or a copy recovers: no write falls between a copy's recovery and its being `Active`."""

    @property
    def copies(self) -> int:
        return max(1, self.settings.replication_factor)

    @property
    def factor(self) -> int:
        return max(1, self.settings.write_consistency_factor)


class Cluster:
    """Nodes with one set of collections, as a context manager. `num_calls` counts calls by method."""

    def __init__(
        self,
        engine_url: str,
        num_nodes: int = 1,
        api_key: str | None = None,
        read_only_key: str | None = None,
        gzip: bool = False,
        pace: float = 0.02,
        hop_s: float = 0.0,
    ) -> None:
        self.pace, self.hop_s = pace, hop_s
        self.keys = {api_key: True, read_only_key: False} if api_key else {}
        self.gzip = gzip
        self.before_copy: Callable[[int], object] = lambda node: None
        """Called with the node before a copy of a shard is written there; it may kill nodes."""
        self.before_call: Callable[[str], object] = lambda method: None
        """Called with each call's method; it may kill nodes."""
        self.num_calls: defaultdict[str, int] = defaultdict(int)
        self.refusals: list[tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]] = []
        """Statuses, messages and trailing metadata of the next calls, whatever they are."""
        self._prefix = uuid.uuid4().hex[:8]
        channel = keyed_channel(engine_url)
        self._channel = channel
        self.points, self.collections = api.PointsStub(channel), api.CollectionsStub(channel)
        self.held: dict[str, Held] = {}
        self._aliases: list[tuple[float, int, dict[str, str]]] = [(0.0, 0, {})]
        self._pending: list[Callable[[], None]] = []
        self._lock = threading.RLock()
        self._pool = futures.ThreadPoolExecutor(8)
        self.nodes = [Node(self, number) for number in range(num_nodes)]

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    @property
    def url(self) -> str:
        return ",".join(self.urls)

    def __enter__(self) -> "Cluster":
        for node in self.nodes:
            node.start()
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.stop()
        for name in list(self.held):
            self.delete(name)
        self._pool.shutdown()
        self._channel.close()

    # ------------------------------------------------------------ what happens to nodes

    def kill(self, number: int) -> None:
        """Nothing listens at the node's address any more."""
        self.nodes[number].stop()

    def hang(self, number: int) -> None:
        """The node takes calls and answers none, as after SIGSTOP."""
        self.nodes[number].hangs.set()

    def start(self, number: int) -> None:
        """The node is back: copies that are `Dead`, its own and others, recover from living ones; the rest stays as it is."""
        node = self.nodes[number]
        node.hangs.clear()
        if not node.is_serving:
            node.start()
        time.sleep(RECOVERY_S * self.pace)
        with self._lock:
            if self.has_majority:
                pending, self._pending = self._pending, []
                for apply in pending:
                    apply()
        for name, held in list(self.held.items()):
            with held.lock:
                for shard, copies in enumerate(held.shards):
                    source = next((n for n, s in copies.items() if s == ACTIVE and self.is_up(n)), None)
                    for copy, state in copies.items():
                        if state == DEAD and self.is_up(copy) and source is not None:
                            self._recover(name, shard, source, copy)
                            copies[copy] = ACTIVE

    def is_up(self, number: int) -> bool:
        node = self.nodes[number]
        return node.is_serving and not node.hangs.is_set()

    @property
    def has_majority(self) -> bool:
        return 2 * sum(self.is_up(node.number) for node in self.nodes) > len(self.nodes)

    # ------------------------------------------------------------ what a test looks at and changes

    def ids(self, collection: str, shard: int, node: int) -> set[str]:
        """The ids of a copy's points, whether its node lives or not."""
        return {point.id.uuid for point in self._all_points(self._copy(collection, shard, node), whole=False)}

    def copies_are_equal(self, collection: str) -> bool:
        """Whether all copies of every shard hold the same points with the same content."""

        def content(shard: int, node: int) -> list[bytes]:
            points = self._all_points(self._copy(collection, shard, node), whole=True)
            return [point.SerializeToString(deterministic=True) for point in points]

        shards = self.held[collection].shards
        return all(
            content(shard, node) == content(shard, min(copies))
            for shard, copies in enumerate(shards) for node in copies
        )  # fmt: skip

    def lose(self, collection: str, node: int, ids: Iterable[str]) -> None:
        """Delete points from a node's copies alone, without a word."""
        for shard, copies in enumerate(self.held[collection].shards):
            if node in copies:
                request = api.DeletePoints(collection_name=self._copy(collection, shard, node), wait=True)
                request.points.points.ids.extend(api.PointId(uuid=each) for each in ids)
                self.points.Delete(request)

    # ------------------------------------------------------------ consensus

    def consensus(self, node: int, context: grpc.ServicerContext, apply: Callable[[], None]) -> None:
        """Apply a change that most nodes must agree to; without them INTERNAL, and applied when they are back."""
        with self._lock:
            if self.has_majority:
                apply()
                return
            self._pending.append(apply)
        time.sleep(CONSENSUS_S * self.pace)
        context.abort(grpc.StatusCode.INTERNAL, CONSENSUS_FAILED)

    def aliases(self, node: int) -> dict[str, str]:
        """The aliases as a node sees them: another node's changes later than its own."""
        now = time.monotonic()
        return next(names for when, at, names in reversed(self._aliases) if at == node or now >= when + ALIAS_LAG_S)

    def change_aliases(self, node: int, actions: Iterable[Any]) -> None:
        names = dict(self._aliases[-1][2])
        for action in actions:
            match action.WhichOneof("action"):
                case "create_alias":
                    names[action.create_alias.alias_name] = action.create_alias.collection_name
                case "delete_alias":
                    names.pop(action.delete_alias.alias_name, None)
        self._aliases.append((time.monotonic(), node, names))

    def find(self, node: int, name: str, context: grpc.ServicerContext) -> tuple[str, Held]:
        name = self.aliases(node).get(name, name)
        if name not in self.held:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Not found: Collection `{name}` doesn't exist!")
        return name, self.held[name]

    # ------------------------------------------------------------ copies

    def create(self, request: api.CreateCollection) -> None:
        if request.collection_name in self.held:  # asked for twice while most nodes were away
            return
        nodes = len(self.nodes)
        num_shards = request.shard_number or nodes
        copies = min(nodes, max(1, request.replication_factor))
        placed = [{(shard + copy) % nodes: ACTIVE for copy in range(copies)} for shard in range(num_shards)]
        own = [
            _renamed(request, self._copy(request.collection_name, shard, node))
            for shard, where in enumerate(placed)
            for node in where
        ]
        for each in own:
            for name in ("shard_number", "replication_factor", "write_consistency_factor", "timeout"):
                each.ClearField(name)
        list(self._pool.map(self.collections.Create, own))
        for where in placed:
            living = [node for node in where if self.is_up(node)]
            where.update((node, DEAD) for node in list(where) if living and node not in living)
        self.held[request.collection_name] = Held(request, placed)

    def delete(self, name: str) -> None:
        shards = self.held.pop(name).shards
        own = [self._copy(name, shard, node) for shard, copies in enumerate(shards) for node in copies]
        list(self._pool.map(self.collections.Delete, [api.DeleteCollection(collection_name=each) for each in own]))

    def update_all(self, name: str, method: Any, request: Any) -> None:
        """A change of the collection itself, at every copy: a node that is away applies it when it is back."""
        shards = self.held[name].shards
        own = [
            _renamed(request, self._copy(name, shard, node)) for shard, copies in enumerate(shards) for node in copies
        ]
        list(self._pool.map(method, own))

    def read(
        self, node: int, name: str, held: Held, method: Any, request: Any, context: grpc.ServicerContext,
        by_shard: dict[int, Any] | None = None,
    ) -> list[list[Any]]:  # fmt: skip
        """Answers of each shard, or of those in `by_shard` to requests of their own: all shards are asked at once.

        They are one of a living copy, or those of as many as the request's read consistency wants.
        """
        wanted = _copies_read(request, held.copies)
        asked = dict.fromkeys(range(len(held.shards)), request) if by_shard is None else by_shard

        def answers(shard: int) -> list[Any] | None:
            states = held.shards[shard]
            nodes = sorted((n for n, s in states.items() if s == ACTIVE and self.is_up(n)), key=lambda n: n != node)
            if len(nodes) < wanted:
                return None
            if nodes[0] != node:
                time.sleep(2 * self.hop_s)  # there and back
            return [method(_renamed(asked[shard], self._copy(name, shard, n))) for n in nodes[:wanted]]

        try:
            found = list(self._pool.map(answers, asked))
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())  # type: ignore[attr-defined]
        if any(each is None for each in found):
            time.sleep(READ_FAILS_S * self.pace)
            context.abort(grpc.StatusCode.INTERNAL, READ_FAILED)
        return found  # type: ignore[return-value]

    def write(
        self, node: int, name: str, held: Held, method: Any, by_shard: dict[int, Any], context: grpc.ServicerContext
    ) -> None:
        """Apply each shard's part to its living copies; what is left where some are away is what was seen."""
        failed = 0
        for shard, request in by_shard.items():
            states, applied = held.shards[shard], []
            with held.lock:
                active = [n for n, state in states.items() if state == ACTIVE]
                for copy in active:
                    self.before_copy(copy)
                    if not self.is_up(copy):
                        continue
                    try:
                        method(_renamed(request, self._copy(name, shard, copy)))
                    except grpc.RpcError as error:
                        context.abort(error.code(), error.details())  # type: ignore[attr-defined]
                    applied.append(copy)
                away = [n for n in active if n not in applied]
                is_failed = len(applied) < held.factor
                is_agreed = self.has_majority
                if away and is_agreed and not is_failed:
                    states.update(dict.fromkeys(away, DEAD))
            failed += is_failed
            if away and not is_agreed and not is_failed:  # nobody can agree that a copy is dead
                self.wait_for_deadline(context)
        if failed:
            context.abort(grpc.StatusCode.INTERNAL, WRITE_FAILED.format(failed=failed, shards=len(held.shards)))

    @staticmethod
    def wait_for_deadline(context: grpc.ServicerContext) -> NoReturn:
        while context.is_active():
            time.sleep(0.01)
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _copy(self, name: str, shard: int, node: int) -> str:
        return f"{self._prefix}.{name}.{shard}.{node}"

    def _recover(self, name: str, shard: int, source: int, target: int) -> None:
        copies = [self._copy(name, shard, node) for node in (source, target)]
        kept = list(self._all_points(copies[0], whole=True))
        lost = {point.id.uuid for point in self._all_points(copies[1], whole=False)} - {point.id.uuid for point in kept}
        if lost:
            request = api.DeletePoints(collection_name=copies[1], wait=True)
            request.points.points.ids.extend(api.PointId(uuid=each) for each in lost)
            self.points.Delete(request)
        if kept:
            self.points.Upsert(
                api.UpsertPoints(collection_name=copies[1], wait=True, points=[as_written(point) for point in kept])
            )

    def _all_points(self, copy: str, whole: bool) -> Iterable[api.RetrievedPoint]:
        request = api.ScrollPoints(
            collection_name=copy,
            limit=200,
            with_payload=api.WithPayloadSelector(enable=whole),
            with_vectors=api.WithVectorsSelector(enable=whole),
        )
        while True:
            answer = self.points.Scroll(request)
            yield from answer.result
            if not answer.HasField("next_page_offset"):
                return
            request.offset.CopyFrom(answer.next_page_offset)


def _renamed(request: Any, copy: str) -> Any:
    own = type(request)()
    own.CopyFrom(request)
    own.collection_name = copy
    for name in ("read_consistency", "shard_key_selector", "ordering", "timeout"):
        if name in own.DESCRIPTOR.fields_by_name:
            own.ClearField(name)
    return own


def _copies_read(request: Any, copies: int) -> int:
    """How many copies a read consistency asks for."""
    if "read_consistency" not in request.DESCRIPTOR.fields_by_name or not request.HasField("read_consistency"):
        return 1
    consistency = request.read_consistency
    if consistency.HasField("factor"):
        return min(copies, consistency.factor)
    return copies if consistency.type == api.ReadConsistencyType.All else copies // 2 + 1


def main() -> None:
    """Serve a cluster until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A cluster of Qdrant nodes in front of an embedded store.")
    parser.add_argument("store", help="directory of the embedded store that holds the points")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--gzip", action="store_true", help="compress every answer, accepted or not")
    parser.add_argument("--hop-ms", type=float, default=0.0, help="milliseconds from one node to another, each way")
    given = parser.parse_args()
    with (
        embedded_server(given.store) as url,
        Cluster(url, given.nodes, gzip=given.gzip, hop_s=given.hop_ms / 1000) as cluster,
        contextlib.suppress(KeyboardInterrupt),
    ):
        print(cluster.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
