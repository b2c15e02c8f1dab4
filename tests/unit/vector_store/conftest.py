"""Small manifests and points, made without a store."""

import uuid
from collections.abc import Callable

import numpy as np
import pytest

from vector_store.schema import Manifest, Point, SparseVector


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        encoder="test", fingerprint="f1", tokenizer="t1", layer=3, text_tokens=6, tokens=6, encoder_dim=4, dim=4,
        words_dim=4, bm25_k1=1.2, bm25_b=0.75, bm25_average_tokens=20.0,
    )  # fmt: skip


@pytest.fixture
def make_point() -> Callable[..., Point]:
    def make(**changes: object) -> Point:
        random = np.random.default_rng(0)
        fields = {
            "id": str(uuid.UUID(int=7 << 64)),
            "states": random.standard_normal((5, 4)).astype(np.float16),
            "vector": random.standard_normal(4).astype(np.float32),
            "token_ids": np.array([101, 7, 70_000, 9, 102], np.int32),
            "keywords": SparseVector(np.array([7, 9], np.uint32), np.array([1.0, 0.5], np.float32)),
            "sentence": np.ones(4, np.float32),
            "text": "a tëxt",
            "source": "here",
            "document": "d1",
            "split": "train",
        }
        return Point(**{**fields, **changes})  # type: ignore[arg-type]

    return make
