"""What an edit did, in numbers, from the probabilities that an oracle gives to every level of every factor.

Probabilities are (..., K, L): K factors, L the largest number of levels, 0 where a factor has fewer. A change
is the total variation between two of them, which is the share of a factor's range that was moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffsiam.evaluation.probe import fit_probe

MOVED = 0.8  # share of the way to the other image's level that counts as exchanged
STILL = 0.1  # total movement of a probability over the scales below which it has no direction


def change(p: Tensor, q: Tensor) -> Tensor:
    """(..., K) in [0, 1]: half the sum of absolute differences."""
    return (p - q).abs().sum(dim=-1) / 2


def selectivity(changes: Tensor, assigned: Tensor) -> float:
    """Share of all change (N, K) that lies in the factors assigned to the edited subset (K,) bool; NaN where
    nothing changed.
    """
    total = changes.sum()
    return float(changes[:, assigned].sum() / total) if total > 0 else float("nan")


def exchange_success(edited: Tensor, own: Tensor, other: Tensor, levels: Tensor, differ: Tensor) -> Tensor:
    """(N, K) 1 where a factor went more than 80 % of the way to the other image's level, 0 where not, NaN
    where both images have the same.

    Args:
        edited, own, other: (N, K, L) of the edit, of the image's reconstruction and of the other image.
        levels: (N, K), the other image's.
        differ: (N, K) bool.
    """
    at = levels[..., None]
    now, before, after = (p.gather(-1, at)[..., 0] for p in (edited, own, other))
    moved = (now - before > MOVED * (after - before)) & (after > before)
    return torch.where(differ, moved.double(), torch.nan)


def monotonicity(path: Tensor) -> Tensor:
    """(p_last - p_first) / sum |steps| over the scales, of paths (S, ...) of the probability of the other
    image's level: 1 for a steady rise, -1 for a steady fall, NaN where it hardly moves.
    """
    way = path.diff(dim=0).abs().sum(dim=0)
    return torch.where(way > STILL, (path[-1] - path[0]) / way, torch.nan)


def side_effect(edited: Tensor, own: Tensor, agree: Tensor) -> Tensor:
    """(N, K) 1 where the most likely level is another than before, of factors in which both images ``agree``;
    NaN elsewhere.
    """
    changed = edited.argmax(dim=-1) != own.argmax(dim=-1)
    return torch.where(agree, changed.double(), torch.nan)


def subset_information(
    z: Tensor, levels: Tensor, ends: Sequence[int], counts: Sequence[int], train: int
) -> np.ndarray:
    """gMI (n, K) in nats: what a linear probe on each subset alone knows of each factor, at least 0.

    H(y_k) minus the probe's cross-entropy on samples that it was not fitted on: a lower bound of the mutual
    information.

    Args:
        z: (N, d).
        levels: (N, K).
        ends: of the subsets.
        counts: levels of each factor.
        train: samples of the first part, on which probes are fitted.
    """
    found = []
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        probe = fit_probe(z[:train, begin:end], levels[:train], counts, l2=1e-3)
        log_p = probe.logits(z[train:, begin:end]).log_softmax(dim=2)
        cross = -log_p.gather(2, levels[train:, :, None])[..., 0].mean(dim=0)
        found.append((_entropy(levels[train:], counts) - cross).clamp_min(0))
    return torch.stack(found).cpu().numpy()


def _entropy(levels: Tensor, counts: Sequence[int]) -> Tensor:
    entropies = []
    for k, count in enumerate(counts):
        p = torch.bincount(levels[:, k], minlength=count).double() / len(levels)
        entropies.append(-(p[p > 0] * p[p > 0].log()).sum())
    return torch.stack(entropies).to(levels.device)


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """Mean precision at each positive, from the highest score down (scores without ties).

    Args:
        scores: (N,).
        truth: (N,) bool, one true at least.
    """
    ranked = truth[scores.argsort(descending=True)].double()
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1, device=ranked.device)
    return float((precision * ranked).sum() / ranked.sum())


def at_shift(shifts: Sequence[float], drifts: Sequence[float], wanted: float) -> float:
    """The drift where the target's shift reaches ``wanted``, linear between the scales measured and from
    nothing at scale 0; NaN where it never does.
    """
    before = (0.0, 0.0)
    for shift, drift in zip(shifts, drifts, strict=True):
        if shift >= wanted:
            share = (wanted - before[0]) / (shift - before[0])
            return before[1] + share * (drift - before[1])
        before = (shift, drift)
    return float("nan")
