"""The four claims of the thesis, each with its rule, written before any trained model was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.claims.bootstrap import Interval, bootstrap, sign_test
from bench.claims.models import CHOICES
from bench.claims.tasks import SOURCE, TRANSFERS

CONFIRMED, REFUTED, OPEN, MISSING = "confirmed", "refuted", "open", "not measured yet"
SHOTS = ("1", "5", "10")
SAME_SOURCE = 0.01  # largest change of the source task that counts as none
NARROW = 0.01  # half width below which an interval around 0 refutes
LEAST_SEEDS = 3  # below which a claim is at most an indication


@dataclass
class Verdict:
    """What came out for one claim and one rule of subsets.

    Attributes:
        numbers: name -> interval or value, in the order in which they are shown.
        seeds: those that all the models it needs have.
    """

    claim: str
    choice: str
    outcome: str
    seeds: tuple[int, ...] = ()
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> str:
        """The outcome with what it rests on."""
        if self.outcome in (CONFIRMED, REFUTED) and len(self.seeds) < LEAST_SEEDS:
            return f"{self.outcome} on {len(self.seeds)} seed{'s' * (len(self.seeds) > 1)} only"
        return self.outcome


class Results:
    """The files of the experiment by model and seed."""

    def __init__(self, folder: Path):
        self.by_model: dict[str, dict[int, dict[str, Any]]] = {}
        for file in sorted(folder.glob("seed*/*.json")):
            record = json.loads(file.read_text())
            self.by_model.setdefault(record["model"], {})[record["seed"]] = record

    def seeds(self, *models: str) -> tuple[int, ...]:
        """Seeds that all of these models have."""
        found = [set(self.by_model.get(model, {})) for model in models]
        return tuple(sorted(set.intersection(*found))) if found else ()

    def table(self, model: str, seeds: tuple[int, ...], *path: str) -> np.ndarray:
        """A value of every seed, (seeds,)."""
        return np.array([_at(self.by_model[model][seed], path) for seed in seeds], float)

    def transfer(self, model: str, seeds: tuple[int, ...], shots: str | None = None) -> np.ndarray:
        """Scores of the transfer tasks, (seeds, tasks): many-shot, or few-shot at ``shots``."""
        path = ("many_shot",) if shots is None else ("few_shot", shots, "linear", "mean")
        found = [self.by_model[model][seed]["transfer"] for seed in seeds]
        return np.array([[_at(scores[task.name], path) for task in TRANSFERS] for scores in found], float)

    def gain(self, ours: str, theirs: str, seeds: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Ours minus theirs, (seeds, tasks) for many-shot and every number of shots."""
        kinds = {"many-shot": None, **{f"{shots}-shot": shots for shots in SHOTS}}
        return {
            name: self.transfer(ours, seeds, shots) - self.transfer(theirs, seeds, shots)
            for name, shots in kinds.items()
        }


def _at(record: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        record = record[key]
    return record


def decide(results: Results) -> list[Verdict]:
    """All claims under all rules of subsets."""
    claims = (claim_a, claim_b, claim_c, claim_d)
    return [claim(results, choice) for claim in claims for choice in CHOICES]


def claim_a(results: Results, choice: str) -> Verdict:
    """DiffSiam transfers better than SimSiam, at no cost on the source task."""
    ours, theirs, plain = f"hier-{choice}", "simsiam", "simsiam+pdae"
    seeds = results.seeds(ours, theirs)
    verdict = Verdict("A", choice, MISSING, seeds)
    if not seeds:
        return verdict
    gains = {name: bootstrap(gap) for name, gap in results.gain(ours, theirs, seeds).items()}
    source = ("transfer", SOURCE.name, "many_shot")
    lost = float((results.table(ours, seeds, *source) - results.table(theirs, seeds, *source)).mean())
    verdict.numbers = {**gains, "source task": lost}
    both = results.seeds(ours, plain)
    if both:
        verdict.numbers["over SimSiam + whole z"] = bootstrap(results.gain(ours, plain, both)["many-shot"])
    transfer = gains["many-shot"]
    if all(gain.low > 0 for gain in gains.values()) and abs(lost) <= SAME_SOURCE:
        verdict.outcome = CONFIRMED
    elif transfer.high < 0 or (transfer.low <= 0 <= transfer.high and transfer.half_width < NARROW):
        verdict.outcome = REFUTED
    else:
        verdict.outcome = OPEN
    return verdict


def claim_b(results: Results, choice: str) -> Verdict:
    """Hierarchical beats sequential in transfer and few-shot."""
    ours, theirs = f"hier-{choice}", f"seq-{choice}"
    seeds = results.seeds(ours, theirs)
    verdict = Verdict("B", choice, MISSING, seeds)
    if not seeds:
        return verdict
    gaps = results.gain(ours, theirs, seeds)
    intervals = {name: bootstrap(gap) for name, gap in gaps.items()}
    mean = np.array([gap.mean(axis=0) for gap in gaps.values()])
    verdict.numbers = {
        **intervals,
        "tasks won": f"{int((mean > 0).sum())} of {mean.size}",
        "sign test p": sign_test(gaps["many-shot"].ravel()),
        "loss ratio": float((_held_out(results, ours, seeds) / _held_out(results, theirs, seeds)).mean()),
        "explicitness": float((_explicit(results, ours, seeds) - _explicit(results, theirs, seeds)).mean()),
    }
    verdict.outcome = _both_ways(list(intervals.values()))
    return verdict


def _both_ways(intervals: list[Interval]) -> str:
    if all(interval.low > 0 for interval in intervals):
        return CONFIRMED
    return REFUTED if all(interval.high < 0 for interval in intervals) else OPEN


def _held_out(results: Results, model: str, seeds: tuple[int, ...]) -> np.ndarray:
    """Held-out loss relative to the frozen model's own, (seeds,)."""
    return 1 - results.table(model, seeds, "causal", "reduction")


def _explicit(results: Results, model: str, seeds: tuple[int, ...]) -> np.ndarray:
    return np.array([np.mean(results.by_model[model][s]["representation"]["explicitness"]) for s in seeds])


def claim_c(results: Results, choice: str) -> Verdict:
    """Detaching disentangles better and converges more slowly."""
    ours, theirs = f"detach-{choice}", f"hier-{choice}"
    seeds = results.seeds(ours, theirs)
    verdict = Verdict("C", choice, MISSING, seeds)
    if not seeds:
        return verdict
    ratios = {
        f"loss ratio at {share} %": _loss_ratio(results, ours, theirs, seeds, share)
        for share in (25, 50, 100)
    }
    paths = {
        "group D": ("representation", "groups", "disentanglement"),
        "group gap (MIG)": ("representation", "groups", "mig"),
        "selectivity": ("causal", "selectivity"),
        "mean I(z_g; z_h)": ("representation", "separability", "mean_pair"),
    }
    gains = {
        name: bootstrap((results.table(ours, seeds, *path) - results.table(theirs, seeds, *path))[:, None])
        for name, path in paths.items()
    }
    verdict.numbers = {**ratios, **gains}
    slower, better = ratios["loss ratio at 100 %"] > 1, (gains["group D"], gains["selectivity"])
    if slower and all(gain.low > 0 for gain in better):
        verdict.outcome = CONFIRMED
    elif all(gain.high < 0 for gain in better):
        verdict.outcome = REFUTED
    else:
        verdict.outcome = OPEN
    return verdict


def _loss_ratio(results: Results, ours: str, theirs: str, seeds: tuple[int, ...], share: int) -> float:
    """Training loss with g relative to the frozen model's own, ours over theirs, at a share of the steps."""

    def relative(model: str, seed: int) -> float:
        curve = results.by_model[model][seed]["curve"]
        last = round(share / 100 * len(curve["step"]))
        part = slice(max(0, last - 3), last)
        return float(np.mean(curve["loss_with_g"][part]) / np.mean(curve["loss_frozen"][part]))

    return float(np.mean([relative(ours, seed) / relative(theirs, seed) for seed in seeds]))


def claim_d(results: Results, choice: str) -> Verdict:
    """Early subsets are fine attributes, late ones coarse (the thesis' design: detached)."""
    model = f"detach-{choice}"
    seeds = results.seeds(model)
    verdict = Verdict("D", choice, MISSING, seeds)
    if not seeds:
        return verdict
    encoder = results.table(model, seeds, "representation", "order", "rho")
    decoder = results.table(model, seeds, "causal", "order", "rho")
    verdict.numbers["rho of what subsets know"] = bootstrap(encoder[:, None])
    measured = decoder[np.isfinite(decoder)]
    if measured.size:
        verdict.numbers["rho of what subsets move"] = bootstrap(measured[:, None])
    verdict.numbers["live subsets"] = float(
        np.mean([len(results.by_model[model][seed]["causal"]["live"]) for seed in seeds])
    )
    verdict.numbers["p of what subsets know"] = results.table(
        model, seeds, "representation", "order", "p"
    ).tolist()
    verdict.outcome = _both_ways([value for value in verdict.numbers.values() if isinstance(value, Interval)])
    return verdict
