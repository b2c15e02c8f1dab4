"""A student whose token embeddings are its teacher's word table: one table, frozen, whole after every way through the disk."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from refbert.config import StudentConfig, TeacherConfig
from refbert.distillation import new_student
from refbert.folder import WORD_TABLE, fingerprint, has_word_table, load_model, load_word_table, save_student
from refbert.references import word_table
from refbert.student_layers import WordEmbedding
from refbert.teacher import load_teacher

SHAPE = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="module")
def teacher(tiny_teacher_path):
    return load_teacher(TeacherConfig(model=tiny_teacher_path, tokens=16))


@pytest.fixture(scope="module")
def student(teacher):
    shape = StudentConfig(**SHAPE, token_embeddings="words", embedding_size=40, reference_mode="none")
    return new_student(shape, teacher, seed=0).eval()


@pytest.fixture(scope="module")
def folder(student, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen") / "student"
    save_student(folder, student, teacher.tokenizer, word_table(teacher.static_vectors(), 40))
    return folder


def said(student, teacher):
    tokens = teacher.tokenizer(["a film that is far too long", "[PAD]"], return_tensors="pt", padding=True)
    with torch.inference_mode():
        return student(**tokens).sentence_embedding


def test_embeddings_are_the_table_without_its_weights_of_rarity_with_the_initialisers_spread(student, teacher):
    embedding = student.get_input_embeddings()
    assert isinstance(embedding, WordEmbedding)
    assert not list(embedding.parameters()), "nothing of it is trained"
    ids = torch.arange(1000, 1100)
    found = embedding(ids)
    wanted = word_table(teacher.static_vectors(), 40).vectors(ids.numpy()) / np.log1p(ids.numpy())[:, None]
    there = np.abs(wanted) > 1e-6
    ratio = found.numpy()[there] / wanted[there]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    hidden = student.embeddings.word_projection(embedding(torch.arange(student.config.vocab_size)))
    assert float(hidden.detach().std()) == pytest.approx(student.config.initializer_range, rel=0.01)


def test_the_folder_has_one_table_which_is_the_embeddings_too(folder, student, teacher):
    assert not (folder / WORD_TABLE).exists()
    assert has_word_table(folder)
    for found, wanted in zip(load_word_table(folder), word_table(teacher.static_vectors(), 40), strict=True):
        assert found.dtype == wanted.dtype
        assert np.array_equal(found, wanted)
    assert (folder / "model.safetensors").stat().st_size < 1.1 * student.config.vocab_size * (40 + 4) + 4 * 40_000
    assert len(fingerprint(folder)) == 12


def test_a_saved_student_says_the_same_however_it_is_loaded(folder, student, teacher):
    before = said(student, teacher)
    for load in (load_model, AutoModel.from_pretrained):
        loaded = load(folder).eval()
        assert loaded.get_input_embeddings().rows.dtype == torch.int8
        torch.testing.assert_close(said(loaded, teacher), before)


def test_what_inference_needs_is_counted_with_the_table(student):
    learned = sum(parameter.numel() for parameter in student.parameters())
    assert student.num_stored == learned + 40 * student.config.vocab_size
    assert (
        student.stored_bytes == 4 * learned + (40 + 4) * student.config.vocab_size + 4
    )  # a scale for each row, and the gain


def test_without_a_width_the_table_is_as_wide_as_the_teacher_and_other_beginnings_are_refused(teacher):
    shape = StudentConfig(**SHAPE, token_embeddings="words", reference_mode="none")
    assert new_student(shape, teacher, seed=0).get_input_embeddings().rows.shape[1] == teacher.dim
    with pytest.raises(
        ValueError, match=r"token_embeddings=words are the teacher's, frozen; set initial=teacher_embeddings"
    ):
        StudentConfig(**SHAPE, token_embeddings="words", initial="random")
