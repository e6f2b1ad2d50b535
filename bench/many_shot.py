"""Time a many-shot sweep beside scikit-learn's: ``python -m bench.many_shot [--json]``.

45 penalties on 10,000 features of 512 entries in 10 overlapping classes, as the protocol fits them: one after
the other, each from the solution before, at most 1,000 iterations. The gate: at every penalty our objective
must be at most scikit-learn's plus a thousandth of it, or the exit code is 1. One thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from diffsiam.evaluation.logistic import ITERATIONS, fit_logistic
from diffsiam.evaluation.many_shot import PENALTIES
from engine import screen

SAMPLES, DIM, CLASSES, APART = 10_000, 512, 10, 0.15
ALLOWED = 1e-3


def features(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rectified, correlated features of overlapping classes, as an encoder's are."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (samples,), generator=generator)
    centres = APART * torch.randn(CLASSES, DIM, generator=generator)
    mixing = torch.randn(DIM, DIM, generator=generator) * torch.logspace(0, -2, DIM) / DIM**0.5
    return torch.relu((centres[y] + torch.randn(samples, DIM, generator=generator)) @ mixing), y


def objective(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, c: float) -> float:
    """Mean loss and its share of the penalty, in float64."""
    logits = x.double() @ weight.double().T + bias.double()
    penalty = weight.double().square().sum().item() / (2 * c * len(x))
    return torch.nn.functional.cross_entropy(logits, y).item() + penalty


def run(samples: int = SAMPLES) -> dict[str, float]:
    """Seconds of both, their ratio, and the largest excess of our objective, relative to scikit-learn's."""
    (x, y), c = features(samples), (1 / PENALTIES).tolist()
    begun = time.perf_counter()
    ours = fit_logistic(x, y, CLASSES, c)
    seconds = time.perf_counter() - begun
    model, theirs, excess = LogisticRegression(warm_start=True, max_iter=ITERATIONS), 0.0, []
    for i, value in enumerate(c):
        begun = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=value).fit(x.numpy(), y.numpy())
        theirs += time.perf_counter() - begun
        found = torch.from_numpy(np.asarray(model.coef_)), torch.from_numpy(np.asarray(model.intercept_))
        reached = objective(x, y, *found, value)
        excess.append(objective(x, y, ours.weight[i], ours.bias[i], value) / reached - 1)
    return {
        "seconds": seconds,
        "scikit_learn_seconds": theirs,
        "ratio": theirs / seconds,
        "max_excess": max(excess),
        "min_excess": min(excess),
        "iterations": ours.iterations,
    }


def main(arguments: list[str]) -> int:
    """Exit code 1 if an objective is worse than scikit-learn's."""
    parser = argparse.ArgumentParser(prog="bench.many_shot", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = run(options.samples)
    if options.json:
        print(json.dumps(record))
    else:
        screen.block([(key, f"{value:.4g}") for key, value in record.items()], "many-shot sweep")
    return int(record["max_excess"] > ALLOWED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
