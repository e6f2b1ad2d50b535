"""Scores whose unit is the group, on codes that are perfect, shared, rotated, constant; and separability."""

import numpy as np
import pytest
import torch

from diffsiam.evaluation.groups import (
    Coded,
    centres,
    cumulative_information,
    group_dims,
    group_information,
    group_scores,
    known,
    random_partition,
    random_rotation,
)
from diffsiam.evaluation.information import entropy
from diffsiam.evaluation.predictors import auc, importances, sap_matrix
from diffsiam.evaluation.separability import separability, shared_information

FACTORS, LEVELS, GROUPS, WIDTH = 4, 4, 6, 4
ENDS = [WIDTH * (g + 1) for g in range(GROUPS)]
DIMS = group_dims(ENDS)


def coded(factor_of_group: list[tuple[int, ...]], noise: float = 0.3, samples: int = 1500) -> Coded:
    """Each group holds its factors, one-hot times a random matrix, and noise."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, LEVELS, (samples, FACTORS), generator=generator)
    z = noise * torch.randn(samples, GROUPS * WIDTH, generator=generator)
    for dims, held in zip(DIMS, factor_of_group, strict=True):
        for factor in held:
            z[:, dims] += 2 * torch.randn(LEVELS, WIDTH, generator=generator)[y[:, factor]]
    cut = samples * 2 // 3
    return Coded(z[:cut], y[:cut], z[cut:], y[cut:], (LEVELS,) * FACTORS)


PERFECT = [(0,), (1,), (2,), (3,), (), ()]


def scores(codes: Coded, groups=DIMS):
    return group_scores(group_information(codes, groups, permutations=1), entropy(codes.test_y.numpy()))


def test_one_factor_a_group_is_perfect():
    found = scores(coded(PERFECT))
    assert min(found.disentanglement, found.completeness, found.modularity) > 0.95
    assert found.mig > 0.9
    assert found.active == 4


def test_two_factors_a_group_are_told_from_one():
    found = scores(coded([(0, 1), (2, 3), (), (), (), ()]))
    assert 0.3 < found.disentanglement < 0.7
    assert found.completeness > 0.9
    assert found.active == 2


def test_a_factor_in_two_groups_costs_completeness_and_the_gap_alone():
    found = scores(coded([(0,), (0,), (1,), (1,), (2,), (3,)]))
    assert found.disentanglement > 0.95
    assert found.completeness < 0.9
    assert found.mig < 0.65


def test_a_rotation_destroys_groups_but_not_what_the_whole_knows():
    plain = coded(PERFECT)
    rotated = plain.turned(random_rotation(GROUPS * WIDTH, 1).float())
    found = scores(rotated)
    assert max(found.disentanglement, found.completeness, found.mig) < 0.2
    assert known(rotated).accuracy.min() > 0.95


def test_a_partition_at_random_scores_below_the_true_one():
    codes = coded(PERFECT)
    true, drawn = scores(codes), scores(codes, random_partition(GROUPS * WIDTH, ENDS, 0))
    assert drawn.disentanglement < true.disentanglement - 0.3


def test_a_partition_at_random_has_every_entry_once():
    parts = random_partition(GROUPS * WIDTH, ENDS, 3)
    assert sorted(torch.cat(parts).tolist()) == list(range(GROUPS * WIDTH))
    assert [len(part) for part in parts] == [WIDTH] * GROUPS


def test_a_rotation_at_random_keeps_lengths():
    q = random_rotation(12, 5)
    torch.testing.assert_close(q @ q.T, torch.eye(12, dtype=torch.float64))


def test_constant_codes_and_shuffled_labels_know_nothing():
    codes = coded(PERFECT)
    constant = Coded(
        torch.ones_like(codes.train), codes.train_y, torch.ones_like(codes.test), codes.test_y, codes.levels
    )
    for nothing in (constant, codes.permuted(0)):
        assert group_information(nothing, DIMS, permutations=1).max() < 0.03
        assert abs(known(nothing).explicitness.mean() - 0.5) < 0.05
    assert scores(constant).active == 0


def test_centres_say_where_along_the_groups_a_factor_comes_in():
    cumulative = cumulative_information(coded([(), (2,), (), (0,), (1,), ()]), DIMS)
    place = centres(cumulative)
    np.testing.assert_allclose(place[[2, 0, 1]], [2, 4, 5], atol=0.2)
    assert np.isnan(centres(np.zeros((3, 2)))).all()


def test_one_versus_rest_areas_are_those_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    p = rng.dirichlet(np.ones(3), 200)
    assert auc(p, y) == pytest.approx(roc_auc_score(y, p, multi_class="ovr", average="macro"))


@pytest.mark.parametrize("estimator", ["extra_trees", "l1"])
def test_importances_find_the_code_of_each_factor_and_skip_dead_ones(estimator):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, (600, 3))
    codes = np.hstack([y + 0.05 * rng.normal(size=y.shape), np.ones((600, 1)), rng.normal(size=(600, 2))])
    found, accuracy = importances(codes[:400], y[:400], codes[400:], y[400:], estimator)
    assert (found.argmax(axis=0) == [0, 1, 2]).all()
    assert found[:3].max(axis=0).min() > 0.9
    assert found[3].max() == 0
    assert accuracy.min() > 0.95 or estimator == "l1"  # the middle value of three is no linear question


def test_a_scalar_code_of_a_binary_factor_has_a_sap_of_a_half():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (400, 2))
    codes = 2.0 * y - 1 + 0.05 * rng.normal(size=y.shape)
    matrix = sap_matrix(codes[:200], y[:200], codes[200:], y[200:])
    assert np.diag(matrix).min() == 1
    assert np.abs(matrix[~np.eye(2, dtype=bool)] - 0.5).max() < 0.1


def test_shared_information_of_gaussians_is_that_of_their_correlation():
    generator = torch.Generator().manual_seed(0)
    a, noise = torch.randn(2, 20_000, 1, generator=generator, dtype=torch.float64)
    b = 0.8 * a + 0.6 * noise
    assert shared_information(a, b) == pytest.approx(-0.5 * np.log(1 - 0.64), abs=0.02)
    assert shared_information(torch.cat((a, noise), 1), torch.cat((noise, b), 1)[:, :1]) > 5


def test_independent_groups_are_separable_and_copies_are_not():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3000, 6, generator=generator)
    groups = group_dims([2, 4, 6])
    apart, copied = separability(z, groups), separability(torch.cat((z[:, :4], z[:, :2]), 1), groups)
    assert apart.mean_pair < 0.01
    assert apart.total_correlation < 0.02
    np.testing.assert_allclose(apart.informativeness, np.log(1 + 1 / 0.04), rtol=0.02)
    assert apart.wsepin == pytest.approx(apart.informativeness.mean(), rel=0.02)
    assert copied.pairs[0, 2] > 5
    assert copied.wsepin < 0.7 * apart.wsepin


def test_separability_does_not_see_a_monotone_change_of_a_code():
    z = torch.randn(500, 4, generator=torch.Generator().manual_seed(1))
    a, b = (separability(codes, group_dims([2, 4])) for codes in (z, z.exp()))
    np.testing.assert_allclose(a.pairs, b.pairs, atol=1e-9)


def test_a_dead_entry_does_not_break_separability():
    z = torch.randn(300, 4, generator=torch.Generator().manual_seed(1))
    z[:, 1] = 2.0
    found = separability(z, group_dims([2, 4]))
    assert np.isfinite([found.mean_pair, found.total_correlation, found.wsepin]).all()
