"""Ridge regression from moments against the textbook's formula and against really leaving a row out."""

import pytest
import torch

from refbert.ridge import Moments, best_penalty, fit_ridge


@pytest.fixture
def rows():
    torch.manual_seed(0)
    features = torch.randn(40, 6, dtype=torch.float64) + 3
    return features, features @ torch.randn(6, 2, dtype=torch.float64) + 5 + torch.randn(40, 2, dtype=torch.float64)


def moments_of(features, targets, chunk=1000):
    moments = Moments(features.shape[1], targets.shape[1])
    for start in range(0, len(features), chunk):
        moments.add(features[start : start + chunk], targets[start : start + chunk])
    return moments


def test_the_fit_is_that_of_the_closed_form_with_a_free_intercept(rows):
    features, targets = rows
    fit = fit_ridge(moments_of(features, targets), penalty=2.0)
    centred, wanted = features - features.mean(0), targets - targets.mean(0)
    weight = torch.linalg.solve(centred.T @ centred + 2 * torch.eye(6), centred.T @ wanted)
    torch.testing.assert_close(fit.weight, weight)
    torch.testing.assert_close(fit.predict(features).mean(0), targets.mean(0))


def test_chunks_of_any_size_give_the_same_fit(rows):
    whole, pieces = (fit_ridge(moments_of(*rows, chunk), 1.0) for chunk in (1000, 7))
    torch.testing.assert_close(whole.weight, pieces.weight)
    torch.testing.assert_close(whole.inverse, pieces.inverse)


def test_a_leave_one_out_residual_is_that_of_a_fit_without_the_row(rows):
    features, targets = rows
    found = fit_ridge(moments_of(features, targets), 1.0).leave_one_out(features, targets)
    for row in (0, 17, 39):
        rest = torch.arange(40) != row
        without = fit_ridge(moments_of(features[rest], targets[rest]), 1.0)
        torch.testing.assert_close(found[row], (targets - without.predict(features))[row], rtol=1e-9, atol=1e-9)


def test_the_best_penalty_predicts_left_out_rows_best(rows):
    features, _ = rows
    noise = torch.randn(40, 2, dtype=torch.float64)
    moments = moments_of(features, noise)
    assert best_penalty(moments, [(features, noise)], (1e-3, 1e6)) == 1e6
    linear = features @ torch.ones(6, 2, dtype=torch.float64)
    assert best_penalty(moments_of(features, linear), [(features, linear)], (1e-3, 1e6)) == 1e-3


def test_equal_rows_are_fitted_without_a_singular_matrix():
    features, targets = torch.ones(5, 3), torch.ones(5, 2)
    fit = fit_ridge(moments_of(features, targets), 1.0)
    torch.testing.assert_close(fit.predict(features), targets.double())


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (None, "no rows")])
def test_rows_that_cannot_be_fitted_are_refused(rows, value, message):
    features, targets = rows
    if value is None:
        features, targets = features[:0], targets[:0]
    else:
        features[3, 2] = value
    with pytest.raises(ValueError, match=message):
        fit_ridge(moments_of(features, targets), 1.0)
