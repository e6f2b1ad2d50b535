"""How much groups of a code share with each other, and how much each carries (Do & Tran 2020), Gaussian.

For a deterministic encoder I(z_i; z_j | x) is 0, so separability (thesis Eq. 2.2) asks for I(z_i; z_j) = 0,
and informativeness (Eq. 2.1) is infinite unless some noise is added to the code. Codes are first brought to
Gaussian marginals by their ranks; what is then measured is the dependence a Gaussian would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NOISE = 0.2  # of the informativeness, in standard deviations of a code


def gaussianised(codes: Tensor) -> Tensor:
    """Codes (N, d) -> normal scores of their ranks, float64; a constant column stays 0."""
    ranks = codes.double().argsort(dim=0).argsort(dim=0).double()
    scores = torch.special.ndtri((ranks + 0.5) / len(codes))
    return torch.where(codes.amax(dim=0) > codes.amin(dim=0), scores, 0)


def shared_information(a: Tensor, b: Tensor) -> float:
    """-1/2 sum_j log(1 - r_j^2) over the canonical correlations of Gaussian a (N, p), b (N, q): nats."""
    left, right = (_whitened(part) for part in (a, b))
    r = torch.linalg.svdvals(left.T @ right / len(a)).clamp(max=1 - 1e-9)
    return float(-0.5 * torch.log1p(-r.square()).sum())


def _whitened(x: Tensor) -> Tensor:
    x = x - x.mean(dim=0)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    kept = values > 1e-9 * values.max().clamp_min(1e-30)
    return x @ vectors[:, kept] * values[kept].rsqrt()


@dataclass(frozen=True)
class Separability:
    """Attributes:
    pairs: (G, G) I(z_g; z_h) above that of shuffled rows, nats; 0 on the diagonal.
    total_correlation: of all groups together, Gaussian, nats.
    informativeness: (G,) I(x; z_g) with noise of 0.2 standard deviations, nats.
    wsepin: sum_g rho_g I(x; z_g | the other groups), rho_g the share of g in the informativeness.
    """

    pairs: np.ndarray
    total_correlation: float
    informativeness: np.ndarray
    wsepin: float

    @property
    def mean_pair(self) -> float:
        """Mean I(z_g; z_h) over pairs: 0 for independent groups."""
        count = len(self.pairs)
        return float(self.pairs.sum() / max(count * (count - 1), 1))


def separability(
    codes: Tensor, groups: Sequence[Tensor], noise: float = NOISE, seed: int = 0
) -> Separability:
    """Measure codes (N, d) cut into ``groups``; the Gaussian of d entries needs N well above d."""
    z = gaussianised(codes)
    shuffle = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    pairs = np.zeros((len(groups), len(groups)))
    for g, of_g in enumerate(groups):
        for h in range(g):
            other = z[:, groups[h]]
            above = shared_information(z[:, of_g], other) - shared_information(z[:, of_g], other[shuffle])
            pairs[g, h] = pairs[h, g] = max(above, 0)
    covariance = z.T @ z / len(z)
    noisy = covariance / noise**2 + torch.eye(len(covariance), dtype=torch.float64)
    alive = covariance.diagonal() > 0
    whole = 0.5 * _logdet(noisy)
    own = np.array([0.5 * _logdet(noisy[dims][:, dims]) for dims in groups])
    rest = np.array(
        [0.5 * _logdet(noisy[dims][:, dims]) for dims in (_others(dims, z.shape[1]) for dims in groups)]
    )
    correlation = 0.5 * (
        sum(_logdet(_part(covariance, dims[alive[dims]])) for dims in groups)
        - _logdet(_part(covariance, alive))
    )
    wsepin = float((own / max(own.sum(), 1e-12) * (whole - rest)).sum())
    return Separability(pairs, max(correlation, 0.0), own, wsepin)


def _part(matrix: Tensor, dims: Tensor) -> Tensor:
    return matrix[dims][:, dims]


def _others(dims: Tensor, count: int) -> Tensor:
    keep = torch.ones(count, dtype=torch.bool)
    keep[dims] = False
    return keep.nonzero()[:, 0]


def _logdet(matrix: Tensor) -> float:
    if not len(matrix):
        return 0.0
    jitter = 1e-9 * torch.eye(len(matrix), dtype=matrix.dtype)
    return float(torch.linalg.slogdet(matrix + jitter).logabsdet)
