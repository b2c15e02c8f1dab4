"""What a student of a shape takes: its numbers and bytes, by arithmetic alone.

A plan says them before torch is imported; tests hold them against the modules of `refbert.student`. A correction, and a word
table in a file of its own, are not counted.
"""

from typing import NamedTuple

from refbert.config import StudentConfig

POSITIONS, SEGMENTS = 512, 2
READOUT_HEADS, READOUT_WIDTH = 4, 128
"""`RefBertConfig`'s defaults, which no option of a run changes."""


class StudentSize(NamedTuple):
    """`numbers` that inference needs, and the `bytes` that they take: 4 for a parameter, 1 for one of a frozen table."""

    numbers: int
    bytes: int


def student_size(
    shape: StudentConfig,
    vocabulary: int,
    dim: int,
    reference_dim: int | None = None,
    labels: int | None = None,
    embedding_dim: int | None = None,
) -> StudentSize:
    """Count a student's numbers for a teacher's `vocabulary` and `dim`.

    `reference_dim` is the width of stored states, `embedding_dim` that of the teacher's token embeddings, where they are not
    `dim`; with `labels` there is a head.
    """
    width, wide, stored = shape.hidden_size, shape.intermediate_size, reference_dim or dim
    reading = [_reads(shape, layer) for layer in range(shape.num_hidden_layers)]
    narrow = shape.embedding_size or ((embedding_dim or dim) if shape.token_embeddings == "words" else None)
    table = vocabulary * (narrow or width)
    is_frozen = shape.token_embeddings == "words"
    parameters = 0 if is_frozen else table
    parameters += (narrow or 0) * width + (
        POSITIONS + SEGMENTS + 2
    ) * width  # a projection, positions, segments, the norm
    parameters += sum(_layer(shape, reads, width, wide, stored) for reads in reading)
    parameters += _linear(width, dim) + (
        stored if any(reading) else 0
    )  # into the teacher's space, and the null reference
    if shape.reference_readout and shape.reference_mode != "none":
        gates = 3 if shape.reference_gate else 2
        parameters += _linear(width, READOUT_WIDTH) + stored * READOUT_WIDTH + gates * READOUT_HEADS
    parameters += _linear(dim, labels) if labels else 0
    frozen = table if is_frozen else 0
    scales = 4 * (vocabulary + 1) if is_frozen else 0
    return StudentSize(parameters + frozen, 4 * parameters + frozen + scales)


def _reads(shape: StudentConfig, layer: int) -> bool:
    if shape.reference_mode == "none":
        return False
    if shape.reference_layers in ("first", "all"):
        return shape.reference_layers == "all" or layer == 0
    return layer in shape.reference_layers


def _layer(shape: StudentConfig, reads: bool, width: int, wide: int, stored: int) -> int:
    replaced = reads and shape.reference_mode == "replace"
    by_states = shape.reference_keys == "states"
    own = 2 + (not (replaced and by_states)) + (not replaced)  # query and output, keys, values
    of_states = (1 + by_states) if reads else 0
    gate = shape.num_attention_heads if reads and shape.reference_gate else 0
    feed_forward = _linear(width, wide) + _linear(wide, width)
    return own * _linear(width, width) + of_states * _linear(stored, width) + gate + feed_forward + 4 * width


def _linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs
