"""What may have gone wrong in a run, each check with what it saw: also those that found nothing are told."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.collapse import COLLAPSE, spread
from engine.json_files import DAMAGED
from engine.report.reading import Run

DEAD_EFFECT = 0.01  # share of what u lost that swapping a subset moves
HARMFUL = -0.02  # reduction of a time band below which g makes it worse
WAITS = 0.2  # share of time spent waiting for images
DRIVES = 100  # gradient norms of the two losses further apart than this
RECENT = 5  # lines of the log that a mean is taken over
Level = Literal["alarm", "caution", "fine"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    level: Level
    what: str
    saw: str


def checks(run: Run) -> list[Check]:
    """All that this run's files allow, the worst first."""
    found = [
        check
        for look in (_finite, _collapse, _dead, _idle_subsets, _harm, _bar, _waiting, _gradients, _broken)
        for check in look(run)
    ]
    return sorted(found, key=lambda check: ("alarm", "caution", "fine").index(check.level))


def _finite(run: Run) -> Iterator[Check]:
    steps, values = run.curve("loss")
    lost = [step for step, value in zip(steps, values, strict=True) if value is None]
    if lost:
        yield Check("alarm", "loss", f"is no number at step {lost[0]:,}: lower optimizer.lr or set grad_clip")
    elif steps:
        yield Check("fine", "loss", f"finite in all {len(steps)} lines of the log")


def _collapse(run: Run) -> Iterator[Check]:
    steps, values = run.curve("feature_std")
    known = [
        (s, spread(v, run.config.encoder.dim)) for s, v in zip(steps, values, strict=True) if v is not None
    ]
    if not known:
        return
    step, lowest = min(known, key=lambda pair: pair[1])
    now = known[-1][1]
    told = (
        f"spread of the features {now:.2f} of that of uniform directions, lowest {lowest:.2f} (step {step:,})"
    )
    if now < COLLAPSE:
        yield Check("alarm", "collapse", f"{told}: below {COLLAPSE} all images look alike")
    elif lowest < COLLAPSE:
        yield Check("caution", "collapse", f"{told}: it collapsed and came back")
    else:
        yield Check("fine", "collapse", told)


def _dead(run: Run) -> Iterator[Check]:
    causal = (run.evaluation or {}).get("causal")
    if not causal:
        return
    count = len(causal["rows"]) - 5
    alive = {live["subset"] for live in causal["live"]}
    dead = [i for i in range(1, count + 1) if i not in alive]
    if dead:
        told = f"{len(dead)} of {count}: swapping subset {_listed(dead)} moves no factor in 40 % of the pairs"
        yield Check("alarm" if len(dead) == count else "caution", "dead subsets", told)
    else:
        yield Check("fine", "dead subsets", f"each of the {count} subsets moves a factor")


def _idle_subsets(run: Run) -> Iterator[Check]:
    steps, effects = run.curve("causal_effect_by_subset")
    if not steps:
        return
    idle = [i for i, effect in enumerate(effects[-1], start=1) if effect is None or effect < DEAD_EFFECT]
    if idle:
        told = f"swapping these moves under {DEAD_EFFECT:.0%} of what u lost at their time: {_listed(idle)}"
        yield Check("caution", "causal effect", f"{told} (step {steps[-1]:,})")
    else:
        least = min(effects[-1])
        yield Check("fine", "causal effect", f"of every subset at least {least:.1%} (step {steps[-1]:,})")


def _harm(run: Run) -> Iterator[Check]:
    values = run.curve("reduction_by_time")[1][-RECENT:]
    if not values:
        return
    bands = [[v for v in column if v is not None] for column in zip(*values, strict=True)]
    means = [statistics.fmean(band) if band else 0.0 for band in bands]
    worse = [f"{i}/{len(means)} T" for i, mean in enumerate(means) if mean < HARMFUL]
    if worse:
        yield Check(
            "caution", "g by time", f"it makes the frozen model worse in the bands from {', '.join(worse)}"
        )
    else:
        yield Check("fine", "g by time", "no band of time is worse than the frozen model's")


def _bar(run: Run) -> Iterator[Check]:
    if run.evaluation:
        verdict = run.evaluation["verdict"]
        yield Check("caution" if verdict.startswith("misses") else "fine", "bar", verdict)


def _waiting(run: Run) -> Iterator[Check]:
    values = [v for v in run.curve("data_wait")[1] if v is not None]
    if values:
        mean = statistics.fmean(values)
        told = f"{mean:.0%} of the time is spent waiting for images"
        more = ": raise data.threads or data.workers, or prepare the set" if mean > WAITS else ""
        yield Check("caution" if mean > WAITS else "fine", "data", told + more)


def _gradients(run: Run) -> Iterator[Check]:
    ours, theirs = run.last("grad_diffusion"), run.last("grad_simsiam")
    if ours and theirs:
        ratio = theirs / ours
        told = f"SimSiam's on the encoder is {ratio:.3g} times that of the reconstruction"
        one_sided = not 1 / DRIVES <= ratio <= DRIVES
        more = ": one of the two drives alone (simsiam.weight)" if one_sided else ""
        yield Check("caution" if one_sided else "fine", "gradients", told + more)


def _broken(run: Run) -> Iterator[Check]:
    path = run.run_dir / "quarantine.jsonl"
    if path.is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if lines:
            yield Check(
                "caution", "images", f"{len(lines):,} broken ones passed over, first {_first(lines[0])}"
            )


def _first(line: str) -> str:
    try:
        return str(json.loads(line).get("item", line))[:120]
    except (*DAMAGED, AttributeError):
        return line[:120]


def _listed(numbers: list[int], most: int = 16) -> str:
    shown = ", ".join(map(str, numbers[:most]))
    return shown + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
