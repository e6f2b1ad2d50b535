"""The learning rate of a step as a function of the step alone, so that resuming needs no scheduler state."""

from __future__ import annotations

import math

from engine.config import Config


def learning_rate(config: Config, step: int) -> float:
    """Rate of ``step`` in 0..train.steps-1: linear warm-up over ``warmup_steps``, then constant or half a
    cosine down to 0.
    """
    o = config.optimizer
    warm = min(1.0, (step + 1) / o.warmup_steps) if o.warmup_steps else 1.0
    if o.schedule == "constant":
        return o.lr * warm
    return o.lr * warm * 0.5 * (1 + math.cos(math.pi * step / config.train.steps))
