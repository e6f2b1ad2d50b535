"""Information-theoretic scores of scalar codes: mutual information by binning, and what is made of it.

Everything is in nats. A matrix of mutual information M is (codes, factors); functions of M serve codes that
are single entries and codes that are groups of entries alike.
"""

from __future__ import annotations

import numpy as np

BINS = 20
ACTIVE = 0.05  # nats: a code that knows less of every factor counts as dead


def discretise(codes: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Codes (N, d) -> equal-width bins over the range of each, (N, d) int64 in 0..bins-1."""
    low, high = codes.min(axis=0), codes.max(axis=0)
    width = np.where(high > low, high - low, 1)
    return np.minimum(((codes - low) / width * bins).astype(np.int64), bins - 1)


def entropy(labels: np.ndarray) -> np.ndarray:
    """H of each column of (N, K) int64, (K,)."""
    return np.array([_entropy(np.bincount(column)) for column in labels.T])


def mutual_information(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """I between the columns of a (N, D) and b (N, K), non-negative int64: (D, K)."""
    wide = int(b.max()) + 1
    joint = np.array([[_entropy(np.bincount(x * wide + y)) for y in b.T] for x in a.T])
    return np.maximum(entropy(a)[:, None] + entropy(b) - joint, 0)


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def gap(matrix: np.ndarray, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """Best minus second best score of every factor, divided by ``scale``: (K,). Of M and H it is MIG's."""
    if len(matrix) < 2:
        raise ValueError(f"{len(matrix)} code: a gap needs two")
    second, best = np.sort(matrix, axis=0)[-2:]
    return (best - second) / scale


def mig(matrix: np.ndarray, entropies: np.ndarray) -> float:
    """Mutual information gap (Chen et al. 2018): mean_k (M_(1)k - M_(2)k) / H(y_k)."""
    return float(gap(matrix, entropies).mean())


def modularity(matrix: np.ndarray) -> np.ndarray:
    """1 - delta of every code (Ridgeway & Mozer 2018), (D,); a code that knows nothing counts 0.

    delta_i = sum_{k != k*} M_ik^2 / (M_ik*^2 (K - 1)), k* the factor it knows most of. A random rotation of a
    modular code keeps about half of it: no number to quote alone.
    """
    if matrix.shape[1] < 2:
        raise ValueError("modularity needs two factors")
    best = matrix.max(axis=1)
    safe = np.where(best > 0, best, 1)[:, None]
    delta = ((matrix / safe) ** 2).sum(axis=1) - 1
    return np.where(best > 0, 1 - delta / (matrix.shape[1] - 1), 0.0)


def active(matrix: np.ndarray, least: float = ACTIVE) -> np.ndarray:
    """(D,) bool: codes that know more than ``least`` nats of some factor."""
    return matrix.max(axis=1) > least


def modularity_of_active(matrix: np.ndarray, least: float = ACTIVE) -> float:
    """Mean modularity of the active codes; 0 if there is none."""
    alive = active(matrix, least)
    return float(modularity(matrix)[alive].mean()) if alive.any() else 0.0


def disentanglement(importance: np.ndarray) -> float:
    """DCI's D of importances R (D, K): sum_i rho_i (1 - H_K(R_i. / sum)), rho_i code i's share of all."""
    total = importance.sum()
    if importance.shape[1] < 2 or total == 0:
        return 0.0
    return float((importance.sum(axis=1) / total * (1 - _row_entropy(importance))).sum())


def completeness(importance: np.ndarray) -> np.ndarray:
    """DCI's C of every factor, (K,): 1 - H_D(R_.k / sum); 0 for a factor that nothing predicts."""
    if len(importance) < 2:
        return np.zeros(importance.shape[1])
    return np.where(importance.sum(axis=0) > 0, 1 - _row_entropy(importance.T), 0.0)


def _row_entropy(matrix: np.ndarray) -> np.ndarray:
    """Entropy of each row as a distribution, in units of the logarithm of its length: 0 to 1."""
    p = matrix + 1e-11
    p = p / p.sum(axis=1, keepdims=True)
    return -(p * np.log(p)).sum(axis=1) / np.log(matrix.shape[1])


def interpretability(codes: np.ndarray, labels: np.ndarray, bins: int = BINS) -> tuple[float, float]:
    """RMIG and 1 - JEMMIG (Do & Tran 2020), means over factors; 1 is best for both.

    RMIG_k = (I_(1) - I_(2)) / H(y_k); JEMMIG_k = [H(z_(1), y_k) - I_(1) + I_(2)] / (H(y_k) + log bins), where
    (1), (2) are the codes that know most of factor k. A code is interpretable if it is one factor and no
    more: I = H(z) = H(y).

    Args:
        codes: (N, D) real, D >= 2.
        labels: (N, K) int64.
    """
    binned = discretise(codes, bins)
    matrix, h_y, h_z = mutual_information(binned, labels), entropy(labels), entropy(binned)
    order = np.argsort(-matrix, axis=0, kind="stable")
    columns = np.arange(labels.shape[1])
    best, second = matrix[order[0], columns], matrix[order[1], columns]
    joint = h_z[order[0]] + h_y - best
    jemmig = (joint - best + second) / (h_y + np.log(bins))
    return float(((best - second) / h_y).mean()), float((1 - jemmig).mean())
