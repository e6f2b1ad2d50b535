"""Algorithm 3, line by line, and the classifiers it pushes along."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from small_networks import images_and_z, sampler

from diffsiam.counterfactual import Inverted
from diffsiam.manipulation import Classifier, fit_classifier, fit_on, in_thesis_units, manipulate
from diffsiam.probmask import EXACT, PUBLISHED
from diffsiam.sampler import Guide

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def labelled(count=2000, dim=8):
    """Features of unequal scale whose third and fifth entries decide the label."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(count, dim, generator=generator) * torch.arange(1, dim + 1) + 3
    noise = 2 * torch.randn(count, generator=generator)
    return z, (z[:, 2] - 3) + (z[:, 4] - 3) + noise > 0


def test_all_dimensions_are_logistic_regression_on_standardised_features():
    z, y = labelled()
    found = fit_classifier(z, y)
    x = (z.double() - z.double().mean(0)) / z.double().std(0, correction=0)
    oracle = LogisticRegression(C=1 / (1e-4 * len(z)), max_iter=1000, tol=1e-8).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(found.weight, oracle.coef_[0], rtol=2e-2, atol=2e-3)
    np.testing.assert_allclose(found.logits(z), oracle.decision_function(x.numpy()), rtol=2e-2, atol=2e-2)


def test_sigma_is_the_standard_deviation_over_the_training_set():
    z, y = labelled()
    found = fit_classifier(z, y)
    torch.testing.assert_close(found.sigma, z.double().std(0, correction=0))
    torch.testing.assert_close(found.mean, z.double().mean(0))


def test_probmask_leaves_exactly_d_dimensions_refitted():
    z, y = labelled()
    found = fit_classifier(z, y, kept=2, recipe=replace(EXACT, iterations=500))
    assert found.weight.nonzero()[:, 0].tolist() == [2, 4]
    mask = found.weight != 0
    torch.testing.assert_close(found.weight, fit_on(z, y, mask).weight)
    assert found.kept == 2


def test_the_published_procedure_keeps_the_weights_it_trained_with_a_drawn_mask():
    z, y = labelled()
    recipe = replace(PUBLISHED, iterations=400, weight_rate=6e-3, score_rate=6e-3)
    found = fit_classifier(z, y, kept=2, recipe=recipe)
    assert 1 <= found.kept <= 4
    agree = ((found.logits(z) > 0) == y).double().mean()
    assert agree > 0.85


def test_labels_that_are_all_the_same_teach_nothing():
    z, _ = labelled(20)
    with pytest.raises(ValueError, match="all 20 samples are negative"):
        fit_classifier(z, torch.zeros(20, dtype=torch.bool))


def test_the_direction_is_sigma_times_the_unit_normal():
    c = Classifier(
        torch.tensor([3.0, 0.0, 4.0]), torch.zeros(()), torch.zeros(3), torch.tensor([1.0, 2.0, 10.0])
    )
    assert c.direction().tolist() == pytest.approx([0.6, 0.0, 8.0])


def test_a_step_along_the_direction_raises_the_logit_by_its_length():
    z, y = labelled()
    c = fit_classifier(z, y)
    raised = c.logits(z + 2.0 * c.direction()) - c.logits(z)
    assert raised.tolist() == pytest.approx([2.0 * c.weight.norm().item()] * len(z), rel=1e-4)


def test_a_scale_of_published_code_is_the_square_root_of_d_times_the_thesis_scale():
    assert (
        in_thesis_units(0.3, "code", 512)
        == pytest.approx(0.3 * math.sqrt(512))
        == pytest.approx(6.788, abs=1e-3)
    )
    assert in_thesis_units(0.3, "thesis", 512) == 0.3


@pytest.fixture
def classifiers():
    generator = torch.Generator().manual_seed(3)
    ones, zeros = torch.ones(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    return [
        Classifier(torch.randn(8, generator=generator).double(), zeros[0], zeros, 0.5 * ones)
        for _ in range(2)
    ]


@pytest.mark.parametrize("unit", ["thesis", "code"])
def test_each_image_is_what_the_printed_lines_give(awaken, classifiers, unit):
    s = sampler(awaken)
    x_0, z = images_and_z(2)
    images = Inverted(x_0, z, s.invert(x_0, z))
    scales = [-0.5, 0.0, 1.0]
    found = manipulate(s, images, classifiers, scales, unit)
    assert found.shape == (2, 2, 3, 3, 8, 8)
    for i, c, k in np.ndindex(2, 2, 3):
        w, sigma = classifiers[c].weight.float(), classifiers[c].sigma.float()
        pushed = scales[k] * sigma * w / w.norm() * (math.sqrt(8) if unit == "code" else 1)
        expected = s.sample(images.x_T[[i]], Guide(z[[i]] + pushed))[0]
        torch.testing.assert_close(found[i, c, k], expected, **CLOSE)


def test_the_reconstruction_is_made_once_for_all_attributes(awaken, classifiers):
    s = sampler(awaken)
    x_0, z = images_and_z(2)
    images = Inverted(x_0, z, s.invert(x_0, z))
    before = s.passes.images
    manipulate(s, images, classifiers, [-1.0, 0.0, 1.0])
    assert s.passes.images - before == (2 * (2 * 2 + 1)) * len(s.down)
