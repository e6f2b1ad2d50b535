"""Linear probes."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from diffsiam.evaluation.probe import L2, fit_probe, probe_accuracy

torch.set_num_threads(1)
LEVELS = [3, 5, 2]


def codes(samples: int, seed: int, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated features of very different scales that hold three factors, the last one hardly."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.stack([torch.randint(0, n, (samples,), generator=generator) for n in LEVELS], dim=1)
    mixing = torch.randn(sum(LEVELS), 12, generator=torch.Generator().manual_seed(9))
    strength = torch.tensor([2.0] * 3 + [1.0] * 5 + [0.05] * 2)
    one_hot = (
        torch.cat([torch.nn.functional.one_hot(y[:, k], n) for k, n in enumerate(LEVELS)], dim=1) * strength
    )
    z = one_hot @ mixing + noise * torch.randn(samples, 12, generator=generator)
    return z * torch.logspace(0, -4, 12) + 7, y


def test_it_agrees_with_scikit_learn_in_every_probability():
    z, y = codes(300, 0)
    test_z, test_y = codes(400, 1)
    probe = fit_probe(z, y, LEVELS, tolerance=1e-7)
    scale = z.double().std(dim=0, correction=0)
    standard, test_standard = (
        ((part.double() - z.double().mean(dim=0)) / scale).numpy() for part in (z, test_z)
    )
    ours = probe.logits(test_z).softmax(dim=2)
    accuracies = probe_accuracy(z, y, test_z, test_y, LEVELS)
    for k, n in enumerate(LEVELS):
        theirs = LogisticRegression(C=1 / (L2 * len(z)), solver="newton-cholesky", tol=1e-8).fit(
            standard, y[:, k].numpy()
        )
        np.testing.assert_allclose(ours[:, k, :n], theirs.predict_proba(test_standard), atol=1e-3)
        assert (ours[:, k, n:] == 0).all()
        assert accuracies[k] == pytest.approx(theirs.score(test_standard, test_y[:, k].numpy()), abs=0.006)


def test_what_the_features_hold_is_read_and_what_they_do_not_hold_is_chance():
    z, y = codes(2000, 0, noise=0.3)
    test_z, test_y = codes(2000, 1, noise=0.3)
    found = probe_accuracy(z, y, test_z, test_y, LEVELS)
    assert found[0] > 0.99
    assert found[1] > 0.95
    noise, test_noise = (torch.randn(2000, 8, generator=torch.Generator().manual_seed(i)) for i in (2, 3))
    guessed = probe_accuracy(noise, y, test_noise, test_y, LEVELS)
    np.testing.assert_allclose(guessed, 1 / np.array(LEVELS), atol=0.05)


def test_scaling_and_shifting_features_changes_nothing():
    z, y = codes(500, 0)
    test_z, test_y = codes(500, 1)
    moved = probe_accuracy(1000 * z - 3, y, 1000 * test_z - 3, test_y, LEVELS)
    np.testing.assert_allclose(moved, probe_accuracy(z, y, test_z, test_y, LEVELS), atol=0.005)


def test_dead_features_do_no_harm():
    z, y = codes(500, 0)
    test_z, test_y = codes(500, 1)
    dead = 0.1 + 2e-8 * torch.randn(500, 200, generator=torch.Generator().manual_seed(3))
    with_dead = probe_accuracy(
        torch.cat((z, dead), 1), y, torch.cat((test_z, dead.flip(0)), 1), test_y, LEVELS
    )
    np.testing.assert_allclose(with_dead, probe_accuracy(z, y, test_z, test_y, LEVELS), atol=0.005)
    constant = probe_accuracy(torch.ones(500, 4), y, torch.ones(500, 4), test_y, LEVELS)
    most_frequent = [(test_y[:, k] == y[:, k].bincount().argmax()).double().mean().item() for k in range(3)]
    np.testing.assert_allclose(constant, most_frequent)


def test_it_repeats_itself_bit_for_bit():
    z, y = codes(300, 0)
    first, second = fit_probe(z, y, LEVELS), fit_probe(z, y, LEVELS)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_a_level_out_of_range_is_refused():
    z, y = codes(50, 0)
    with pytest.raises(ValueError, match=r"levels up to .* but factors have \[2, 5, 2\] levels"):
        fit_probe(z, y, [2, 5, 2])
