"""Find the points that not every copy of their shard holds alike and, if asked, write them again.

A write that failed may be in some copies and not in others (Qdrant 1.18.3, write_consistency_factor over 1), and no server
makes them equal again. A node that is asked reads its own copy, where it has one, so each node's ids are read, and then every
point with consistency `all`, which answers with the points that all copies hold alike. Of unlike copies the one with most
payload fields is written. Knows nothing of what points mean.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby, islice

from vector_store.client import Client
from vector_store.codec import as_written
from vector_store.config import StoreConfig
from vector_store.errors import StoreUnavailable
from vector_store.protocol import api
from vector_store.store import Store, payload_fields, scroll

NUM_SHOWN = 10
"""Most differing points that are listed; all are counted."""

IDS_PER_PAGE = 1024
"""Ids that a node is asked for at once."""

NODE_S = 10.0
"""Time for a node to say how many points its copies hold; then it counts as away."""

OTHER_CONTENT = "its content differs between copies"


@dataclass
class CopyDifferences:
    """Points that copies do not hold alike. `missing` counts points by the address of the node that lacks them."""

    num_copies: int
    num_compared: int = 0
    num_differing: int = 0
    num_repaired: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    first_differing: list[tuple[str, str]] = field(default_factory=list)
    shard_counts: list[str] = field(default_factory=list)
    unread: str | None = None
    """Why the copies could not be compared, or not all of them."""

    @property
    def num_left(self) -> int:
        """Points that still differ."""
        return self.num_differing - self.num_repaired


def compare_copies(
    client: Client,
    config: StoreConfig,
    repair: bool = False,
    advance: Callable[[int], object] = lambda num_points: None,
) -> CopyDifferences:
    """Compare every copy of every point; with `repair`, write those that differ again and see that they are then alike.

    A node that is away does not raise: what it has is not compared, and `unread` says so. `advance` is called with numbers of
    points. A deleted point that a copy has kept is one that the others lack: it is written again.
    """
    store = Store(client, config)
    found = CopyDifferences(num_copies=store.parameters().replication_factor)
    if found.num_copies < 2:
        return found
    page = max(1, config.message_bytes // 4 // store.manifest().bytes_per_point())
    nodes = client.of_each_node()
    try:
        shards = _shards(nodes, config, found)
        points = _nodes_by_id(nodes, config)
        while some := dict(islice(points, page)):
            _compare_page(client, nodes, shards, config, some, found, repair)
            advance(len(some))
    except StoreUnavailable as error:
        found.unread = str(error)
    return found


def _compare_page(
    client: Client,
    nodes: list[Client],
    shards: list[set[int]],
    config: StoreConfig,
    page: dict[str, list[int]],
    found: CopyDifferences,
    repair: bool,
) -> None:
    """Compare the points of a page, given for each id the nodes that have it."""
    alike = {_name(point.id) for point in _whole(client, config, list(page), every_copy=True)}
    found.num_compared += len(page)
    differing = [name for name in page if name not in alike or len(page[name]) < len(nodes)]
    for name in differing:
        lacking = [nodes[number].url for number in _lacking(set(page[name]), shards, len(nodes))]
        found.num_differing += 1
        found.missing.update(lacking)
        if len(found.first_differing) < NUM_SHOWN:
            found.first_differing.append((name, f"missing at {', '.join(lacking)}" if lacking else OTHER_CONTENT))
    if not (repair and differing):
        return
    best: dict[str, api.RetrievedPoint] = {}
    for node in nodes:
        for point in _whole(node, config, differing):
            # A payload that lacks a field is one whose addition failed here.
            if (name := _name(point.id)) not in best or len(point.payload) > len(best[name].payload):
                best[name] = point
    for point in best.values():
        request = api.UpsertPoints(collection_name=config.collection, wait=True, points=[as_written(point)])
        client.call(client.points.Upsert, request, config.write_deadline_s)
    found.num_repaired += len(_whole(client, config, list(best), every_copy=True))


def _lacking(having: set[int], shards: list[set[int]], num_nodes: int) -> list[int]:
    """The nodes whose copy lacks a point that the nodes `having` answered with.

    A node without a copy of the point's shard answers as one of the copies does, so it is left out where it can be told:
    the shard is one that some node `having` the point has a copy of.
    """
    may_have = set().union(*(copies for copies in shards if copies & having))
    without = set(range(num_nodes)) - having
    return sorted(without & may_have or without)


def _nodes_by_id(nodes: list[Client], config: StoreConfig) -> Iterator[tuple[str, list[int]]]:
    """Every id that any node has, in the order of ids, with the nodes that have it."""

    def ids(number: int) -> Iterator[tuple[tuple[int, str], int]]:
        request = api.ScrollPoints(
            collection_name=config.collection, limit=IDS_PER_PAGE, with_payload=payload_fields(())
        )
        for page in scroll(nodes[number], request, config.write_deadline_s):
            yield from ((_order(point.id), number) for point in page)

    for (num, name), same in groupby(merge(*map(ids, range(len(nodes)))), key=lambda each: each[0]):
        yield name or str(num), [number for _, number in same]


def _whole(client: Client, config: StoreConfig, ids: list[str], every_copy: bool = False) -> list[api.RetrievedPoint]:
    request = api.GetPoints(
        collection_name=config.collection,
        ids=[api.PointId(num=int(name)) if name.isdecimal() else api.PointId(uuid=name) for name in ids],
        with_payload=api.WithPayloadSelector(enable=True),
        with_vectors=api.WithVectorsSelector(enable=True),
    )
    if every_copy:
        request.read_consistency.type = api.ReadConsistencyType.All
    return list(client.call(client.points.Get, request, config.write_deadline_s).result)


def _shards(nodes: list[Client], config: StoreConfig, found: CopyDifferences) -> list[set[int]]:
    """For each shard the numbers of the nodes that hold a copy; notes counts of points and nodes that are not asked."""
    counts, peers = [], set()
    shards: defaultdict[int, set[int]] = defaultdict(set)
    for number, node in enumerate(nodes):
        request = api.CollectionClusterInfoRequest(collection_name=config.collection)
        said = node.call(node.collections.CollectionClusterInfo, request, min(NODE_S, config.write_deadline_s))
        peers |= {said.peer_id, *(remote.peer_id for remote in said.remote_shards)}
        for local in said.local_shards:
            shards[local.shard_id].add(number)
            state = "" if local.state == api.ReplicaState.Active else f", {api.ReplicaState.Name(local.state)}"
            counts.append(f"shard {local.shard_id} at {node.url}: {local.points_count} points{state}")
    if len(peers) > len(nodes):
        found.unread = (
            f"{len(peers)} nodes hold copies, and the URL names {len(nodes)}; name every node, separated by commas"
        )
    found.shard_counts = sorted(counts)
    return list(shards.values())


def _order(point_id: api.PointId) -> tuple[int, str]:
    # Qdrant's order: numbers by value, then UUIDs.
    return (2**64, point_id.uuid) if point_id.uuid else (point_id.num, "")


def _name(point_id: api.PointId) -> str:
    return point_id.uuid or str(point_id.num)
