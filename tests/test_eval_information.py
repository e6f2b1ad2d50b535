"""Scores of scalar codes against values known in closed form."""

import numpy as np
import pytest

from diffsiam.evaluation.information import (
    completeness,
    discretise,
    disentanglement,
    entropy,
    gap,
    interpretability,
    mig,
    modularity,
    modularity_of_active,
    mutual_information,
)
from diffsiam.evaluation.rank import permutation_p, spearman

LN2 = np.log(2)


def factors(samples: int = 4000, count: int = 4, levels: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, levels, (samples, count))


@pytest.mark.parametrize(
    ("importance", "d", "c"),
    [
        (np.eye(10), 1.0, 1.0),
        (np.zeros((10, 10)), 0.0, 0.0),
        (np.vstack([np.eye(10), np.eye(10)]), 1.0, 1 - LN2 / np.log(20)),
        (np.hstack([np.eye(10), np.eye(10)]), 1 - LN2 / np.log(20), 1.0),
        (np.ones((6, 3)), 0.0, 0.0),
    ],
    ids=["one to one", "nothing", "every code twice", "every factor twice", "all alike"],
)
def test_dci_has_its_closed_form_values(importance, d, c):
    assert disentanglement(importance) == pytest.approx(d, abs=1e-6)
    assert completeness(importance).mean() == pytest.approx(c, abs=1e-6)


def test_modularity_has_its_closed_form_values():
    assert modularity(np.eye(10)).mean() == 1
    assert modularity(np.zeros((10, 10))).mean() == 0
    assert modularity(np.hstack([np.eye(10), np.eye(10)])).mean() == pytest.approx(1 - 1 / 19)
    assert modularity(np.ones((3, 4))).mean() == pytest.approx(0)


def test_dead_codes_count_in_modularity_but_not_in_that_of_active_ones():
    matrix = np.vstack([np.eye(3), np.zeros((3, 3))])
    assert modularity(matrix).mean() == 0.5
    assert modularity_of_active(matrix) == 1
    assert modularity_of_active(np.zeros((3, 3))) == 0


def test_mutual_information_with_itself_is_entropy_and_with_an_independent_factor_nothing():
    y = factors()
    matrix = mutual_information(y, y)
    np.testing.assert_allclose(np.diag(matrix), entropy(y))
    assert matrix[~np.eye(4, dtype=bool)].max() < 0.01
    np.testing.assert_allclose(entropy(y), np.log(5), atol=1e-3)


def test_mig_is_1_for_one_code_a_factor_and_0_where_a_second_code_knows_as_much():
    y = factors()
    once, twice = (mutual_information(discretise(codes), y) for codes in (y, np.hstack([y, y])))
    assert mig(once, entropy(y)) > 0.99
    assert mig(twice, entropy(y)) == 0


def test_the_gap_needs_two_codes():
    with pytest.raises(ValueError, match="needs two"):
        gap(np.ones((1, 3)))


def test_a_constant_code_knows_nothing_and_breaks_nothing():
    y = factors()
    codes = np.hstack([y.astype(float), np.full((len(y), 1), 7.0)])
    matrix = mutual_information(discretise(codes), y)
    assert matrix[-1].max() == 0
    assert np.isfinite(modularity(matrix)).all()
    assert disentanglement(matrix) > 0.95


def test_scores_do_not_depend_on_the_order_of_samples_codes_or_classes():
    y = factors()
    codes = y + 0.3 * np.random.default_rng(1).normal(size=y.shape)
    samples, columns, names = (
        np.random.default_rng(2).permutation(len(y)),
        [2, 0, 3, 1],
        np.array([3, 0, 4, 1, 2]),
    )
    plain = mutual_information(discretise(codes), y)
    other = mutual_information(discretise(codes[samples][:, columns]), names[y[samples]])
    np.testing.assert_allclose(other, plain[columns], atol=1e-12)
    assert mig(other, entropy(y)) == pytest.approx(mig(plain, entropy(y)))
    assert disentanglement(other) == pytest.approx(disentanglement(plain))


def test_a_code_that_is_the_factor_is_interpretable_and_noise_is_not():
    y = factors()
    perfect, noise = (
        interpretability(y.astype(float), y, bins=5),
        interpretability(np.random.default_rng(3).uniform(size=y.shape), y, bins=5),
    )
    assert perfect[0] > 0.99
    assert perfect[1] > 0.49  # H(z, y) = H(y) remains: half of H(y) + log bins
    assert noise[0] < 0.02
    assert noise[1] < 0.02


def test_spearman_sees_order_only_and_its_p_value_is_small_where_order_is_perfect():
    x = np.array([1.0, 2, 3, 4, 5, 6])
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)
    assert np.isnan(spearman(x, np.ones(6)))
    assert permutation_p(x, x) < 0.01
    assert permutation_p(x, -x) > 0.99
    assert permutation_p(x, np.ones(6)) == 1


def test_ties_share_their_rank_as_in_scipy():
    from scipy.stats import spearmanr

    x, y = np.array([1, 1, 2, 3, 3, 3, 9.0]), np.array([2, 1, 2, 5, 4, 4, 4.0])
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
