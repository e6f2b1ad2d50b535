"""Scores of a code whose unit is the group of entries: what each subset z_i knows, and in which order.

A factor held by one group of eight entries is spread over eight codes: per-entry scores (MIG, SAP, DCI's C)
call that as bad as a rotation of everything. Here the unit is the group. What a group knows of a factor is

    I(z_g; y_k) >= H(y_k) - cross-entropy of a linear probe on z_g,

measured on data the probe has not seen and never below 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffsiam.evaluation.information import (
    completeness,
    disentanglement,
    entropy,
    mig,
    modularity_of_active,
)
from diffsiam.evaluation.predictors import auc
from diffsiam.evaluation.probe import fit_probe

PERMUTATIONS = 5
TOLERANCE = 1e-3  # of the probes' gradient: a tenth of it takes twice as long and moves no score by 0.001


@dataclass(frozen=True)
class Coded:
    """Codes with the factors they were made from.

    Attributes:
        train, test: (N, d) float codes.
        train_y, test_y: (N, K) int64 levels.
        levels: number of levels of each factor.
    """

    train: Tensor
    train_y: Tensor
    test: Tensor
    test_y: Tensor
    levels: tuple[int, ...]

    def take(self, dims: Tensor) -> Coded:
        """The codes of some entries only."""
        return Coded(self.train[:, dims], self.train_y, self.test[:, dims], self.test_y, self.levels)

    def turned(self, rotation: Tensor) -> Coded:
        """The codes, standardised by the training part, after a rotation (d, d)."""
        mean, std = self.train.mean(dim=0), self.train.std(dim=0).clamp_min(1e-12)
        train, test = (((part - mean) / std) @ rotation for part in (self.train, self.test))
        return Coded(train, self.train_y, test, self.test_y, self.levels)

    def permuted(self, seed: int) -> Coded:
        """The codes with labels that were shuffled among samples."""
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(part), generator=generator) for part in (self.train_y, self.test_y)]
        return Coded(self.train, self.train_y[orders[0]], self.test, self.test_y[orders[1]], self.levels)


@dataclass(frozen=True)
class Known:
    """What a probe reads of K factors: nats, share of samples, mean share over levels, (K,) each.

    ``probabilities`` (N, K, L) and ``labels`` (N, K) are those of the test part.
    """

    information: np.ndarray
    accuracy: np.ndarray
    balanced: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray

    @property
    def explicitness(self) -> np.ndarray:
        """Area under the ROC curve of every factor, (K,): 0.5 is chance (Ridgeway & Mozer 2018)."""
        factors = range(self.labels.shape[1])
        return np.array([auc(self.probabilities[:, k], self.labels[:, k]) for k in factors])


def known(codes: Coded) -> Known:
    """A linear probe of every factor, each score (K,)."""
    logits = fit_probe(codes.train, codes.train_y, codes.levels, tolerance=TOLERANCE).logits(codes.test)
    log_p, y = logits.log_softmax(dim=2), codes.test_y
    cross_entropy = -log_p.gather(2, y[:, :, None])[:, :, 0].mean(dim=0).cpu().numpy()
    right = (log_p.argmax(dim=2) == y).cpu().numpy()
    labels, p = y.cpu().numpy(), log_p.exp().cpu().numpy()
    information = np.maximum(entropy(labels) - cross_entropy, 0)
    balanced = [
        np.mean([right[labels[:, k] == level, k].mean() for level in np.unique(labels[:, k])])
        for k in range(labels.shape[1])
    ]
    return Known(information, right.mean(axis=0), np.array(balanced), p, labels)


def group_dims(ends: Sequence[int]) -> list[Tensor]:
    """Entries of each group, from the ends of the groups."""
    return [torch.arange(first, end) for first, end in zip((0, *ends[:-1]), ends, strict=True)]


def group_information(codes: Coded, groups: Sequence[Tensor], permutations: int = PERMUTATIONS) -> np.ndarray:
    """I(z_g; y_k) of every group, (G, K) nats, above the mean that shuffled labels give."""
    found = []
    for dims in groups:
        part = codes.take(dims)
        floor = [known(part.permuted(seed)).information for seed in range(permutations)]
        found.append(known(part).information - (np.mean(floor, axis=0) if floor else 0))
    return np.maximum(np.array(found), 0)


@dataclass(frozen=True)
class GroupScores:
    """How well groups and factors match; all from I(z_g; y_k), 1 is best.

    Attributes:
        disentanglement, completeness: DCI's D and C of it ("gDCI(gMI)").
        mig: gap between the best and the second-best group of a factor, in units of its entropy.
        modularity: of the active groups; a random rotation has about half.
        active: number of groups that know more than 0.05 nat of some factor.
    """

    disentanglement: float
    completeness: float
    mig: float
    modularity: float
    active: int


def group_scores(information: np.ndarray, entropies: np.ndarray) -> GroupScores:
    """Scores of I(z_g; y_k) (G, K) and H(y_k) (K,)."""
    return GroupScores(
        disentanglement(information),
        float(completeness(information).mean()),
        mig(information, entropies),
        modularity_of_active(information),
        int((information.max(axis=1) > 0.05).sum()),
    )


def random_partition(dim: int, ends: Sequence[int], seed: int) -> list[Tensor]:
    """Groups of the sizes that ``ends`` has, their entries drawn at random: a baseline."""
    order = torch.randperm(dim, generator=torch.Generator().manual_seed(seed))
    return [order[dims] for dims in group_dims(ends)]


def random_rotation(dim: int, seed: int) -> Tensor:
    """A rotation (dim, dim) float64, uniform over all: a baseline."""
    normal = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    return q * r.diagonal().sign()


def cumulative_information(codes: Coded, groups: Sequence[Tensor]) -> np.ndarray:
    """U_k(i) = I(z_1..z_i; y_k), (G, K) nats: what is known once group i has joined those before it."""
    return np.array(
        [known(codes.take(torch.cat(list(groups[: i + 1])))).information for i in range(len(groups))]
    )


def centres(cumulative: np.ndarray) -> np.ndarray:
    """Where along the groups each factor comes in: sum_i i p_k(i) / sum_i p_k(i), in 1..G, (K,).

    p_k(i) = max(0, U_k(i) - U_k(i - 1)), U_k(0) = 0; NaN for a factor that is never known.
    """
    gains = np.maximum(np.diff(cumulative, axis=0, prepend=np.zeros_like(cumulative[:1])), 0)
    total = gains.sum(axis=0)
    places = np.arange(1, len(gains) + 1)
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, (places @ gains) / total, np.nan)
