"""Few-shot accuracy of features: episodes drawn, heads trained, queries scored, in chunks that fit memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsiam.evaluation.episodes import QUERIES, WAYS, draw_episodes, draw_heads, draw_orders
from diffsiam.evaluation.few_shot import Recipe, nearest_mean_logits, train_heads

CHUNK = 250  # episodes at a time: at d = 512 and 10 shots some 65 MB


@dataclass(frozen=True)
class FewShot:
    """Accuracy of every episode, (E,) each: paired with those of other features of the same pool and seed.

    Attributes:
        linear: of the linear head.
        nearest_mean: of the nearest class mean, which is not trained.
        dropped: classes with too few images for an episode.
    """

    linear: np.ndarray
    nearest_mean: np.ndarray
    dropped: int

    def summary(self) -> dict[str, Any]:
        """Mean, standard deviation over episodes, and half width of the mean's 95 % interval."""
        record: dict[str, Any] = {"dropped": self.dropped}
        for name, values in (("linear", self.linear), ("nearest_mean", self.nearest_mean)):
            std = float(values.std())
            record[name] = {"mean": float(values.mean()), "std": std, "ci95": 1.96 * std / len(values) ** 0.5}
        return record


def few_shot(
    features: Tensor,
    labels: Tensor,
    shots: int,
    episodes: int = 2000,
    seed: int = 0,
    ways: int = WAYS,
    queries: int = QUERIES,
    recipe: Recipe | None = None,
) -> FewShot:
    """Few-shot accuracy on a pool of features (N, d) with labels (N,).

    Episodes, orders of the supports and first weights are functions of the labels and ``seed`` alone.

    Raises:
        ValueError: too few classes have enough images.
    """
    recipe = recipe or Recipe()
    drawn = draw_episodes(labels.numpy(), shots, episodes, seed, ways, queries)
    heads = draw_heads(episodes, ways, features.shape[1], seed)
    orders = draw_orders(drawn, recipe, seed)
    linear: list[Tensor] = []
    nearest: list[Tensor] = []
    for part in torch.arange(episodes).split(CHUNK):
        x, q, start = (
            features[drawn.support[part]],
            features[drawn.query[part]],
            (heads[0][part], heads[1][part]),
        )
        head = train_heads(x, drawn.support_y, orders[part], start, recipe)
        for logits, scores in (
            (head.logits(q, x, start[0].to(x.dtype)), linear),
            (nearest_mean_logits(x, drawn.support_y, q, ways), nearest),
        ):
            scores.append((logits.argmax(dim=2) == drawn.query_y).double().mean(dim=1))
    return FewShot(torch.cat(linear).numpy(), torch.cat(nearest).numpy(), drawn.dropped)
