"""Many attributes at once from fixed features: average precision of binary ones, r and error of real ones.

The protocol of DiTi's evaluation (CelebA, LFW): one linear layer for all attributes, Adam, 15 epochs. The
epoch is chosen on a validation part, for both; test is scored once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

EPOCHS, RATE = 15, 1e-3
CLASSIFICATION_BATCH, REGRESSION_BATCH = 128, 64


@dataclass(frozen=True)
class Fold:
    """Features (N, d) and attributes (N, A): 0 or 1, or real."""

    z: Tensor
    y: Tensor


def average_precision(scores: Tensor, labels: Tensor) -> np.ndarray:
    """Area under the precision-recall steps of each attribute, (A,); NaN where no sample has it.

    Args:
        scores, labels: (N, A); equal scores share one threshold.
    """
    found = []
    for score, label in zip(scores.double().T, labels.double().T, strict=True):
        order = score.argsort(descending=True)
        ranked, hits = score[order], label[order].cumsum(0)
        last = torch.cat((ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool)))
        hits, seen = hits[last], (1 + last.nonzero()[:, 0]).double()
        gained = torch.diff(hits, prepend=hits.new_zeros(1))
        found.append(((gained * hits / seen).sum() / label.sum()).item() if label.sum() else float("nan"))
    return np.array(found)


def pearson(found: Tensor, target: Tensor) -> np.ndarray:
    """r of each column of (N, A), (A,); 0 where one side is constant."""
    a, b = (part.double() - part.double().mean(dim=0) for part in (found, target))
    scale = (a.square().sum(dim=0) * b.square().sum(dim=0)).sqrt()
    return torch.where(scale > 0, (a * b).sum(dim=0) / scale.clamp_min(1e-30), 0).numpy()


def binary_attributes(train: Fold, validation: Fold, test: Fold, seed: int = 0) -> np.ndarray:
    """Average precision of every attribute on test, (A,), at the epoch with the best mean on validation."""

    def score(layer: nn.Linear, fold: Fold) -> np.ndarray:
        return average_precision(layer(fold.z), fold.y)

    loss = nn.functional.binary_cross_entropy_with_logits
    layer = _train(train, validation, loss, score, CLASSIFICATION_BATCH, seed)
    with torch.no_grad():
        return score(layer, test)


def real_attributes(
    train: Fold, validation: Fold, test: Fold, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Pearson's r and mean squared error of every attribute on test, (A,) each.

    Attributes are standardised by the training part first: an error of 1 is that of guessing the mean.
    """
    mean, std = train.y.mean(dim=0), train.y.std(dim=0, correction=0).clamp_min(1e-12)
    train, validation, test = (Fold(fold.z, (fold.y - mean) / std) for fold in (train, validation, test))

    def score(layer: nn.Linear, fold: Fold) -> np.ndarray:
        return pearson(layer(fold.z), fold.y)

    layer = _train(train, validation, nn.functional.mse_loss, score, REGRESSION_BATCH, seed)
    with torch.no_grad():
        error = (layer(test.z) - test.y).square().mean(dim=0).double().numpy()
        return score(layer, test), error


def _train(
    train: Fold,
    validation: Fold,
    loss: Callable[[Tensor, Tensor], Tensor],
    score: Callable[[nn.Linear, Fold], np.ndarray],
    batch: int,
    seed: int,
) -> nn.Linear:
    """The layer of the epoch whose mean score on validation is best."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(train.z.shape[1], train.y.shape[1])
    optimizer = torch.optim.Adam(layer.parameters(), lr=RATE)
    best, kept = -np.inf, {name: value.clone() for name, value in layer.state_dict().items()}
    for _ in range(EPOCHS):
        for part in torch.randperm(len(train.z), generator=generator).split(batch):
            optimizer.zero_grad()
            loss(layer(train.z[part]), train.y[part].float()).backward()
            optimizer.step()
        with torch.no_grad():
            mean = float(np.nanmean(score(layer, validation)))
        if mean > best:
            best, kept = mean, {name: value.clone() for name, value in layer.state_dict().items()}
    layer.load_state_dict(kept)
    return layer
