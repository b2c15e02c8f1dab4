"""Qdrant's Collections, Points, Snapshots and health services over the catalogue.

The interceptor answers UNIMPLEMENTED for every call that is not defined here, and makes a status of what the methods raise.
Opens no port and checks no key.
"""
# ruff: noqa: N802  (gRPC names the methods)

from collections.abc import Callable
from typing import TypeAlias

import grpc
from google.protobuf.message import Message
from qdrant_edge import (
    CountRequest,
    EdgeShard,
    Filter,
    QueryBatchRequest,
    QueryRequest,
    ScrollRequest,
    UpdateMode,
    UpdateOperation,
)

from vector_store.protocol import api
from vector_store.server import translate
from vector_store.server.catalogue import Catalogue, Collection
from vector_store.server.snapshots import Snapshots
from vector_store.server.status import invalid
from vector_store.server.wire import Packed, batch_results, retrieved_points, scored_points

TITLE = "vector_store embedded server"
API_VERSION = "1.20.0"
"""Qdrant release whose API this server follows; clients compare it with their own."""

Context: TypeAlias = grpc.ServicerContext


class Health(api.QdrantServicer):
    """Identifies the server. `commit` is its instance id, so that another server on its old port is not mistaken for it."""

    def __init__(self, instance: str) -> None:
        self._instance = instance

    def HealthCheck(self, request: api.HealthCheckRequest, context: Context) -> api.HealthCheckReply:
        """Title, version and instance id; needs no key, as in Qdrant."""
        return api.HealthCheckReply(title=TITLE, version=API_VERSION, commit=self._instance)


class Collections(api.CollectionsServicer):
    """Creates, describes, updates and deletes collections and their aliases."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def Create(self, request: api.CreateCollection, context: Context) -> api.CollectionOperationResponse:
        """Create an empty collection."""
        self._catalogue.create(request)
        return api.CollectionOperationResponse(result=True)

    def Update(self, request: api.UpdateCollection, context: Context) -> api.CollectionOperationResponse:
        """Merge metadata, optimizer and HNSW options; everything else is fixed when a collection is created."""
        self._catalogue.find(request.collection_name).update(request)
        return api.CollectionOperationResponse(result=True)

    def Delete(self, request: api.DeleteCollection, context: Context) -> api.CollectionOperationResponse:
        """Delete a collection and its files; False where there is none."""
        return api.CollectionOperationResponse(result=self._catalogue.delete(request.collection_name))

    def Get(self, request: api.GetCollectionInfoRequest, context: Context) -> api.GetCollectionInfoResponse:
        """Status, counts and settings of a collection, with its metadata."""
        collection = self._catalogue.find(request.collection_name)
        schedule = collection.index_schedule
        info = translate.collection_info(
            collection.settings,
            collection.read(EdgeShard.info),
            indexes=schedule.is_building or collection.wants_index(),
            error=schedule.error,
        )
        info.warnings.extend(api.CollectionWarning(message=warning) for warning in collection.warnings)
        return api.GetCollectionInfoResponse(result=info)

    def List(self, request: api.ListCollectionsRequest, context: Context) -> api.ListCollectionsResponse:
        """Names of all collections."""
        return api.ListCollectionsResponse(
            collections=[api.CollectionDescription(name=name) for name in self._catalogue.names()]
        )

    def CollectionExists(self, request: api.CollectionExistsRequest, context: Context) -> api.CollectionExistsResponse:
        """Whether a collection has the name, or an alias of this name."""
        return api.CollectionExistsResponse(
            result=api.CollectionExists(exists=request.collection_name in self._catalogue)
        )

    def UpdateAliases(self, request: api.ChangeAliases, context: Context) -> api.CollectionOperationResponse:
        """Create, rename and delete aliases: all actions or none."""
        self._catalogue.change_aliases(request.actions)
        return api.CollectionOperationResponse(result=True)

    def ListAliases(self, request: api.ListAliasesRequest, context: Context) -> api.ListAliasesResponse:
        """All aliases."""
        return self._aliases(lambda _: True)

    def ListCollectionAliases(
        self, request: api.ListCollectionAliasesRequest, context: Context
    ) -> api.ListAliasesResponse:
        """The aliases of one collection; an empty list where it does not exist."""
        return self._aliases(lambda collection: collection == request.collection_name)

    def _aliases(self, wanted: Callable[[str], bool]) -> api.ListAliasesResponse:
        return api.ListAliasesResponse(
            aliases=[
                api.AliasDescription(alias_name=alias, collection_name=collection)
                for alias, collection in self._catalogue.aliases.pairs()
                if wanted(collection)
            ]
        )


class SnapshotsService(api.SnapshotsServicer):
    """Creates, lists and deletes snapshots of single collections; they are restored while no server runs."""

    def __init__(self, catalogue: Catalogue, snapshots: Snapshots) -> None:
        self._catalogue = catalogue
        self._snapshots = snapshots

    def Create(self, request: api.CreateSnapshotRequest, context: Context) -> api.CreateSnapshotResponse:
        """Archive a collection as it is now."""
        collection = self._catalogue.find(request.collection_name)
        return api.CreateSnapshotResponse(snapshot_description=self._snapshots.create(collection))

    def List(self, request: api.ListSnapshotsRequest, context: Context) -> api.ListSnapshotsResponse:
        """The snapshots of a collection."""
        collection = self._catalogue.find(request.collection_name)
        return api.ListSnapshotsResponse(snapshot_descriptions=self._snapshots.of(collection))

    def Delete(self, request: api.DeleteSnapshotRequest, context: Context) -> api.DeleteSnapshotResponse:
        """Delete one snapshot."""
        self._snapshots.delete(self._catalogue.find(request.collection_name), request.snapshot_name)
        return api.DeleteSnapshotResponse()


class Points(api.PointsServicer):
    """Writes, reads and searches points. Every write is in the log before it is answered, whatever `wait` says."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def Upsert(self, request: api.UpsertPoints, context: Context) -> api.PointsOperationResponse:
        """Insert or replace whole points: all of them, or none where one is invalid."""
        collection = self._find(request)
        return _written(collection, _upsert(collection, request), request)

    def Delete(self, request: api.DeletePoints, context: Context) -> api.PointsOperationResponse:
        """Delete points by id or filter."""
        return _written(self._find(request), _delete(request.points), request)

    def SetPayload(self, request: api.SetPayloadPoints, context: Context) -> api.PointsOperationResponse:
        """Set some payload fields and keep the others."""
        return _written(self._find(request), _set_payload(request), request)

    def DeletePayload(self, request: api.DeletePayloadPoints, context: Context) -> api.PointsOperationResponse:
        """Delete some payload fields and keep the others."""
        return _written(self._find(request), _delete_payload(request), request)

    def UpdateBatch(self, request: api.UpdateBatchPoints, context: Context) -> api.UpdateBatchResponse:
        """Several writes in one call, in order: none of them where one is invalid."""
        collection = self._find(request)
        operations = [_in_batch(collection, given) for given in request.operations]
        written = zip(operations, request.operations, strict=True)
        return api.UpdateBatchResponse(result=[_written(collection, *each).result for each in written])

    def CreateFieldIndex(
        self, request: api.CreateFieldIndexCollection, context: Context
    ) -> api.PointsOperationResponse:
        """Index a payload field for filters."""
        operation = UpdateOperation.create_field_index(request.field_name, translate.index_schema(request))
        return _written(self._find(request), operation, request)

    def DeleteFieldIndex(
        self, request: api.DeleteFieldIndexCollection, context: Context
    ) -> api.PointsOperationResponse:
        """Delete the index of a payload field."""
        return _written(self._find(request), UpdateOperation.delete_field_index(request.field_name), request)

    def Get(self, request: api.GetPoints, context: Context) -> Packed:
        """Points by id; ids that do not exist are left out."""
        ids = [translate.point_id(i) for i in request.ids]
        payload = translate.payload_selector(request, default=False)
        vectors = translate.vector_selector(request)
        records = self._find(request).read(lambda shard: shard.retrieve(ids, payload, vectors))
        return Packed(retrieved_points(api.GetResponse.RESULT_FIELD_NUMBER, records), api.GetResponse())

    def Count(self, request: api.CountPoints, context: Context) -> api.CountResponse:
        """Number of points that match."""
        exact = request.exact if request.HasField("exact") else True
        count = CountRequest(exact=exact, filter=translate.point_filter(request))
        found = self._find(request).read(lambda shard: shard.count(count))
        return api.CountResponse(result=api.CountResult(count=found))

    def Scroll(self, request: api.ScrollPoints, context: Context) -> Packed:
        """A page of points by id, or by an indexed payload field."""
        scroll = ScrollRequest(
            offset=translate.point_id(request.offset) if request.HasField("offset") else None,
            limit=translate.limit(request),
            filter=translate.point_filter(request),
            with_payload=translate.payload_selector(request, default=True),
            with_vector=translate.vector_selector(request),
            order_by=translate.order_by(request.order_by) if request.HasField("order_by") else None,
        )
        records, next_offset = self._find(request).read(lambda shard: shard.scroll(scroll))
        response = api.ScrollResponse()
        if next_offset is not None:
            response.next_page_offset.CopyFrom(translate.point_id_message(next_offset))
        return Packed(retrieved_points(api.ScrollResponse.RESULT_FIELD_NUMBER, records), response)

    def Query(self, request: api.QueryPoints, context: Context) -> Packed:
        """The nearest points, optionally fused or filtered; without a query, points in the order of ids."""
        collection = self._find(request)
        query = translate.query_request(request, collection.kinds)
        found = collection.read(lambda shard: shard.query(query))
        return Packed(scored_points(api.QueryResponse.RESULT_FIELD_NUMBER, found), api.QueryResponse())

    def QueryBatch(self, request: api.QueryBatchPoints, context: Context) -> Packed:
        """Several queries in one call of the engine."""
        collection = self._find(request)
        queries: list[QueryRequest] = []
        for query in request.query_points:
            if query.collection_name not in ("", request.collection_name):
                raise invalid(f"batch on {request.collection_name!r} holds a query on {query.collection_name!r}")
            queries.append(translate.query_request(query, collection.kinds))
        answers = collection.read(lambda shard: shard.query_batch(QueryBatchRequest(queries)))
        return Packed(batch_results(answers), api.QueryBatchResponse())

    def _find(self, request: api.GetPoints) -> Collection:
        return self._catalogue.find(request.collection_name)


def _upsert(
    collection: Collection, request: api.UpsertPoints | api.PointsUpdateOperation.PointStructList
) -> UpdateOperation:
    points = translate.points(request.points, collection.kinds)
    mode = getattr(UpdateMode, api.UpdateMode.Name(request.update_mode))
    return UpdateOperation.upsert_points(points, translate.point_filter(request, "update_filter"), mode)


def _delete(selector: api.PointsSelector) -> UpdateOperation:
    selected = _selected(selector)
    if isinstance(selected, list):
        return UpdateOperation.delete_points(selected)
    return UpdateOperation.delete_points_by_filter(selected)


def _set_payload(request: api.SetPayloadPoints | api.PointsUpdateOperation.SetPayload) -> UpdateOperation:
    selected, fields = _selected(request.points_selector), translate.payload(request.payload)
    key = request.key or None
    if isinstance(selected, list):
        return UpdateOperation.set_payload(selected, fields, key)
    return UpdateOperation.set_payload_by_filter(selected, fields, key)


def _delete_payload(request: api.DeletePayloadPoints | api.PointsUpdateOperation.DeletePayload) -> UpdateOperation:
    selected, keys = _selected(request.points_selector), list(request.keys)
    if isinstance(selected, list):
        return UpdateOperation.delete_payload(selected, keys)
    return UpdateOperation.delete_payload_by_filter(selected, keys)


def _in_batch(collection: Collection, operation: api.PointsUpdateOperation) -> UpdateOperation:
    match operation.WhichOneof("operation"):
        case "upsert":
            return _upsert(collection, operation.upsert)
        case "delete_points":
            return _delete(operation.delete_points.points)
        case "set_payload":
            return _set_payload(operation.set_payload)
        case "delete_payload":
            return _delete_payload(operation.delete_payload)
        case _:
            raise invalid("an operation of the batch is empty")


def _written(collection: Collection, operation: UpdateOperation, request: Message) -> api.PointsOperationResponse:
    number = collection.write(operation, request)
    return api.PointsOperationResponse(result=api.UpdateResult(operation_id=number, status=api.UpdateStatus.Completed))


def _selected(selector: api.PointsSelector) -> list[translate.PointId] | Filter:
    match selector.WhichOneof("points_selector_one_of"):
        case "points":
            return [translate.point_id(i) for i in selector.points.ids]
        case "filter":
            return translate.engine_filter(selector.filter)
        case _:
            raise invalid("no points are selected; give ids or a filter")
