"""Rank correlation with a p-value that assumes nothing."""

from __future__ import annotations

import numpy as np

PERMUTATIONS = 10_000


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rho of two sequences; ties share their mean rank. NaN if one of them is constant."""
    a, b = (_ranks(np.asarray(part, float)) for part in (x, y))
    if min(a.std(), b.std()) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def permutation_p(x: np.ndarray, y: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """One-sided p-value of rho > 0: share of random orders of ``y`` that reach the rho found."""
    a, b = (_ranks(np.asarray(part, float)) for part in (x, y))
    a, b = a - a.mean(), b - b.mean()
    if not (a.any() and b.any()):
        return 1.0
    rng = np.random.default_rng(seed)
    orders = rng.permuted(np.broadcast_to(b, (permutations, len(b))), axis=1)
    return float((1 + (orders @ a >= b @ a - 1e-9).sum()) / (1 + permutations))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
