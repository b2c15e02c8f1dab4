"""A real server for every test: the embedded one, or the Qdrant at QDRANT_URL (key in QDRANT_API_KEY)."""

import os
import uuid
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from vector_store.client import Client, connect
from vector_store.config import StoreConfig
from vector_store.schema import Manifest, Point, SparseVector
from vector_store.server.process import embedded_server
from vector_store.store import Store


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if url := os.environ.get("QDRANT_URL"):
        yield url
    else:
        with embedded_server(tmp_path_factory.mktemp("store"), rest_port=0) as url:
            yield url


@pytest.fixture
def config(server_url: str) -> StoreConfig:
    """A collection of its own for each test."""
    return StoreConfig(url=server_url, collection=f"test-{uuid.uuid4()}", lookup_deadline_ms=5000)


@pytest.fixture
def client(config: StoreConfig) -> Iterator[Client]:
    with connect(config, config.url) as client:
        yield client


@pytest.fixture
def store(client: Client, config: StoreConfig) -> Iterator[Store]:
    store = Store(client, config)
    yield store
    store.delete_collection()


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    return Manifest(
        encoder="test", fingerprint="f1", tokenizer="t1", layer=3, text_tokens=8, tokens=8, encoder_dim=4, dim=4,
        words_dim=4, bm25_k1=1.2, bm25_b=0.75, bm25_average_tokens=20.0,
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_points() -> Callable[..., list[Point]]:
    def make(num: int, seed: int = 0, per_document: int = 2) -> list[Point]:
        """Random points; every `per_document` share a document, every third is a test row, every fifth is a pair."""
        random = np.random.default_rng(seed)
        points = []
        for i in range(num):
            length = int(random.integers(1, 9))
            indices = np.unique(random.integers(0, 50, 6)).astype(np.uint32)
            points.append(
                Point(
                    id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{seed}/{i}")),
                    states=random.standard_normal((length, 4)).astype(np.float16),
                    token_ids=random.integers(0, 30_000, length).astype(np.int32),
                    keywords=SparseVector(indices, random.random(len(indices)).astype(np.float32) + 0.1),
                    sentence=random.standard_normal(4).astype(np.float32),
                    vector=random.standard_normal(4).astype(np.float32),
                    text=(f"text {i}", f"its second {i}") if i % 5 == 4 else f"text {i}",
                    source="made up",
                    document=f"d{i // per_document}",
                    split="test" if i % 3 == 0 else "train",
                )
            )
        return points

    return make
