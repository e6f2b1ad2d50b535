"""Linear probes: multinomial logistic regression on fixed features, all factors at once, nothing random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

L2 = 1e-4
TOLERANCE = 1e-4  # of the gradient; a tenth of it takes three times as long and changes no accuracy by 0.001
ITERATIONS = 500


@dataclass(frozen=True)
class Probe:
    """K linear classifiers on standardised features.

    Attributes:
        mean, scale: (d,) float64, what features are standardised by.
        weight: (d, K, L) float64, L the largest number of levels.
        bias: (K, L) float64; minus infinity at levels that a factor does not have.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, z: Tensor) -> Tensor:
        """Features (N, d) -> (N, K, L)."""
        return torch.einsum("nd,dkl->nkl", (z.double() - self.mean) / self.scale, self.weight) + self.bias

    def predict(self, z: Tensor) -> Tensor:
        """Features (N, d) -> the most likely levels (N, K) int64."""
        return self.logits(z).argmax(dim=2)


def fit_probe(
    z: Tensor, y: Tensor, levels: Sequence[int], l2: float = L2, tolerance: float = TOLERANCE
) -> Probe:
    """Minimise  sum_k mean cross-entropy of factor k + l2 / 2 |W|^2  by L-BFGS in float64; the bias is free.

    It is scikit-learn's LogisticRegression with C = 1 / (l2 N) on standardised features, one for each factor.

    Args:
        z: (N, d) features.
        y: (N, K) int64, factor k in 0..levels[k]-1.
        levels: number of levels of each factor.
        tolerance: largest entry of the gradient at which the search ends.

    Raises:
        ValueError: a level is out of range.
    """
    count = torch.tensor(levels, device=z.device)
    if (y < 0).any() or (y >= count).any():
        raise ValueError(f"levels up to {y.amax(dim=0).tolist()}, but factors have {list(levels)} levels")
    mean, scale = z.double().mean(dim=0), _scale(z.double())
    x = (z.double() - mean) / scale
    axes = _axes(x, l2)
    absent = torch.arange(int(count.max()), device=z.device) >= count[:, None]
    weight, bias = _minimise(x @ axes, y, absent, l2 * axes.square().sum(dim=0), tolerance)
    return Probe(mean, scale, torch.einsum("de,ekl->dkl", axes, weight), bias.masked_fill(absent, -torch.inf))


def probe_accuracy(
    train_z: Tensor, train_y: Tensor, test_z: Tensor, test_y: Tensor, levels: Sequence[int], l2: float = L2
) -> np.ndarray:
    """Test accuracy of each factor, (K,) float64, of :func:`fit_probe` on the training features."""
    found = fit_probe(train_z, train_y, levels, l2).predict(test_z)
    return (found == test_y).double().mean(dim=0).cpu().numpy()


def _scale(z: Tensor) -> Tensor:
    """Standard deviations (d,), none so small that it blows up a constant dimension's rounding errors."""
    std = z.std(dim=0, correction=0)
    largest = std.max()
    return std.clamp_min(1e-5 * largest) if largest > 0 else torch.ones_like(std)


def _axes(x: Tensor, l2: float) -> Tensor:
    """(d, d) change of variables W = A V in which the loss curves alike in all directions.

    Features of a network are strongly correlated, and L-BFGS takes hundreds of iterations on them. Near W = 0
    the curvature is about covariance / 5 + l2, whose inverse square root is A. Its columns are orthogonal:
    |W|^2 = sum |a_j|^2 v_j^2.
    """
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    return vectors * (values.clamp_min(0) / 5 + l2).rsqrt()


def _minimise(
    x: Tensor, y: Tensor, absent: Tensor, penalty: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    """V (d, K, L) and bias (K, L) that minimise  sum_k mean cross-entropy + sum_j penalty_j / 2 v_j^2.

    Args:
        x: (N, d) features.
        y: (N, K) levels.
        absent: (K, L), the levels that a factor does not have.
        penalty: (d,).
    """
    samples, (factors, width) = len(x), absent.shape
    x = torch.cat((x, torch.ones_like(x[:, :1])), dim=1)
    penalty = torch.cat((penalty, penalty.new_zeros(1)))[:, None]
    v = x.new_zeros(x.shape[1], factors * width).requires_grad_()
    target = y[:, :, None]

    def loss_and_gradient() -> Tensor:
        with torch.no_grad():
            logits = (x @ v).view(samples, factors, width).masked_fill(absent, -torch.inf)
            log_p = logits.log_softmax(dim=2)
            residual = log_p.exp().scatter_add_(2, target, x.new_full((), -1.0).expand_as(target))
            v.grad = x.T @ residual.flatten(1) / samples + penalty * v
            return -log_p.gather(2, target).sum() / samples + (penalty * v.square()).sum() / 2

    optimizer = torch.optim.LBFGS(
        [v],
        max_iter=ITERATIONS,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(loss_and_gradient)
    weight = v.detach().view(-1, factors, width)
    return weight[:-1], weight[-1]
