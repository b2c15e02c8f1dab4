"""Initialise a student from its teacher's token embeddings, or from the embeddings and layers of a BERT teacher.

Knows the modules of the student and of a Hugging Face BERT. Trains nothing.
"""

from typing import Any

import torch
from torch import Tensor, nn

from refbert.references import word_table
from refbert.student import RefBertModel
from refbert.student_layers import Layer, WordEmbedding


@torch.no_grad()
def start_from_teacher_embeddings(student: RefBertModel, static_vectors: Tensor) -> None:
    """Set the token embeddings to the teacher's (vocabulary, dim), projected on their first principal components.

    There are as many components as the student's table is wide. Their standard deviation is scaled to the initialiser's. A
    student as wide as its teacher, or wider, gets the teacher's embeddings rotated and padded with zeros. The projection of a
    factorised table starts with random orthonormal columns, so that every hidden unit gets its share. Raises ValueError where
    the vocabularies differ.
    """
    if len(static_vectors) != student.config.vocab_size:
        raise ValueError(
            f"the teacher has {len(static_vectors)} tokens, the student {student.config.vocab_size}: not one tokenizer"
        )
    embedding = student.embeddings.word_embeddings
    if isinstance(embedding, WordEmbedding):
        _start_from_words(student, embedding, static_vectors)
        return
    assert isinstance(embedding, nn.Embedding)
    table = embedding.weight
    centred = static_vectors - static_vectors.mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
    width = min(table.shape[1], centred.shape[1])
    projected = centred @ directions.flip(1)[:, :width]
    table.zero_()
    table[:, :width] = projected * (student.config.initializer_range / projected.std())
    if (project := student.embeddings.word_projection) is not None:
        nn.init.orthogonal_(project.weight)
        table *= student.config.initializer_range / project(table).std()
    table[student.config.pad_token_id].zero_()


def _start_from_words(student: RefBertModel, embedding: WordEmbedding, static_vectors: Tensor) -> None:
    """Set frozen embeddings to the teacher's word table; hidden units get the initialiser's spread."""
    table = word_table(static_vectors.numpy(), embedding.rows.shape[1])
    embedding.rows.copy_(torch.from_numpy(table.rows))
    embedding.scales.copy_(torch.from_numpy(table.scales))
    embedding.gain.fill_(1.0)
    project = student.embeddings.word_projection
    assert project is not None
    nn.init.orthogonal_(project.weight)
    every = torch.arange(len(static_vectors))
    embedding.gain.fill_(float(student.config.initializer_range / project(embedding(every)).std()))


@torch.no_grad()
def start_from_teacher_layers(student: RefBertModel, teacher: Any) -> None:
    """Copy a BERT teacher's embeddings and every n-th of its layers, the last one included (TinyBERT's g(m) = n m).

    `teacher` is a Hugging Face BERT without a head. The projection into the teacher's space starts as the identity. Modules
    that read references are left unchanged. Raises ValueError, which names the differences, where the teacher is no BERT of the
    student's widths.
    """
    ours, theirs = student.config, teacher.config
    wanted = {
        "model_type": ("bert", theirs.model_type),
        **{
            name: (getattr(theirs, name, None), getattr(ours, name))
            for name in ("hidden_size", "num_attention_heads", "intermediate_size")
        },
        "reference_mode": ("concat or none", "replace" if ours.reference_mode == "replace" else "concat or none"),
    }
    if differing := [f"{name}={found}, wanted {want}" for name, (want, found) in wanted.items() if found != want]:
        raise ValueError("its layers do not fit the student: " + "; ".join(differing))
    embeddings, apart = student.embeddings, teacher.embeddings
    assert isinstance(embeddings.word_embeddings, nn.Embedding)
    if embeddings.word_projection is None:
        embeddings.word_embeddings.weight.copy_(apart.word_embeddings.weight)
    else:  # the best approximation of the narrow table's rank
        left, spread, right = torch.linalg.svd(apart.word_embeddings.weight.float(), full_matrices=False)
        rank = embeddings.word_embeddings.weight.shape[1]
        embeddings.word_embeddings.weight.copy_(left[:, :rank] * spread[:rank].sqrt())
        embeddings.word_projection.weight.copy_((spread[:rank].sqrt()[:, None] * right[:rank]).T)
    positions = embeddings.position_embeddings.weight
    rows = min(len(positions), len(apart.position_embeddings.weight))
    positions[:rows] = apart.position_embeddings.weight[:rows]
    segments = embeddings.token_type_embeddings.weight
    rows = min(len(segments), len(apart.token_type_embeddings.weight))
    segments[:rows] = apart.token_type_embeddings.weight[:rows]
    embeddings.norm.load_state_dict(apart.LayerNorm.state_dict())
    every, last = len(teacher.encoder.layer), len(student.layers)
    for number, layer in enumerate(student.layers, 1):
        assert isinstance(layer, Layer)
        source = teacher.encoder.layer[number * every // last - 1]
        attention = source.attention
        for module, origin in (
            (layer.attention.query, attention.self.query),
            (layer.attention.key, attention.self.key),
            (layer.attention.value, attention.self.value),
            (layer.attention.output, attention.output.dense),
            (layer.attention_norm, attention.output.LayerNorm),
            (layer.widen, source.intermediate.dense),
            (layer.narrow, source.output.dense),
            (layer.norm, source.output.LayerNorm),
        ):
            assert module is not None
            module.load_state_dict(origin.state_dict())
    nn.init.eye_(student.projection.weight)
    nn.init.zeros_(student.projection.bias)
