"""Time few-shot heads beside the per-episode torch loop: ``python -m bench.few_shot [--json]``.

First the gate: in float64, on the same supports, orders and first weights, the batched heads must equal
those of torch.nn.Linear and torch.optim.SGD to 1e-6, or nothing is timed and the exit code is 1. Then 2,000
episodes of 1, 5 and 10 shots at d = 512 are run in full, and a part of the loop, whose cost per step is the
same throughout. One thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffsiam.evaluation.episodes import Episodes, draw_episodes, draw_heads, draw_orders
from diffsiam.evaluation.few_shot import Recipe, train_heads
from diffsiam.evaluation.few_shot_run import few_shot
from engine import screen

DIM, CLASSES, PER_CLASS, EPISODES, SHOTS = 512, 20, 60, 2000, (1, 5, 10)
COMPARED, LARGEST_DIFFERENCE = 3, 1e-6
LOOPED = 4  # episodes of the loop that are timed at each number of shots


@dataclass(frozen=True)
class Times:
    """Seconds of all episodes, by shots: measured, and the loop's extrapolated from some episodes."""

    batched: dict[int, float]
    loop: dict[int, float]

    @property
    def seconds(self) -> float:
        return sum(self.batched.values())

    @property
    def ratio(self) -> float:
        return sum(self.loop.values()) / self.seconds


def pool(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (N, d) of ``CLASSES`` overlapping classes, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    centres = 0.1 * rng.normal(size=(CLASSES, DIM))
    features = centres[labels] + rng.normal(size=(len(labels), DIM))
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def loop(x: Tensor, y: Tensor, orders: Tensor, start: tuple[Tensor, Tensor], recipe: Recipe) -> nn.Linear:
    """One episode as everybody writes it: a linear layer, SGD, batches in a Python loop."""
    head = nn.Linear(x.shape[1], len(start[0])).to(x.dtype)
    with torch.no_grad():
        head.weight.copy_(start[0])
        head.bias.copy_(start[1])
    optimizer = torch.optim.SGD(
        head.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        dampening=recipe.dampening,
        weight_decay=recipe.weight_decay,
    )
    for order in orders:
        for batch in order.split(recipe.batch):
            loss = nn.functional.cross_entropy(head(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head


def difference(recipe: Recipe) -> float:
    """Largest difference of any weight, bias or query logit from the loop's, in float64."""
    features, labels = pool()
    features, worst = features.double(), 0.0
    for shots in SHOTS:
        episodes = draw_episodes(labels.numpy(), shots, COMPARED)
        orders, start = draw_orders(episodes, recipe), draw_heads(COMPARED, episodes.ways, DIM)
        start = (start[0].double(), start[1].double())
        x, queries = features[episodes.support], features[episodes.query]
        head = train_heads(x, episodes.support_y, orders, start, recipe)
        weights, logits = head.weight(x, start[0]), head.logits(queries, x, start[0])
        for e in range(COMPARED):
            plain = loop(x[e], episodes.support_y, orders[e], (start[0][e], start[1][e]), recipe)
            for ours, theirs in (
                (weights[e], plain.weight),
                (head.bias[e], plain.bias),
                (logits[e], plain(queries[e])),
            ):
                worst = max(worst, (ours - theirs).abs().max().item())
    return worst


def measure(recipe: Recipe, episodes: int = EPISODES) -> Times:
    """Both, in turns of one number of shots."""
    features, labels = pool()
    batched, looped = {}, {}
    for shots in SHOTS:
        begun = time.perf_counter()
        few_shot(features, labels, shots, episodes, recipe=recipe)
        batched[shots] = time.perf_counter() - begun
        drawn = draw_episodes(labels.numpy(), shots, LOOPED)
        looped[shots] = _time_loop(features, drawn, recipe) * episodes / LOOPED
    return Times(batched, looped)


def _time_loop(features: Tensor, episodes: Episodes, recipe: Recipe) -> float:
    orders, start = draw_orders(episodes, recipe), draw_heads(LOOPED, episodes.ways, DIM)
    begun = time.perf_counter()
    for e in range(LOOPED):
        head = loop(
            features[episodes.support[e]], episodes.support_y, orders[e], (start[0][e], start[1][e]), recipe
        )
        with torch.no_grad():
            (head(features[episodes.query[e]]).argmax(dim=1) == episodes.query_y).double().mean()
    return time.perf_counter() - begun


def main(arguments: list[str]) -> int:
    """Exit code 1 if the two differ."""
    parser = argparse.ArgumentParser(prog="bench.few_shot", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe = Recipe()
    worst = difference(recipe)
    record: dict[str, Any] = {"max_difference": worst, "episodes": options.episodes, "dim": DIM}
    if worst <= LARGEST_DIFFERENCE:
        times = measure(recipe, options.episodes)
        record |= {"seconds": times.seconds, "ratio": times.ratio, "loop_seconds": sum(times.loop.values())}
        record["seconds_by_shots"] = times.batched
    if options.json:
        print(json.dumps(record))
    else:
        screen.block([(key, str(value)) for key, value in record.items()], "few-shot heads")
    return int(worst > LARGEST_DIFFERENCE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
