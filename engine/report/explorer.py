"""What the page's explorer shows of a run: the index of its tiles, with what each row of its map moves."""

from __future__ import annotations

import shlex
from typing import Any

from engine.edit.units import ends_of, unit_name
from engine.json_files import read_object
from engine.report.maps import CONTROLS
from engine.report.reading import Run
from engine.report.told import words

INDEX, TILES = "explorer.json", "explorer.png"


def explorer(run: Run) -> dict[str, Any] | None:
    """The index of ``explorer.png``, name and success by factor of each row that can be chosen, and which row
    moves most; None where the run has none.
    """
    folder = run.run_dir / "report"
    index = read_object(folder / INDEX)
    if not index or not (folder / TILES).is_file():
        return None
    factors, table = unit_map(run.evaluation, index["units"])
    return {
        "index": index,
        "path": folder / TILES,
        "factors": factors,
        "strongest": strongest(table),
        "attribute": most_moved(factors, table, index["attributes"]),
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
        inside = success[slice(*ends_of(unit))]
        rows.append(
            [max((v for v in column if v is not None), default=None) for column in zip(*inside, strict=True)]
        )
    return [words(name) for name in evaluation["factors"]], rows


def strongest(table: list[list[float | None]]) -> int:
    """The row that moves a factor most."""
    return max(range(len(table)), key=lambda i: max((v or 0.0 for v in table[i]), default=0.0))


def most_moved(factors: list[str], table: list[list[float | None]], attributes: list[str]) -> int:
    """The attribute to begin with: the factor that follows best, else the first."""
    best = {factor: max((row[k] or 0.0) for row in table) for k, factor in enumerate(factors)}
    return max(range(len(attributes)), key=lambda i: best.get(words(attributes[i]), 0.0), default=0)
