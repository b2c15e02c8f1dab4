"""Config of a memory and its client: address, limits, deadlines, cache, shards and copies. Imports no engine and no gRPC."""

from typing import Literal, Self

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, model_validator

EMBEDDED = "embedded"
MESSAGE_BYTES = 64 * 2**20

Datatype = Literal["float16", "int8"]


def nodes_in(url: str) -> tuple[str, ...]:
    """The addresses in a URL that may name several nodes, separated by commas; white space around them is ignored."""
    return tuple(node.strip() for node in url.split(","))


class StoreConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """The address of a memory, and the limits and settings of its client."""

    url: str = EMBEDDED
    """`embedded` starts a local server over the real engine; http(s)://host:6334 is a Qdrant gRPC address. Nodes of one
    cluster are separated by commas: processes are distributed over them, and fail over to the next."""
    collection: str = Field(default="references", min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    rest_port: int | None = Field(default=None, ge=0, le=65535)
    """Port for Qdrant's REST API beside gRPC's, on the embedded server that a job starts; 0 is any, by default there is none.
    Needs the extra `rest`."""
    api_key_env: str = "QDRANT_API_KEY"
    """Environment variable that holds the API key, if any."""
    lookup_deadline_ms: PositiveFloat = 1000.0
    """A look-up that takes longer degrades to a cached or the null reference."""
    write_deadline_s: PositiveFloat = 60.0
    """Longest time for one write with its retries; then the store counts as gone."""
    compression: bool = False
    """Accept compressed answers, for slow links: a Qdrant server (1.18.3) gzips every answer to whoever accepts that, and a
    look-up of 32 references then takes 55 ms of its processor instead of 9."""
    message_bytes: PositiveInt = MESSAGE_BYTES
    """Largest gRPC message accepted, on both sides."""
    upsert_bytes: PositiveInt = 3_500_000
    """Largest upsert; batches over about 5 MB time out."""
    upserts_in_flight: PositiveInt = 4
    """Most upserts in flight per writing process; more wait."""
    bulk_load: bool = True
    """Pause the HNSW index while a job loads points, and build it at the end."""
    index_deadline_s: PositiveFloat = 3600.0
    """Longest wait for the index after a load; the build goes on after that."""
    cache_bytes: PositiveInt = 64 * 2**20
    """Cache of decoded references per process: those chosen often are not fetched again, and they are used while the store is
    slow or gone."""
    shard_number: PositiveInt | None = None
    """Shards of a new collection, by default one per node of the cluster. Fixed at creation."""
    replication_factor: PositiveInt = Field(default=1, description="Copies of each shard, each on another node.")
    write_consistency_factor: PositiveInt = 1
    """Copies that must acknowledge a write; with fewer alive, writes fail."""
    read_consistency: PositiveInt | Literal["majority", "quorum", "all"] | None = None
    """Copies that are read and compared on every read: a number, or a share of all; by default one is read."""
    read_fan_out_factor: PositiveInt | None = None
    """Further copies that are read at the same time; the first response is used: steadier latency, more work."""
    max_document_frequency: PositiveInt = 10_000
    """Tokens in more points than this are left out of `keywords` queries, so that a look-up's cost does not grow with the
    collection. Takes effect when term statistics are published, after a load."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The addresses in `url`: several where they are nodes of one cluster."""
        return nodes_in(self.url)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.url != EMBEDDED and not all(node.startswith(("http://", "https://")) for node in self.nodes):
            raise ValueError(f"store.url={self.url!r} is neither `embedded` nor http(s)://host:port")
        if self.url != EMBEDDED and self.rest_port is not None:
            raise ValueError(
                f"store.rest_port={self.rest_port} is for store.url=embedded, and {self.url} is served already; leave it out"
            )
        more = {"shard_number": self.shard_number or 1, "replication_factor": self.replication_factor}
        for name, value in more.items():
            if self.url == EMBEDDED and value > 1:
                raise ValueError(
                    f"store.{name}={value} needs a Qdrant cluster, and store.url=embedded is one server with one shard; leave "
                    "it out, or set store.url to the cluster's nodes"
                )
        copies = {
            "write_consistency_factor": self.write_consistency_factor,
            "read_consistency": self.read_consistency if isinstance(self.read_consistency, int) else 1,
            "read_fan_out_factor": 1 + (self.read_fan_out_factor or 0),
        }
        for name, wanted in copies.items():
            if wanted > self.replication_factor:
                raise ValueError(
                    f"store.{name}={getattr(self, name)} needs {wanted} copies of each shard, replication_factor is "
                    f"{self.replication_factor}; lower the one or raise the other"
                )
        if self.upsert_bytes >= self.message_bytes:
            raise ValueError(f"upsert_bytes={self.upsert_bytes} is not below message_bytes={self.message_bytes}")
        return self
