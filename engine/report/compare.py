"""Several runs side by side: where their configs differ, their numbers, and differences pair by pair.

What is paired is said with every difference, since it decides what its interval is about: lines of the log
(same images, times and noise), factors, bands of time, or seeds. Only the last speaks of other trainings.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from engine.config_file import config_hash, flat
from engine.report.reading import Run
from engine.report.told import number

# Student's t at 97.5 % by degrees of freedom; beyond, the normal's.
T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
T_BEYOND = 2.0
MEASURES = {
    "loss_reduction": "loss below the frozen model's own",
    "mean_probe": "mean linear probe",
    "moved_by_all": "factors moved by all of z",
    "distinct_factors": "different factors moved by single subsets",
}


@dataclass(frozen=True)
class Difference:
    """Run ``b`` minus run ``a`` over pairs, the mean with its 95 % interval (paired t)."""

    a: str
    b: str
    what: str
    paired_by: str
    pairs: int
    mean: float
    half_width: float
    above: int  # pairs in which b is larger

    @property
    def told(self) -> str:
        if math.isnan(self.half_width):
            return f"{self.mean:+.4g}"
        return f"{self.mean:+.4g} ± {self.half_width:.2g}"


def config_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Keys in which the configs differ, with every run's value."""
    values = [flat(run.config.to_dict()) for run in runs]
    keys = sorted({key for found in values for key in found} - {"notes", "run.dir"})
    rows = [(key, [json.dumps(found.get(key)) for found in values]) for key in keys]
    return [(key, cells) for key, cells in rows if len(set(cells)) > 1]


def final_numbers(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The newest value of everything that has one number a run."""
    rows: list[tuple[str, list[Any], str]] = [
        ("step", [f"{run.step:,} of {run.config.train.steps:,}" for run in runs], ""),
        ("loss", [run.last("loss") for run in runs], ""),
        ("held-out loss", [run.last("held_out_loss") for run in runs], ""),
        ("loss below the frozen model's, training", [run.last("reduction") for run in runs], "%"),
        ("images a second", [run.last("images_per_second") for run in runs], ""),
    ]
    for key, name in MEASURES.items():
        rows.append(
            (
                f"{name}, held-out rooms",
                [_arm(run).get(key) for run in runs],
                "%" if key[:4] == "loss" else "",
            )
        )
    told = [
        (name, [v if isinstance(v, str) else number(v, unit) for v in values]) for name, values, unit in rows
    ]
    return [(name, cells) for name, cells in told if any(cell != "-" for cell in cells)]


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Every other run minus the first, and arm minus arm over the seeds they share."""
    first = runs[0]
    found = [
        d for run in runs[1:] for d in (*_by_line(first, run), *_by_factor(first, run), *_by_band(first, run))
    ]
    return [*_by_seed(runs), *found]


def _by_line(a: Run, b: Run) -> Iterator[Difference]:
    """Over the last quarter of the steps that both have."""
    if _stream(a) != _stream(b):
        return
    for name in ("reduction", "loss", "simsiam"):
        ours, theirs = (dict(zip(*run.curve(name), strict=True)) for run in (a, b))
        common = sorted(
            step for step in ours.keys() & theirs.keys() if None not in (ours[step], theirs[step])
        )
        late = [step for step in common if step > 0.75 * common[-1]]
        if len(late) > 1:
            told = "share of the loss that g removes" if name == "reduction" else name
            pairs = [theirs[step] - ours[step] for step in late]
            yield _difference(a.name, b.name, told, "line of the log, last quarter", pairs)
            return


def _stream(run: Run) -> tuple[object, ...]:
    """What decides which images, times and noise a step sees."""
    c, d = run.config, run.config.data
    return (c.seed, c.train.batch_size, d.source, d.path, d.px, d.count, d.split, d.held_out, d.flip)


def _by_factor(a: Run, b: Run) -> Iterator[Difference]:
    first, second = a.evaluation, b.evaluation
    if not first or not second or first["factors"] != second["factors"]:
        return
    probes = [e["probe"]["this run"] for e in (first, second)]
    yield _difference(a.name, b.name, "linear probe", "factor", _minus(*probes))
    if first.get("causal") and second.get("causal"):
        moved = [e["causal"]["success"][e["causal"]["rows"].index("all")] for e in (first, second)]
        yield _difference(a.name, b.name, "success of swapping all of z", "factor", _minus(*moved))


def _by_band(a: Run, b: Run) -> Iterator[Difference]:
    ours, theirs = a.last("reduction_by_time"), b.last("reduction_by_time")
    if ours and theirs and len(ours) == len(theirs):
        pairs = _minus(ours, theirs)
        if len(pairs) > 1:
            yield _difference(a.name, b.name, "share of the loss that g removes", "band of time", pairs)


def _by_seed(runs: Sequence[Run]) -> Iterator[Difference]:
    """Between configs that differ in more than the seed, over the seeds that both have."""
    arms: dict[str, dict[int, Run]] = {}
    for run in runs:
        arm = config_hash(run.config.model_copy(update={"seed": 0}))
        arms.setdefault(arm, {})[run.config.seed] = run
    groups = list(arms.values())
    for other in groups[1:]:
        seeds = sorted(groups[0].keys() & other.keys())
        for key, name in MEASURES.items() if len(seeds) > 1 else ():
            pairs = _minus(*([_arm(arm[s]).get(key) for s in seeds] for arm in (groups[0], other)))
            if len(pairs) > 1:
                yield _difference(_arm_name(groups[0]), _arm_name(other), name, "seed", pairs)


def _arm_name(arm: dict[int, Run]) -> str:
    return " + ".join(run.name for run in arm.values())


def _difference(a: str, b: str, what: str, paired_by: str, pairs: list[float]) -> Difference:
    mean, half = statistics.fmean(pairs), math.nan
    if len(pairs) > 1:
        t = T[len(pairs) - 2] if len(pairs) - 2 < len(T) else T_BEYOND
        half = t * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return Difference(a, b, what, paired_by, len(pairs), mean, half, sum(pair > 0 for pair in pairs))


def _minus(a: Sequence[float | None], b: Sequence[float | None]) -> list[float]:
    return [y - x for x, y in zip(a, b, strict=True) if x is not None and y is not None]


def _arm(run: Run) -> dict[str, Any]:
    return ((run.evaluation or {}).get("arms") or {}).get("this run") or {}
