"""Where the memory lives and how patiently it is asked. No engine and no gRPC is imported here."""

from typing import Literal, Self

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, model_validator

EMBEDDED = "embedded"
MESSAGE_BYTES = 64 * 2**20

Datatype = Literal["float16", "int8"]


class StoreConfig(BaseModel, frozen=True, extra="forbid"):
    """The address of a memory and the limits of one conversation with it."""

    url: str = Field(
        default=EMBEDDED,
        description="`embedded` starts a local server over the real engine; http(s)://host:6334 is a Qdrant gRPC address.",
    )
    collection: str = Field(default="references", min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    api_key_env: str = Field(
        default="QDRANT_API_KEY", description="Environment variable that holds the API key, if any."
    )
    lookup_deadline_ms: PositiveFloat = Field(
        default=1000.0, description="A look-up that takes longer degrades to a cached or the null reference."
    )
    write_deadline_s: PositiveFloat = Field(
        default=60.0, description="One write with its retries, then the store counts as gone."
    )
    message_bytes: PositiveInt = Field(
        default=MESSAGE_BYTES, description="Largest gRPC message accepted, on both sides."
    )
    upsert_bytes: PositiveInt = Field(
        default=3_500_000, description="Largest upsert; batches over about 5 MB time out."
    )
    upserts_in_flight: PositiveInt = Field(
        default=4, description="Upserts on their way at once, per writing process; more wait."
    )
    bulk_load: bool = Field(
        default=True, description="Pause the HNSW index while a job loads, and build it at the end."
    )
    index_deadline_s: PositiveFloat = Field(
        default=3600.0, description="Longest wait for the index after a load; it goes on building after that."
    )
    cache_bytes: PositiveInt = Field(
        default=64 * 2**20,
        description="References kept per process, decoded: those chosen often are not fetched again, and they answer "
        "while the store is slow or gone.",
    )
    max_document_frequency: PositiveInt = Field(
        default=10_000,
        description="Tokens in more points than this are left out of `keywords` queries, so that a look-up's cost does not "
        "grow with the collection. Applied when term statistics are published, after a load.",
    )

    @model_validator(mode="after")
    def _url_is_known(self) -> Self:
        if self.url != EMBEDDED and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"store.url={self.url!r} is neither `embedded` nor http(s)://host:port")
        if self.upsert_bytes >= self.message_bytes:
            raise ValueError(f"upsert_bytes={self.upsert_bytes} is not below message_bytes={self.message_bytes}")
        return self
