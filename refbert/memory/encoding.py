"""Token ids and last-layer states of a teacher for many texts, computed while the caller stores those of earlier texts."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from refbert.memory.parallel import at_once, in_parallel
from refbert.passages import Text, by_length
from refbert.teacher import Teacher


def encode_ahead(
    teacher: Teacher, texts: Sequence[Text]
) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.float16]]]:
    """Yield (index, token ids, states) of each text once, shortest texts first, as `Teacher.encode_one_by_one` does.

    On a CPU each core has a part of the teacher's batch, so that no more is in memory than with one batch on all of them;
    elsewhere the next batch is encoded meanwhile.
    """
    workers = at_once(len(texts), teacher.device)
    batches = list(by_length(texts, max(1, teacher.config.batch // workers)))

    def encode(rows: list[int]) -> list[tuple[NDArray[np.int32], NDArray[np.float16]]]:
        return teacher.encode_texts([texts[row] for row in rows])

    for rows, encoded in zip(batches, in_parallel(encode, batches, workers), strict=True):
        for row, (token_ids, states) in zip(rows, encoded, strict=True):
            yield row, token_ids, states
