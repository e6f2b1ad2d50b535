"""Claims A and B: many-shot and few-shot accuracy of every task, on features computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.claims.tasks import TASKS, draw
from diffsiam.evaluation.few_shot_run import few_shot
from diffsiam.evaluation.many_shot import many_shot

Encode = Callable[[Tensor], Tensor]  # uint8 (N, px, px, 3) -> (N, d) float32
SHOTS, EPISODES = (1, 5, 10), 2000


def transfer(encode: Encode, px: int, episodes: int = EPISODES) -> dict[str, Any]:
    """Scores of all tasks by name: many-shot test score and penalty, few-shot mean and std by shots."""
    found: dict[str, Any] = {}
    for style in dict.fromkeys(task.style for task in TASKS):
        data = draw(style, px)
        z = encode(data.images)
        for task in (task for task in TASKS if task.style == style):
            y = torch.from_numpy(task.labels(data.levels))
            train, test = (z[: data.train], y[: data.train]), (z[data.train :], y[data.train :])
            many = many_shot(*train, *test, task.classes, task.metric)
            few = {shots: few_shot(*test, shots, episodes) for shots in SHOTS}
            found[task.name] = {
                "many_shot": many.test,
                "penalty": many.penalty,
                "few_shot": {str(shots): scores.summary() for shots, scores in few.items()},
            }
    return found
