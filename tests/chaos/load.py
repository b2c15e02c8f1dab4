"""The load of the fault tests: references made from their number alone, and a writer process that journals what was stored.

    python tests/chaos/load.py URL JOURNAL --numbers 0 20000 [--batch 16]

A number's id is in the journal only after `Store.upsert` has returned for it. A writer that finds a journal goes on
where it ends: it believes what the store acknowledged and does not ask again.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vector_store import schema
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.schema import Manifest, Point, SparseVector
from vector_store.store import Store

REPOSITORY = Path(__file__).parents[2]
FINGERPRINT = "f1"
VOCABULARY = 5000
ID_LENGTH = 36


def manifest(tokens: int = 4, dim: int = 16) -> Manifest:
    """Of a collection with small states and a dense index."""
    return Manifest(
        encoder="chaos", fingerprint=FINGERPRINT, tokenizer="t1", layer=1, text_tokens=tokens, tokens=tokens,
        encoder_dim=dim, dim=dim, words_dim=dim, bm25_k1=1.2, bm25_b=0.75, bm25_average_tokens=20.0,
    )  # fmt: skip


def text(number: int) -> str:
    return f"reference {number}"


def point_id(number: int) -> str:
    return schema.point_id(FINGERPRINT, schema.parts(text(number)))


def make_point(number: int, manifest: Manifest) -> Point:
    """The same point for the same number, in every process."""
    random = np.random.default_rng(number)
    length = int(random.integers(1, manifest.tokens + 1))
    indices = np.unique(random.integers(0, VOCABULARY, 6)).astype(np.uint32)
    return Point(
        id=point_id(number),
        states=random.standard_normal((length, manifest.dim)).astype(np.float16),
        token_ids=random.integers(0, VOCABULARY, length).astype(np.int32),
        keywords=SparseVector(indices, random.random(len(indices)).astype(np.float32) + 0.1),
        sentence=random.standard_normal(manifest.words_dim).astype(np.float32),
        vector=random.standard_normal(manifest.encoder_dim).astype(np.float32),
        text=text(number),
        source="made up",
        document=f"d{number // 2}",
        split="train",
    )


def acknowledged(journals: Iterable[Path]) -> set[str]:
    """Ids that some writer was told are stored."""
    return {line for journal in journals if journal.exists() for line in journal.read_text().split("\n")[:-1]}


def num_acknowledged(journals: Iterable[Path]) -> int:
    """Lines of the journals, by their size: cheap enough to be watched."""
    return sum(journal.stat().st_size for journal in journals if journal.exists()) // (ID_LENGTH + 1)


def start_writer(
    url: str, journal: Path, numbers: tuple[int, int], *, batch: int = 16, **config: float
) -> subprocess.Popen:
    """A writer of numbers first to last - 1 as a process of its own; `config` is its StoreConfig's."""
    command = [sys.executable, __file__, url, str(journal), "--numbers", *map(str, numbers), "--batch", str(batch)]
    command += ["--config", StoreConfig(url=url, **config).model_dump_json()]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with open(journal.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def write(url: str, journal: Path, numbers: range, batch: int, config: StoreConfig) -> None:
    """Upsert the numbers that the journal lacks, batch by batch; an id is journalled when its batch is acknowledged."""
    done = acknowledged([journal])
    left = [number for number in numbers if point_id(number) not in done]
    with connect(config, url) as client, open(journal, "ab", buffering=0) as lines:
        store = Store(client, config)
        described = store.manifest()
        for start in range(0, len(left), batch):
            points = [make_point(number, described) for number in left[start : start + batch]]
            assert store.upsert(points) == len(points)
            lines.write("".join(f"{point.id}\n" for point in points).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("journal", type=Path)
    parser.add_argument("--numbers", type=int, nargs=2, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--config", type=StoreConfig.model_validate_json, default=StoreConfig())
    given = parser.parse_args()
    write(given.url, given.journal, range(*given.numbers), given.batch, given.config)


if __name__ == "__main__":
    main()
