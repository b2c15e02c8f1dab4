"""A node of the tests' cluster (qdrant_cluster.py): a gRPC server whose services answer as a Qdrant node of the cluster.

Knows what callers send and get, and which shard a point is in; the cluster knows nodes, copies and what they agree on.
"""
# ruff: noqa: N802  (gRPC names the methods)

import threading
import time
import uuid
import zlib
from concurrent import futures
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import Message
from qdrant_client import grpc as api

if TYPE_CHECKING:
    from tests.qdrant_cluster import Cluster

NO_KEY = "Must provide an API key or an Authorization bearer token"
READ_ONLY = "Write access is required"
WRITES = frozenset(
    (
        "Create",
        "Update",
        "Delete",
        "Upsert",
        "SetPayload",
        "DeletePayload",
        "UpdateBatch",
        "CreateFieldIndex",
        "UpdateAliases",
    )
)

CREATE_WITH_DEAD_S = 10.5


class Node:
    """One node: a gRPC server that may be stopped and started again at its address, or hang."""

    def __init__(self, cluster: "Cluster", number: int) -> None:
        self.cluster, self.number = cluster, number
        self.hangs = threading.Event()
        self._server: grpc.Server | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def is_serving(self) -> bool:
        return self._server is not None

    def start(self) -> None:
        server = grpc.server(
            futures.ThreadPoolExecutor(16),
            interceptors=[_Answering(self)],
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 2**26)],
            compression=grpc.Compression.Gzip if self.cluster.gzip else None,
        )
        api.add_QdrantServicer_to_server(_Health(), server)
        api.add_CollectionsServicer_to_server(_Collections(self), server)
        api.add_PointsServicer_to_server(_Points(self), server)
        self._port = server.add_insecure_port(f"127.0.0.1:{self._port}")
        server.start()
        self._server = server

    def stop(self) -> None:
        server, self._server = self._server, None
        if server:
            server.stop(0)


class _Answering(grpc.ServerInterceptor):
    """Around every call: hanging, keys, and what a test has put into `refusals`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler, method = continuation(details), details.method.rpartition("/")[2]
        if handler is None:  # a service that is not imitated
            return None
        cluster = self._node.cluster
        key = dict(details.invocation_metadata).get("api-key")

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            cluster.num_calls[method] += 1
            cluster.before_call(method)
            if self._node.hangs.is_set():
                cluster.wait_for_deadline(context)
            if cluster.keys and method != "HealthCheck":
                if key not in cluster.keys:
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, NO_KEY)
                if method in WRITES and not cluster.keys[key]:
                    context.abort(grpc.StatusCode.PERMISSION_DENIED, READ_ONLY)
            if cluster.refusals:
                code, message, trailing = cluster.refusals.pop(0)
                context.set_trailing_metadata(trailing)
                context.abort(code, message)
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)


class _Health(api.QdrantServicer):
    def HealthCheck(self, request, context):
        return api.HealthCheckReply(title="qdrant - vector search engine", version="1.18.3")


class _Collections(api.CollectionsServicer):
    def __init__(self, node: Node) -> None:
        self._cluster, self._node = node.cluster, node.number

    def Create(self, request, context):
        if request.collection_name in self._cluster.held:
            message = f"Wrong input: Collection `{request.collection_name}` already exists!"
            context.abort(grpc.StatusCode.ALREADY_EXISTS, message)
        self._cluster.consensus(self._node, context, lambda: self._cluster.create(request))
        if not all(self._cluster.is_up(node.number) for node in self._cluster.nodes):
            time.sleep(CREATE_WITH_DEAD_S * self._cluster.pace)
        return api.CollectionOperationResponse(result=True)

    def Update(self, request, context):
        name, _ = self._cluster.find(self._node, request.collection_name, context)
        request.ClearField("params")  # which the embedded server does not know
        method = self._cluster.collections.Update
        self._cluster.consensus(self._node, context, lambda: self._cluster.update_all(name, method, request))
        return api.CollectionOperationResponse(result=True)

    def Delete(self, request, context):
        if request.collection_name not in self._cluster.held:
            return api.CollectionOperationResponse(result=False)
        self._cluster.consensus(self._node, context, lambda: self._cluster.delete(request.collection_name))
        return api.CollectionOperationResponse(result=True)

    def Get(self, request, context):
        name, held = self._cluster.find(self._node, request.collection_name, context)
        method = self._cluster.collections.Get
        shards = [each[0] for each in self._cluster.read(self._node, name, held, method, request, context)]
        answer = shards[0]
        answer.result.points_count = sum(each.result.points_count for each in shards)
        answer.result.indexed_vectors_count = sum(each.result.indexed_vectors_count for each in shards)
        answer.result.status = max(each.result.status for each in shards)
        params = answer.result.config.params
        params.shard_number, params.replication_factor = len(held.shards), held.copies
        params.write_consistency_factor = held.factor
        return answer

    def List(self, request, context):
        names = sorted(self._cluster.held)
        return api.ListCollectionsResponse(collections=[api.CollectionDescription(name=name) for name in names])

    def CollectionExists(self, request, context):
        name = self._cluster.aliases(self._node).get(request.collection_name, request.collection_name)
        return api.CollectionExistsResponse(result=api.CollectionExists(exists=name in self._cluster.held))

    def CollectionClusterInfo(self, request, context):
        name, held = self._cluster.find(self._node, request.collection_name, context)
        answer = api.CollectionClusterInfoResponse(peer_id=self._node, shard_count=len(held.shards))
        for shard, copies in enumerate(held.shards):
            for node, state in copies.items():
                if node == self._node:
                    count = len(self._cluster.ids(name, shard, node))
                    answer.local_shards.add(shard_id=shard, points_count=count, state=state)
                else:
                    answer.remote_shards.add(shard_id=shard, peer_id=node, state=state)
        return answer

    def UpdateAliases(self, request, context):
        self._cluster.consensus(self._node, context, lambda: self._cluster.change_aliases(self._node, request.actions))
        return api.CollectionOperationResponse(result=True)

    def ListAliases(self, request, context):
        return api.ListAliasesResponse(
            aliases=[
                api.AliasDescription(alias_name=alias, collection_name=name)
                for alias, name in sorted(self._cluster.aliases(self._node).items())
            ]
        )


class _Points(api.PointsServicer):
    def __init__(self, node: Node) -> None:
        self._cluster, self._node = node.cluster, node.number

    # ------------------------------------------------------------ writes

    def Upsert(self, request, context):
        return self._written("Upsert", request, context, lambda shards: _split(request, "points", shards))

    def Delete(self, request, context):
        return self._written("Delete", request, context, lambda shards: _split_selected(request, "points", shards))

    def SetPayload(self, request, context):
        split = lambda shards: _split_selected(request, "points_selector", shards)  # noqa: E731
        return self._written("SetPayload", request, context, split)

    def DeletePayload(self, request, context):
        split = lambda shards: _split_selected(request, "points_selector", shards)  # noqa: E731
        return self._written("DeletePayload", request, context, split)

    def UpdateBatch(self, request, context):
        def split(shards: int) -> dict[int, Any]:
            parts: dict[int, Any] = {}
            for operation in request.operations:
                kind = operation.WhichOneof("operation")
                selector = {"upsert": "points", "delete_points": "points"}.get(kind, "points_selector")
                divide = _split if kind == "upsert" else _split_selected
                for shard, part in divide(getattr(operation, kind), selector, shards).items():
                    own = parts.setdefault(shard, api.UpdateBatchPoints(wait=True)).operations.add()
                    getattr(own, kind).CopyFrom(part)
            return parts

        self._written("UpdateBatch", request, context, split)
        done = api.UpdateResult(status=api.UpdateStatus.Completed)
        return api.UpdateBatchResponse(result=[done] * len(request.operations))

    def CreateFieldIndex(self, request, context):
        name, _ = self._cluster.find(self._node, request.collection_name, context)
        method = self._cluster.points.CreateFieldIndex
        self._cluster.consensus(self._node, context, lambda: self._cluster.update_all(name, method, request))
        return api.PointsOperationResponse(result=api.UpdateResult(status=api.UpdateStatus.Completed))

    def _written(self, method, request, context, split):
        name, held = self._cluster.find(self._node, request.collection_name, context)
        stub = getattr(self._cluster.points, method)
        self._cluster.write(self._node, name, held, stub, split(len(held.shards)), context)
        return api.PointsOperationResponse(result=api.UpdateResult(status=api.UpdateStatus.Completed))

    # ------------------------------------------------------------ reads

    def Get(self, request, context):
        by_shard = _split(request, "ids", len(self._held(request, context)[1].shards))
        shards = self._read("Get", request, context, by_shard)
        return api.GetResponse(result=[point for each in shards for point in _agreed([a.result for a in each])])

    def Count(self, request, context):
        shards = self._read("Count", request, context)
        return api.CountResponse(
            result=api.CountResult(count=sum(min(answer.result.count for answer in each) for each in shards))
        )

    def Scroll(self, request, context):
        limit = request.limit if request.HasField("limit") else 10
        shards = self._read("Scroll", request, context)
        points = sorted((p for each in shards for p in _agreed([a.result for a in each])), key=lambda p: _order(p.id))
        later = [a.next_page_offset for each in shards for a in each if a.HasField("next_page_offset")]
        later += [point.id for point in points[limit:]]
        return api.ScrollResponse(result=points[:limit], next_page_offset=min(later, key=_order) if later else None)

    def Query(self, request, context):
        batch = api.QueryBatchPoints(collection_name=request.collection_name, query_points=[request])
        return api.QueryResponse(result=self.QueryBatch(batch, context).result[0].result)

    def QueryBatch(self, request, context):
        for query in request.query_points:
            query.ClearField("collection_name")
        shards = self._read("QueryBatch", request, context)
        answer = api.QueryBatchResponse()
        for row, query in enumerate(request.query_points):
            found = [p for each in shards for p in _agreed([a.result[row].result for a in each])]
            # Equal scores come in an order of each node's own.
            found.sort(key=lambda point: (-point.score, zlib.crc32(point.id.SerializeToString(), self._node)))
            answer.result.add(result=found[: query.limit if query.HasField("limit") else 10])
        return answer

    def _held(self, request, context):
        return self._cluster.find(self._node, request.collection_name, context)

    def _read(self, method, request, context, by_shard=None):
        name, held = self._held(request, context)
        stub = getattr(self._cluster.points, method)
        return self._cluster.read(self._node, name, held, stub, request, context, by_shard)


def shard_of(point_id: api.PointId, num_shards: int) -> int:
    """The shard that holds a point."""
    return (uuid.UUID(point_id.uuid).int if point_id.uuid else point_id.num) * 2654435761 // 2**16 % num_shards


def _order(point_id: api.PointId) -> tuple[int, str]:
    return (point_id.num, "") if point_id.HasField("num") else (2**64, point_id.uuid)


def _agreed(answers: list[Any]) -> list[Any]:
    """The points that every answer has, with equal content."""
    first, *others = answers
    if not others:
        return list(first)
    same = [{point.SerializeToString(deterministic=True) for point in other} for other in others]
    return [p for p in first if all(p.SerializeToString(deterministic=True) in other for other in same)]


def _split(request: Any, name: str, num_shards: int) -> dict[int, Any]:
    """The request for each shard that some of its points or ids are in."""
    parts: dict[int, Any] = {}
    for item in getattr(request, name):
        shard = shard_of(item if isinstance(item, api.PointId) else item.id, num_shards)
        if shard not in parts:
            parts[shard] = _without(request, name)
        getattr(parts[shard], name).append(item)
    return parts


def _split_selected(request: Any, selector: str, num_shards: int) -> dict[int, Any]:
    """The same for selected points; a filter goes to every shard."""
    selected = getattr(request, selector)
    if selected.WhichOneof("points_selector_one_of") != "points":
        return dict.fromkeys(range(num_shards), request)
    parts: dict[int, Any] = {}
    for point_id in selected.points.ids:
        shard = shard_of(point_id, num_shards)
        if shard not in parts:
            parts[shard] = _without(request, selector)
        getattr(parts[shard], selector).points.ids.append(point_id)
    return parts


def _without(request: Message, name: str) -> Any:
    own = type(request)()
    own.CopyFrom(request)
    own.ClearField(name)
    return own
