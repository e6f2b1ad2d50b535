"""What the page's explorer shows of a run: the index of its tiles, with what each row of its map moves."""

from __future__ import annotations

import json
import shlex
from typing import Any

from engine.report.maps import CONTROLS
from engine.report.reading import Run
from engine.report.told import words

INDEX, TILES = "explorer.json", "explorer.png"


def explorer(run: Run) -> dict[str, Any] | None:
    """The index of ``explorer.png`` and, for each row that can be chosen, name and success by factor; None
    where the run has none.
    """
    folder = run.run_dir / "report"
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not (folder / TILES).is_file():
        return None
    factors, table = unit_map(run.evaluation, index["units"])
    return {
        "index": index,
        "path": folder / TILES,
        "factors": factors,
        "rows": list(zip(map(unit_name, index["units"]), table, strict=True)),
        "data": {
            **index,
            "run": shlex.quote(str(run.run_dir)),
            "unit_names": [unit_name(unit) for unit in index["units"]],
        },
    }


def unit_map(
    evaluation: dict[str, Any] | None, units: list[str]
) -> tuple[list[str], list[list[float | None]]]:
    """Factors, and by range of subsets the largest success that one of them has alone; empty where nothing
    was measured.
    """
    causal = (evaluation or {}).get("causal")
    if not evaluation or not causal:
        return [], [[] for _ in units]
    success = causal["success"][: len(causal["success"]) - CONTROLS]
    rows = []
    for unit in units:
        inside = success[slice(*_ends(unit))]
        rows.append(
            [max((v for v in column if v is not None), default=None) for column in zip(*inside, strict=True)]
        )
    return [words(name) for name in evaluation["factors"]], rows


def unit_name(unit: str) -> str:
    """A half-open range from 0, as people count subsets."""
    first, end = _ends(unit)
    return f"subset {end}" if end == first + 1 else f"subsets {first + 1} to {end}"


def _ends(unit: str) -> tuple[int, int]:
    first, end = unit.split("-")
    return int(first), int(end)
