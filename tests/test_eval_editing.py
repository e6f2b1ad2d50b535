"""Numbers of edits, on changes of which it is known what they are."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from diffsiam.evaluation.editing import (
    at_shift,
    average_precision,
    change,
    exchange_success,
    monotonicity,
    selectivity,
    side_effect,
    subset_information,
)


def one_hot(levels: list[list[int]], width: int = 3) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(levels), width).double()


def test_a_change_is_the_share_of_the_probability_that_moved():
    p, q = torch.tensor([[[0.5, 0.5, 0.0]]]), torch.tensor([[[0.25, 0.5, 0.25]]])
    assert change(p, q).tolist() == [[0.25]]
    assert change(one_hot([[0]]), one_hot([[2]])).tolist() == [[1.0]]


def test_selectivity_is_the_share_of_change_in_the_assigned_factors():
    changes = torch.tensor([[0.6, 0.2], [0.3, 0.1]])
    assert selectivity(changes, torch.tensor([True, False])) == pytest.approx(0.75)
    assert np.isnan(selectivity(torch.zeros(2, 2), torch.tensor([True, False])))


def test_a_factor_is_exchanged_when_it_went_more_than_four_fifths_of_the_way():
    own, other = one_hot([[0, 0, 0]]), one_hot([[1, 1, 0]])
    edited = torch.tensor([[[0.1, 0.9, 0.0], [0.3, 0.7, 0.0], [0.0, 1.0, 0.0]]]).double()
    levels, differ = torch.tensor([[1, 1, 0]]), torch.tensor([[True, True, False]])
    found = exchange_success(edited, own, other, levels, differ)[0]
    assert found[:2].tolist() == [1.0, 0.0]
    assert found[2].isnan()


def test_what_the_other_image_s_own_reconstruction_does_not_show_is_no_success():
    own, other = one_hot([[0]]), one_hot([[0]])
    found = exchange_success(one_hot([[1]]), own, other, torch.tensor([[1]]), torch.tensor([[True]]))
    assert found.item() == 0.0


def test_a_steady_rise_is_monotone_and_a_detour_is_not():
    path = torch.tensor([[0.0, 0.0, 1.0, 0.5], [0.5, 1.0, 0.5, 0.51], [1.0, 0.5, 0.0, 0.5]])
    found = monotonicity(path)
    assert found[:3].tolist() == pytest.approx([1.0, 1 / 3, -1.0])
    assert found[3].isnan()


def test_a_side_effect_is_another_level_of_a_factor_in_which_both_agree():
    own, edited = one_hot([[0, 0, 0]]), one_hot([[1, 0, 2]])
    found = side_effect(edited, own, torch.tensor([[True, True, False]]))[0]
    assert found[:2].tolist() == [1.0, 0.0]
    assert found[2].isnan()


def test_a_subset_knows_the_factor_that_it_holds_and_nothing_of_another():
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 3, (2000, 2), generator=generator)
    z = torch.cat([torch.nn.functional.one_hot(levels[:, k], 3) for k in range(2)], dim=1).float()
    z += 0.05 * torch.randn(z.shape, generator=generator)
    found = subset_information(z, levels, [3, 6], [3, 3], train=1500)
    np.testing.assert_allclose(found.diagonal(), np.log(3), atol=0.1)
    assert found[0, 1] < 0.02
    assert found[1, 0] < 0.02


def test_average_precision_is_scikit_learn_s():
    generator = torch.Generator().manual_seed(0)
    scores, truth = torch.randn(200, generator=generator), torch.rand(200, generator=generator) < 0.3
    expected = average_precision_score(truth.numpy(), scores.numpy())
    assert average_precision(scores, truth) == pytest.approx(expected, abs=1e-9)


def test_the_drift_at_a_wanted_shift_lies_on_the_line_between_the_scales():
    assert at_shift([0.2, 0.6], [0.1, 0.3], 0.4) == pytest.approx(0.2)
    assert at_shift([0.8], [0.4], 0.4) == pytest.approx(0.2)
    assert np.isnan(at_shift([0.2, 0.3], [0.1, 0.2], 0.4))
