"""A student's size by arithmetic, against its modules."""

from itertools import cycle, product
from types import SimpleNamespace

import torch

from refbert.config import StudentConfig
from refbert.distillation import new_student
from refbert.student_size import student_size

SHAPE = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
TABLES = [
    {"token_embeddings": "learned"},
    {"token_embeddings": "learned", "embedding_size": 16},
    {"token_embeddings": "words"},
    {"token_embeddings": "words", "embedding_size": 20},
]
READING = [
    {"reference_mode": mode, "reference_keys": keys, "reference_layers": layers}
    for mode, keys, layers in product(("concat", "replace", "none"), ("states", "embedding"), ("all", "first", (0, 2)))
]
SHAPES = [
    *(SHAPE | table | reading for table, reading in product(TABLES, READING)),
    *(SHAPE | {"reference_mode": "concat", "reference_gate": True, "reference_readout": out} for out in (True, False)),
    SHAPE | {"reference_mode": "concat", "reference_readout": False},
    {},
]


OF = [(labels, reference_dim) for labels in (None, 3) for reference_dim in (None, 20)]


def test_the_size_of_every_shape_is_that_of_its_modules():
    for shape, (labels, reference_dim) in zip(SHAPES, cycle(OF), strict=False):
        teacher = teacher_with(labels)
        with torch.device("meta"):
            random = StudentConfig(**shape).model_copy(update={"initial": "random"})
            wanted = new_student(random, teacher, 0, reference_dim)
        found = student_size(StudentConfig(**shape), 300, 32, reference_dim, labels, teacher.embedding_dim)
        assert found == (wanted.num_stored, wanted.stored_bytes), (shape, labels, reference_dim)


def teacher_with(labels):
    of = {"vocab_size": 300, "num_labels": labels}
    return SimpleNamespace(
        model=SimpleNamespace(config=SimpleNamespace(**of)),
        config=SimpleNamespace(head="classification" if labels else "none"),
        tokenizer=SimpleNamespace(pad_token_id=0),
        pooling="mean",
        dim=32,
        embedding_dim=24,
    )
