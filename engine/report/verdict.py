"""What counts as a result on Rooms: the bar, and this run beside what it has to be compared with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffsiam.evaluation.swap import ALL, Live, SwapMap

PROBE_GAIN = 0.1
ALL_SUCCESS, ALL_FACTORS = 0.8, 4
LARGEST_SIDE_EFFECT = 0.25
DISTINCT_FACTORS = 2
BASELINE = Path(__file__).parents[1] / "assets" / "quickstart_pdae.json"


@dataclass(frozen=True)
class Arm:
    """One column of the comparison; None where a measure does not exist for it.

    Attributes:
        loss_reduction: share of the frozen model's own loss that g removes, on held-out rooms.
        mean_probe: mean over factors of a linear probe's accuracy.
        moved_by_all: number of factors that swapping all of z moves in at least 80 % of the pairs.
        distinct_factors: number of different factors among the strongest ones of the live subsets.
    """

    loss_reduction: float | None
    mean_probe: float | None
    moved_by_all: int | None
    distinct_factors: int | None


@dataclass(frozen=True)
class Part:
    """One part of the bar."""

    what: str
    value: float
    least: float

    @property
    def passes(self) -> bool:
        return self.value >= self.least


def moved_by_all(swaps: SwapMap) -> int:
    """Number of factors that swapping all of z moves."""
    return int((np.nan_to_num(swaps.success[swaps.rows.index(ALL)]) >= ALL_SUCCESS).sum())


def distinct_factors(live: Sequence[Live]) -> int:
    """Number of different factors that the live subsets move most, side effects within bounds."""
    return len({subset.factor for subset in live if subset.side_effect <= LARGEST_SIDE_EFFECT})


def bar(run: Arm, untrained: Arm) -> list[Part]:
    """The three parts; a measure that does not exist counts as 0."""
    gain = (run.mean_probe or 0.0) - (untrained.mean_probe or 0.0)
    return [
        Part("mean probe above a random encoder", round(gain, 4), PROBE_GAIN),
        Part("factors moved by swapping all of z", run.moved_by_all or 0, ALL_FACTORS),
        Part("different factors moved by single subsets", run.distinct_factors or 0, DISTINCT_FACTORS),
    ]


def sentence(parts: Sequence[Part]) -> str:
    """The verdict in one line: what holds or, first, what does not."""

    def told(part: Part) -> str:
        return f"{part.what} {part.value:g} (bar {part.least:g})"

    missed = [part for part in parts if not part.passes]
    if missed:
        return "misses the bar: " + "; ".join(told(part) for part in missed)
    return "passes the bar: " + "; ".join(told(part) for part in parts)


def read_baseline(px: int, version: str, path: Path = BASELINE) -> tuple[Arm | None, str]:
    """The shipped run with full z (PDAE) and where it comes from, or None and why it is not available.

    The file is the ``evaluation.json`` of a run of configs/quickstart.json with method=pdae.
    """
    if not path.is_file():
        return None, f"not available ({path.name} is not shipped)"
    record: dict[str, Any] = json.loads(path.read_text())
    if (record["px"], record["rooms"]) != (px, version):
        return None, f"not available for {px} px, {version} (shipped: {record['px']} px, {record['rooms']})"
    origin = f"config {record['config_hash'][:12]}, {record['steps']} steps, seed {record['seed']}"
    return Arm(**record["arms"]["this run"]), origin


def comparison(arms: dict[str, Arm | None]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table: one measure a row, one arm a column."""
    measures = {
        "loss_reduction": ("loss below the frozen model's own", "{:.1%}"),
        "mean_probe": ("mean linear probe", "{:.3f}"),
        "moved_by_all": (f"factors moved by all of z (success {ALL_SUCCESS} or more)", "{}"),
        "distinct_factors": ("different factors moved by single subsets", "{}"),
    }
    values = [asdict(arm) if arm else {} for arm in arms.values()]
    rows = [
        [name, *(_cell(value.get(key), form) for value in values)] for key, (name, form) in measures.items()
    ]
    return ["", *arms], rows


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
