"""Compare two memories: their manifests (but for the encoder's name), the points that only one has, and those that differ.

Both are read once, in the order of ids, with one page of each in RAM. Blobs and further metadata are not compared. Never
writes.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from vector_store.schema import Point, SparseVector
from vector_store.store import Store

NUM_SHOWN = 10
"""Most ids that are listed for each kind of difference; all are counted."""


@dataclass
class Comparison:
    """Differences between A and B. `state_difference` is the largest absolute one between states of equal id and shape."""

    manifest_fields: list[str]
    num_equal: int = 0
    num_only_a: int = 0
    num_only_b: int = 0
    num_differing: int = 0
    fields: Counter[str] = field(default_factory=Counter)
    state_difference: float = 0.0
    first_only_a: list[str] = field(default_factory=list)
    first_only_b: list[str] = field(default_factory=list)
    first_differing: list[str] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        """Whether the two hold the same points under the same manifest."""
        return not (self.manifest_fields or self.num_only_a or self.num_only_b or self.num_differing)


def compare(a: Store, b: Store, advance: Callable[[int], object] = lambda num_points: None) -> Comparison:
    """Compare every point of A with that of B; `advance` is called with 1 after each point of A.

    NaN equals NaN. InvalidPoint where a point cannot be decoded.
    """
    found = Comparison(a.manifest().differing(b.manifest()))
    for point_a, point_b in _side_by_side(chain.from_iterable(a.pages()), chain.from_iterable(b.pages())):
        if point_a and point_b:
            _compare_points(point_a, point_b, found)
        elif point_a:
            found.num_only_a += 1
            _remember(found.first_only_a, point_a)
        elif point_b:
            found.num_only_b += 1
            _remember(found.first_only_b, point_b)
        if point_a:
            advance(1)
    return found


def _side_by_side(a: Iterator[Point], b: Iterator[Point]) -> Iterator[tuple[Point | None, Point | None]]:
    """Merge two streams in the order of ids: for each id the point of A and that of B, None where there is none."""
    point_a, point_b = next(a, None), next(b, None)
    while point_a or point_b:
        takes_a = point_a is not None and (point_b is None or _order(point_a) <= _order(point_b))
        takes_b = point_b is not None and (point_a is None or _order(point_b) <= _order(point_a))
        yield point_a if takes_a else None, point_b if takes_b else None
        point_a = next(a, None) if takes_a else point_a
        point_b = next(b, None) if takes_b else point_b


def _order(point: Point) -> tuple[int, str]:
    # Qdrant's order: numbers by value, then UUIDs by value, which for the canonical form is the order of the text.
    return (int(point.id), "") if point.id.isdecimal() else (2**64, point.id)


def _remember(ids: list[str], point: Point) -> None:
    if len(ids) < NUM_SHOWN:
        ids.append(point.id)


def _compare_points(a: Point, b: Point, found: Comparison) -> None:
    differing = [name for name in ("text", "source", "document", "split") if getattr(a, name) != getattr(b, name)]
    if not _same(a.vector, b.vector):
        differing.append("vector")
    differing += [
        f"residual of {student}"
        for student in sorted({*a.residuals, *b.residuals})
        if not _same_or_none(a.residuals.get(student), b.residuals.get(student))
    ]
    if not _same_or_none(a.states, b.states):
        differing.append("states")
        if a.states is not None and b.states is not None and a.states.shape == b.states.shape:
            difference = np.abs(a.states.astype(np.float32) - b.states.astype(np.float32))
            # A NaN on one side counts as infinitely different.
            largest = float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max())
            found.state_difference = max(found.state_difference, largest)
    if not np.array_equal(a.token_ids, b.token_ids):
        differing.append("token_ids")
    if not all(_same(x, y) for x, y in zip(_sorted(a.keywords), _sorted(b.keywords), strict=True)):
        differing.append("keywords")
    if not _same_or_none(a.sentence, b.sentence):
        differing.append("sentence")
    if differing:
        found.num_differing += 1
        found.fields.update(differing)
        _remember(found.first_differing, a)
    else:
        found.num_equal += 1


def _same(a: NDArray, b: NDArray) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def _same_or_none(a: NDArray | None, b: NDArray | None) -> bool:
    return a is b if a is None or b is None else _same(a, b)


def _sorted(vector: SparseVector) -> SparseVector:
    order = np.argsort(vector.indices)  # stores may hand a sparse vector's coordinates out in any order
    return SparseVector(vector.indices[order], vector.values[order])
