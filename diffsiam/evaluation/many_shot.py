"""Many-shot transfer: logistic regression on fixed features, its penalty chosen on a validation part.

The protocol of "How Well Do Self-Supervised Models Transfer?" (Ericsson et al. 2021), which thesis Table 4.1
follows: 45 penalties from 1e-6 to 1e5, the best on validation, refitted on all of the training part, scored
once on test. Solutions are those at convergence, so neither the order of penalties nor a start matters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffsiam.evaluation.logistic import fit_logistic

PENALTIES = np.logspace(-6, 5, 45)  # lambda = 1 / C

Metric = Callable[[Tensor, Tensor], float]  # predicted (N,), true (N,) -> share in [0, 1]


def top_1(found: Tensor, labels: Tensor) -> float:
    """Share of samples that are right."""
    return (found == labels).double().mean().item()


def mean_per_class(found: Tensor, labels: Tensor) -> float:
    """Mean over the classes that occur of the share of their samples that are right."""
    right = (found == labels).double()
    counts = torch.bincount(labels)
    shares = torch.bincount(labels, weights=right)[counts > 0] / counts[counts > 0]
    return shares.mean().item()


def split_off_validation(count: int, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """(train, validation) indices where a set has no validation part: numpy's shuffle of seed 0, its first
    fifth for validation (the protocol's code).
    """
    order = np.arange(count)
    np.random.RandomState(0).shuffle(order)  # noqa: NPY002  (the published split is this generator's)
    cut = int(share * count)
    return torch.from_numpy(order[cut:]), torch.from_numpy(order[:cut])


class ManyShot(NamedTuple):
    """Test score, chosen penalty, and the validation score of every penalty."""

    test: float
    penalty: float
    validation: list[float]


def many_shot(
    trainval: Tensor,
    trainval_y: Tensor,
    test: Tensor,
    test_y: Tensor,
    classes: int,
    metric: Metric = top_1,
    parts: tuple[Tensor, Tensor] | None = None,
) -> ManyShot:
    """Choose the penalty on validation, refit on train and validation, score once on test.

    Args:
        trainval, test: (N, d) features, neither standardised nor normalised.
        trainval_y, test_y: (N,) int64.
        metric: of the data set, used to choose and to score.
        parts: (train, validation) indices into ``trainval``; :func:`split_off_validation` by default.
    """
    train, validation = parts or split_off_validation(len(trainval))
    sweep = fit_logistic(trainval[train], trainval_y[train], classes, (1 / PENALTIES).tolist())
    found = sweep.logits(trainval[validation]).argmax(dim=2)
    scores = [metric(part, trainval_y[validation]) for part in found]
    best = int(np.argmax(scores))  # of equal ones the smallest penalty
    final = fit_logistic(trainval, trainval_y, classes, [1 / PENALTIES[best]])
    score = metric(final.logits(test)[0].argmax(dim=1), test_y)
    return ManyShot(score, float(PENALTIES[best]), scores)
