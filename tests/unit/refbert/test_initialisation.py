"""Initialisation of a student from its teacher."""

import pytest
import torch

from refbert.config import StudentConfig, TeacherConfig
from refbert.distillation import new_student
from refbert.errors import InputError
from refbert.initialisation import start_from_teacher_embeddings
from refbert.student import RefBertModel
from refbert.student_config import RefBertConfig
from refbert.teacher import load_teacher, tokenize

VOCABULARY = 200
TEXTS = ["a film", "the film is far too long, and so is this text"]


@pytest.mark.parametrize("embedding_size", [None, 20])
def test_teacher_embeddings_keep_their_neighbourhoods(embedding_size):
    student = RefBertModel(
        RefBertConfig(
            vocab_size=VOCABULARY, hidden_size=24, embedding_size=embedding_size, num_attention_heads=4, dim=32
        )
    )
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(VOCABULARY, 32, generator=generator) * torch.logspace(0, -2, 32)
    start_from_teacher_embeddings(student, table)
    ours = student.embeddings.word_embeddings.weight[1:].detach()
    if embedding_size:
        ours = student.embeddings.word_projection(ours).detach()
    assert ours.shape[1] == 24
    assert ours.std() == pytest.approx(student.config.initializer_range, rel=0.05)
    wanted = torch.cdist(table[1:], table[1:]).flatten()
    got = torch.cdist(ours, ours).flatten()
    assert torch.corrcoef(torch.stack([wanted, got]))[0, 1] > 0.99
    with pytest.raises(ValueError, match="not one tokenizer"):
        start_from_teacher_embeddings(student, table[:-1])


def student_of(tiny_teacher_path, **options):
    teacher = load_teacher(TeacherConfig(model=tiny_teacher_path, tokens=16))
    given = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    given |= {"initial": "teacher_layers", "token_embeddings": "learned"}
    return teacher, new_student(StudentConfig(**(given | options)), teacher, seed=0).eval()


@torch.inference_mode()
def test_a_student_with_all_of_its_teachers_layers_gives_the_teachers_states(tiny_teacher_path):
    teacher, student = student_of(tiny_teacher_path, reference_mode="none")
    ids, mask, segments = tokenize(teacher.tokenizer, TEXTS, 16)
    said = student(ids, mask, token_type_ids=segments).projected_states
    taught = teacher.encode(ids, mask, token_type_ids=segments).states
    torch.testing.assert_close(said[mask.bool()], taught[mask.bool()], atol=1e-5, rtol=1e-5)


def test_a_student_with_fewer_layers_has_every_nth_of_the_teachers(tiny_teacher_path):
    teacher, student = student_of(tiny_teacher_path, num_hidden_layers=1)
    last = teacher.model.base_model.encoder.layer[1]
    assert torch.equal(student.layers[0].widen.weight, last.intermediate.dense.weight)
    assert torch.equal(student.layers[0].attention.query.bias, last.attention.self.query.bias)


def test_a_factorised_table_is_the_best_approximation_of_its_rank(tiny_teacher_path):
    teacher, student = student_of(tiny_teacher_path, embedding_size=16)
    words = teacher.model.base_model.embeddings.word_embeddings.weight
    ours = student.embeddings.word_projection(student.embeddings.word_embeddings.weight)
    lost = torch.linalg.svdvals(words)[16:].square().sum()
    torch.testing.assert_close((words - ours).square().sum(), lost, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 24}, "hidden_size=24, wanted 48"),
        ({"num_attention_heads": 2}, "num_attention_heads=2, wanted 4"),
        ({"reference_mode": "replace"}, "reference_mode=replace"),
    ],
)
def test_a_student_of_another_shape_is_refused_in_one_line(tiny_teacher_path, options, message):
    with pytest.raises(InputError, match=message):
        student_of(tiny_teacher_path, **options)
