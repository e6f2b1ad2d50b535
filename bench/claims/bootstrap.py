"""Confidence intervals of a mean over seeds and tasks, both of which might have been others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def bootstrap(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean of values (seeds, tasks), resampled hierarchically: seeds first, then tasks within each.

    With one seed only the tasks vary, and the interval knows nothing of the spread between trainings.
    """
    rng = np.random.default_rng(seed)
    seeds, tasks = values.shape
    rows = rng.integers(0, seeds, (resamples, seeds, 1))
    columns = rng.integers(0, tasks, (resamples, seeds, tasks))
    means = values[rows, columns].mean(axis=(1, 2))
    return Interval(float(values.mean()), *(float(v) for v in np.quantile(means, (0.025, 0.975))))


def sign_test(values: np.ndarray) -> float:
    """Two-sided p-value of as many positive values among those that are not 0, if signs were a coin's."""
    from math import comb

    decided = values[values != 0]
    n, wins = len(decided), int((decided > 0).sum())
    if n == 0:
        return 1.0
    tail = sum(comb(n, i) for i in range(max(wins, n - wins), n + 1)) / 2**n
    return min(1.0, 2 * tail)
