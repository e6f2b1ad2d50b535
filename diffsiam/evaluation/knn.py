"""Weighted nearest neighbours: what features are worth without training anything (Wu et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS, TEMPERATURE = 200, 0.1


def knn_predict(
    train: Tensor,
    train_y: Tensor,
    test: Tensor,
    classes: int,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    batch_size: int = 1000,
) -> Tensor:
    """Most voted class of each test feature, (M,) int64.

    The ``neighbours`` most similar training features (cosine s) vote exp(s / temperature) for their class.

    Args:
        train, test: (N, d) and (M, d).
        train_y: (N,) int64.
    """
    bank, found = F.normalize(train, dim=1).T, []
    for part in F.normalize(test, dim=1).split(batch_size):
        similarity, nearest = (part @ bank).topk(min(neighbours, len(train)), dim=1)
        votes = torch.zeros(len(part), classes, dtype=similarity.dtype)
        votes.scatter_add_(1, train_y[nearest], (similarity / temperature).exp())
        found.append(votes.argmax(dim=1))
    return torch.cat(found)
