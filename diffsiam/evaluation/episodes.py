"""Few-shot episodes: which images are support and query, which order they are trained in, from which start.

All of it is a function of the labels and a seed: two encoders are compared on the same episodes, in the same
order, from the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffsiam.evaluation.few_shot import Recipe

WAYS, QUERIES = 5, 15


@dataclass(frozen=True)
class Episodes:
    """E episodes of W ways, C shots and Q queries a class; entries are indices into the pool.

    Attributes:
        support: (E, W C) int64, class by class.
        query: (E, W Q) int64, class by class.
        ways: W.
        dropped: classes of the pool with fewer than C + Q images, which no episode uses.
    """

    support: Tensor
    query: Tensor
    ways: int
    dropped: int

    @property
    def support_y(self) -> Tensor:
        """Classes 0..W-1 of an episode's supports, (W C,)."""
        return torch.arange(self.ways).repeat_interleave(self.support.shape[1] // self.ways)

    @property
    def query_y(self) -> Tensor:
        """Classes of an episode's queries, (W Q,)."""
        return torch.arange(self.ways).repeat_interleave(self.query.shape[1] // self.ways)


def draw_episodes(
    labels: np.ndarray, shots: int, count: int, seed: int = 0, ways: int = WAYS, queries: int = QUERIES
) -> Episodes:
    """Draw ``count`` episodes from a pool with ``labels`` (N,): W classes, then C + Q images of each.

    Raises:
        ValueError: fewer than ``ways`` classes have enough images.
    """
    pools = [np.flatnonzero(labels == value) for value in np.unique(labels)]
    enough = [pool for pool in pools if len(pool) >= shots + queries]
    if len(enough) < ways:
        raise ValueError(
            f"{len(enough)} of {len(pools)} classes have the {shots + queries} images that {shots} shots and "
            f"{queries} queries need; {ways} are needed"
        )
    rng = np.random.default_rng([seed, shots])
    support, query = np.empty((count, ways, shots), np.int64), np.empty((count, ways, queries), np.int64)
    for episode in range(count):
        for way, chosen in enumerate(rng.choice(len(enough), ways, replace=False)):
            images = rng.choice(enough[chosen], shots + queries, replace=False)
            support[episode, way], query[episode, way] = images[:shots], images[shots:]
    flat = [torch.from_numpy(part).flatten(1) for part in (support, query)]
    return Episodes(flat[0], flat[1], ways, len(pools) - len(enough))


def draw_orders(episodes: Episodes, recipe: Recipe, seed: int = 0) -> Tensor:
    """A fresh order of the supports for every episode and epoch, (E, epochs, W C) int64."""
    count, supports = episodes.support.shape
    rng = np.random.default_rng([seed, supports, 1])
    orders = np.broadcast_to(np.arange(supports, dtype=np.int16), (count, recipe.epochs, supports))
    return torch.from_numpy(rng.permuted(orders, axis=2).astype(np.int64))


def draw_heads(count: int, ways: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Heads as torch draws a linear layer, U(+-1/sqrt d): (E, W, d) and (E, W), float32."""
    generator = torch.Generator().manual_seed(seed)
    bound = dim**-0.5
    weight = torch.empty(count, ways, dim).uniform_(-bound, bound, generator=generator)
    return weight, torch.empty(count, ways).uniform_(-bound, bound, generator=generator)
