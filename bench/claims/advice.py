"""What the results say for use: which switches split factors over subsets, move most, or transfer best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.claims.decide import Results
from diffsiam.evaluation.swap import ALL, NONE

MOVES = 0.15  # gain in exchange success over swapping nothing, from which a subset moves a factor


@dataclass(frozen=True)
class Handles:
    """How the parts of a model's z move factors; means over its seeds.

    Attributes:
        factors: number of factors that some single subset moves.
        subsets: number of different subsets that move those factors most.
        by_all: number of factors that the whole of z moves.
        selectivity: :func:`bench.claims.causal.selectivity`, 0..1; NaN where swaps change nothing.
        transfer: many-shot accuracy, mean over the transfer tasks.
    """

    model: str
    seeds: tuple[int, ...]
    factors: float
    subsets: float
    by_all: float
    selectivity: float
    reduction: float
    transfer: float


def handles(results: Results, names: Sequence[str]) -> list[Handles]:
    """Of every model that has a decoder and a result, in order."""
    found = []
    for name in names:
        seeds = tuple(sorted(seed for seed, r in results.by_model.get(name, {}).items() if "causal" in r))
        if not seeds:
            continue
        causal = [results.by_model[name][seed]["causal"] for seed in seeds]
        counts = [count(c["rows"], np.array(c["success"], float)) for c in causal]
        factors, subsets, by_all = (float(np.mean(of_seeds)) for of_seeds in zip(*counts, strict=True))
        selectivity = float(np.mean(np.array([c["selectivity"] for c in causal], float)))
        reduction = float(np.mean([c["reduction"] for c in causal]))
        transfer = float(results.transfer(name, seeds).mean())
        found.append(Handles(name, seeds, factors, subsets, by_all, selectivity, reduction, transfer))
    return found


def count(rows: Sequence[str], success: np.ndarray) -> tuple[int, int, int]:
    """Factors moved by single subsets, subsets that move them, and factors moved by the whole of z."""
    own = success[list(rows).index(NONE)]
    gain = np.nan_to_num(success - own)  # a factor in which no pair differs is not moved
    single = gain[: list(rows).index(ALL)]
    strongest, moved = single.argmax(axis=0), single.max(axis=0) >= MOVES
    return int(moved.sum()), len(set(strongest[moved])), int((gain[list(rows).index(ALL)] >= MOVES).sum())


def section(results: Results, names: Sequence[str]) -> tuple[list[str], list[list[str]], list[str]]:
    """Columns and rows of the table, and what to read from it."""
    found = handles(results, names)
    columns = [
        "model",
        "seeds",
        "factors that single subsets move",
        "by so many different subsets",
        "factors that all of z moves",
        "selectivity",
        "loss below the frozen model's",
        "many-shot, transfers (%)",
    ]
    rows = [
        [
            h.model,
            ", ".join(map(str, h.seeds)),
            *(f"{value:.1f}" for value in (h.factors, h.subsets, h.by_all)),
            *(f"{value:.3f}" for value in (h.selectivity, h.reduction)),
            f"{100 * h.transfer:.1f}",
        ]
        for h in found
    ]
    return columns, rows, _told(found)


def _told(found: Sequence[Handles]) -> list[str]:
    if not found:
        return []
    split = max(found, key=lambda h: (h.subsets, h.factors))
    whole = max(found, key=lambda h: (h.by_all, h.reduction))
    features = max(found, key=lambda h: h.transfer)
    lines = [
        f"To edit one thing and leave another, `{split.model}`: {split.factors:.1f} factors on "
        f"{split.subsets:.1f} subsets.",
        *_most_its_own(found),
        f"To move as many factors as possible with all of z, `{whole.model}`.",
        f"For features alone, `{features.model}` transfers best of these.",
    ]
    random = [h for h in found if h.model.endswith("-random") and h.factors]
    if random:
        most = max(h.subsets for h in random)
        lines.append(
            "With a random k (Algorithm 1 as printed) what single subsets move lies in "
            + ("one subset." if most <= 1 else f"up to {most:.1f} subsets.")
        )
    return lines


def _most_its_own(found: Sequence[Handles]) -> list[str]:
    several = [h for h in found if h.subsets >= 2 and not math.isnan(h.selectivity)]
    if not several:
        return []
    several.sort(key=lambda h: -h.selectivity)
    return [
        "Where two subsets or more move factors, the share of what a subset changes that is what it knows "
        f"most of (selectivity): {', '.join(f'`{h.model}` {h.selectivity:.3f}' for h in several)}."
    ]
