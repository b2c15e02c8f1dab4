"""Fidelity metrics at their limits: a perfect student, a blind one, and one in between."""

import math

import pytest
import torch

from refbert.metrics import fidelity, mutual_information, retrieval_top1


def vectors(texts: int, seed: int, dim: int = 64) -> torch.Tensor:
    return torch.randn(texts, dim, generator=torch.Generator().manual_seed(seed))


def test_a_perfect_student_reaches_the_bound_of_its_pool():
    teacher = vectors(200, 0)
    assert mutual_information(teacher * 3, teacher, pool=100) == pytest.approx(math.log(100), abs=1e-3)
    assert retrieval_top1(teacher * 3, teacher) == 1


def test_unrelated_vectors_share_no_information():
    assert mutual_information(vectors(400, 1), vectors(400, 2), pool=200, temperature=1.0) == pytest.approx(0, abs=0.05)
    assert retrieval_top1(vectors(400, 1), vectors(400, 2)) < 0.05


def test_more_noise_gives_less_information():
    teacher = vectors(300, 0)
    bounds = [mutual_information(teacher + noise * vectors(300, 9), teacher, pool=300) for noise in (0.5, 2, 8)]
    assert bounds[0] > bounds[1] > bounds[2]


def test_a_pool_larger_than_the_texts_is_cut_to_their_number():
    teacher = vectors(50, 0)
    assert mutual_information(teacher, teacher, pool=1000) == pytest.approx(math.log(50), abs=1e-3)


def test_fidelity_passes_on_the_error_and_computes_the_other_metrics():
    teacher = vectors(20, 0)
    report = fidelity(0.25, -teacher, teacher, pool=20)
    assert report.state_mse == 0.25
    assert report.sentence_cosine == pytest.approx(-1)
    assert report.retrieval_top1 == 0
