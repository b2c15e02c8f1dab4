"""The global part: what it learns of rows it was fitted on holds for others, however the rows come."""

import pytest
import torch
from torch.nn import functional as F

from refbert.global_part import GlobalPartOptions, Rows, fit_global_part

DIM, WORDS = 12, 8
LINEAR = GlobalPartOptions(landmarks=0)


def in_chunks(rows, size=100):
    return lambda: (Rows(*(column[start : start + size] for column in rows)) for start in range(0, len(rows[0]), size))


def some(rows, chosen):
    return Rows(*(column[chosen] for column in rows))


@pytest.fixture
def rows():
    """A teacher that adds to its student's vector what words say, and for each of 40 topics its own: 600 texts, 200 apart."""
    torch.manual_seed(0)
    topic = torch.randint(40, (800,))
    student = torch.randn(40, DIM)[topic] + 0.3 * torch.randn(800, DIM)
    words = F.normalize(torch.randn(40, WORDS)[topic] + 0.5 * torch.randn(800, WORDS), dim=-1)
    said = student + words @ torch.randn(WORDS, DIM) + 1.5 * torch.randn(40, DIM)[topic] + 0.5 * torch.randn(800, DIM)
    every = Rows(student, words, 7 * said)
    return some(every, slice(600)), some(every, slice(600, 800))


def similarity(said, rows):
    return float(F.cosine_similarity(said, rows.teacher, dim=-1).mean())


def test_each_part_comes_closer_to_the_teacher_on_texts_apart(rows):
    stored, apart = rows
    linear = fit_global_part(in_chunks(stored), LINEAR).part
    whole = fit_global_part(in_chunks(stored), GlobalPartOptions(landmarks=150, tau=0.5)).part
    alone = similarity(apart.student, apart)
    by_map = similarity(linear(apart.student, apart.words).base, apart)
    by_kernel = similarity(whole(apart.student, apart.words).base, apart)
    assert alone + 0.02 < by_map < by_kernel - 0.005


def test_residuals_are_of_fits_without_the_row_and_predict_the_error_on_texts_apart(rows):
    stored, apart = rows
    fitted = fit_global_part(in_chunks(stored), GlobalPartOptions(landmarks=150, tau=0.5))
    residual, (_, key) = fitted.leave_one_out(stored), fitted.linear_residual(stored)
    torch.testing.assert_close(key.norm(dim=1), torch.ones(600))
    norm = fitted.part.teacher_norm
    within = (stored.teacher / norm - fitted.part(stored.student, stored.words).base).norm(dim=1).mean()
    beyond = (apart.teacher / norm - fitted.part(apart.student, apart.words).base).norm(dim=1).mean()
    assert within < 0.9 * beyond
    assert float(residual.norm(dim=1).mean()) == pytest.approx(float(beyond), rel=0.08)


def test_chunks_of_any_size_give_the_same_part(rows):
    stored, apart = rows
    options = GlobalPartOptions(landmarks=50)
    said = [fit_global_part(in_chunks(stored, size), options).part(apart.student, apart.words) for size in (600, 37)]
    torch.testing.assert_close(said[0].base, said[1].base, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(said[0].key, said[1].key, atol=1e-4, rtol=1e-4)


def test_its_state_dict_is_all_that_an_answer_needs(rows):
    stored, apart = rows
    part = fit_global_part(in_chunks(stored), GlobalPartOptions(landmarks=50)).part
    copy = type(part)(DIM, WORDS, 50, part.tau)
    copy.load_state_dict(part.state_dict())
    torch.testing.assert_close(copy(apart.student, apart.words).base, part(apart.student, apart.words).base)


@pytest.mark.parametrize("count", [1, 2, 10, 30])
def test_few_rows_make_no_answer_much_worse_than_the_students_own(rows, count):
    stored, apart = rows
    part = fit_global_part(in_chunks(some(stored, slice(count)))).part
    assert similarity(part(apart.student, apart.words).base, apart) > similarity(apart.student, apart) - 0.02


def test_no_rows_and_nan_are_refused(rows):
    stored, _ = rows
    with pytest.raises(ValueError, match="no rows"):
        fit_global_part(lambda: iter(()))
    stored.teacher[5, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        fit_global_part(in_chunks(stored))
