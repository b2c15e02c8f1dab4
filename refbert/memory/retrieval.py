"""How references are looked up: the protocol of a neighbour source, and the retriever of a criterion.

A built-in criterion opens the `Retriever` of `vector_store`; any other criterion is the user's own, imported by its dotted
path.
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast, get_args

from refbert.errors import InputError
from refbert.memory.texts import ReferenceTexts
from vector_store.config import StoreConfig
from vector_store.schema import STATES_ALONE, Choice, Criterion, Neighbours, Parts, PointKeys, Query

if TYPE_CHECKING:  # its import needs gRPC, which a student without references does not
    from vector_store.client import Client


class NeighbourSource(Protocol):
    """What a criterion must offer: the built-in retriever, or a user's own."""

    counts: dict[Any, int]  # queries answered, by rung of the degrade ladder
    lookup_ms: float  # how long the last batch took

    def neighbours(self, queries: Sequence[Query]) -> Neighbours:
        """Return the best points for each query."""

    def neighbours_and_points(self, queries: Sequence[Query]) -> tuple[Neighbours, Neighbours]:
        """Return the best points for each query, and the points stored under the queries' own ids."""

    def choices(self, queries: Sequence[Query]) -> list[list[Choice]]:
        """Return which points are the best for each query, without reading them: what a plan keeps."""

    def planned(
        self, choices: Sequence[Sequence[Choice]], own_ids: Sequence[str] = ()
    ) -> tuple[Neighbours, Neighbours]:
        """Return the neighbours that were chosen earlier, and the points stored under `own_ids`."""


def open_retriever(
    client: "Client",
    store: StoreConfig,
    texts: ReferenceTexts,
    criterion: str,
    read: Parts = STATES_ALONE,
    patience_s: float = 0.0,
    keys: PointKeys | None = None,
) -> NeighbourSource:
    """Open one process's retriever under a criterion. Raises InputError for a dotted path that is no criterion.

    A built-in one waits up to `patience_s` for a store that has gone away, before look-ups degrade, and has the `keys` of
    neighbours made, once for each, where a reader weighs by them alone.
    """
    from vector_store.retriever import Retriever

    if criterion in get_args(Criterion):
        built_in, references = cast(Criterion, criterion), texts.references
        return Retriever(
            client, store, texts.manifest, built_in, references.exclude_splits, read, count=references.count,
            patience_s=patience_s, keys=keys,
        )  # fmt: skip
    return _import_criterion(criterion)(client, store, texts.manifest)


def _import_criterion(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"references.criterion={path} cannot be imported ({error}); give module.function, with its module on the path"
        ) from None
