"""Few-shot heads for many episodes at once: the linear head by SGD, and the nearest class mean.

SGD on an episode's few supports only ever adds combinations of support rows to its first weights,

    W = c W_0 + A^T X,    V = e W_0 + B^T X    (V the momentum; c, e scalars shared by all episodes),

so a step needs K = X X^T and X W_0^T, never the d columns of X again: with N = 5 to 50 supports that is the
plain loop, re-associated, for a small part of its cost. Episodes never meet and are stepped side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """SGD on the supports. The thesis (4.1.2) gives epochs, batch, rate and decay; the rest is that of the
    benchmark they come from (CD-FSL: a linear head on a frozen backbone)."""

    epochs: int = 100
    batch: int = 4
    lr: float = 0.01
    weight_decay: float = 0.001
    momentum: float = 0.9
    dampening: float = 0.9


class Head(NamedTuple):
    """Trained heads in the dual form.

    Attributes:
        scale: c.
        alpha: A (E, N, W).
        bias: (E, W).
    """

    scale: float
    alpha: Tensor
    bias: Tensor

    def weight(self, x: Tensor, start: Tensor) -> Tensor:
        """W (E, W, d), from supports (E, N, d) and first weights W_0 (E, W, d)."""
        return self.scale * start + self.alpha.mT @ x

    def logits(self, queries: Tensor, x: Tensor, start: Tensor) -> Tensor:
        """(E, M, W) of queries (E, M, d)."""
        linear = self.scale * (queries @ start.mT) + (queries @ x.mT) @ self.alpha
        return linear + self.bias[:, None]


def train_heads(
    x: Tensor, y: Tensor, orders: Tensor, start: tuple[Tensor, Tensor], recipe: Recipe | None = None
) -> Head:
    """Train E heads by SGD; equal to torch.optim.SGD on each in turn, but for rounding.

    Args:
        x: (E, N, d) supports, float32 or float64.
        y: (N,) int64 classes, the same in every episode.
        orders: (E, epochs, N) int64, the order of the supports in every epoch; the last batch may be smaller.
        start: W_0 (E, W, d) and b_0 (E, W).
    """
    recipe = recipe or Recipe()
    weight, bias = start[0].to(x.dtype), start[1].to(x.dtype).clone()
    kernel, first = x @ x.mT, x @ weight.mT
    one_hot = torch.nn.functional.one_hot(y, weight.shape[1]).to(x.dtype)
    alpha, velocity, bias_velocity = torch.zeros_like(first), torch.zeros_like(first), torch.zeros_like(bias)
    scale, scale_velocity = 1.0, 0.0
    momentum, share, decay = 0.0, 1.0, recipe.weight_decay  # torch's first step takes the plain gradient
    of_episode = torch.arange(len(x))[:, None]
    for epoch in range(recipe.epochs):
        for batch in orders[:, epoch].split(recipe.batch, dim=1):
            at = batch[:, :, None]
            rows = kernel[of_episode, batch]  # (E, m, N)
            logits = bias[:, None] + scale * first.gather(1, at.expand(-1, -1, first.shape[2])) + rows @ alpha
            residual = (logits.softmax(dim=2) - one_hot[batch]) / batch.shape[1]
            velocity.mul_(momentum).add_(alpha, alpha=share * decay)
            velocity.scatter_add_(1, at.expand_as(residual), share * residual)
            bias_velocity.mul_(momentum).add_(residual.sum(dim=1) + decay * bias, alpha=share)
            scale_velocity = momentum * scale_velocity + share * decay * scale
            alpha.sub_(velocity, alpha=recipe.lr)
            bias.sub_(bias_velocity, alpha=recipe.lr)
            scale -= recipe.lr * scale_velocity
            momentum, share = recipe.momentum, 1 - recipe.dampening
    return Head(scale, alpha, bias)


def nearest_mean_logits(x: Tensor, y: Tensor, queries: Tensor, ways: int) -> Tensor:
    """-|q - mean of class|^2, (E, M, W), of supports (E, N, d) and queries (E, M, d) (Snell et al. 2017)."""
    weights = torch.nn.functional.one_hot(y, ways).to(x.dtype)
    means = (weights / weights.sum(dim=0)).T @ x
    return -torch.cdist(queries, means).square()
