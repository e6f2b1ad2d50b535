"""Tables of numbers in the report: the end of training on Rooms, and ``diffsiam evaluate``."""

from __future__ import annotations

from typing import Any

from engine.errors import UsageError
from engine.report.reading import Run
from engine.report.told import number, share, words
from engine.suites.tables import SCALE, grids_of

ARMS = {
    "loss_reduction": ("loss below the frozen model's own", "%"),
    "mean_probe": ("mean linear probe", ""),
    "moved_by_all": ("factors moved by all of z", ""),
    "distinct_factors": ("different factors moved by single subsets", ""),
}
Table = dict[str, Any]


def tables(run: Run) -> list[Table]:
    """Title, note, columns and rows of each."""
    return [*_rooms(run), *_profile(run), *_evaluated(run)]


def _rooms(run: Run) -> list[Table]:
    evaluation = run.evaluation
    if not evaluation:
        return []
    arms = evaluation["arms"]
    rows = [
        [name, *(number((arm or {}).get(key), unit) for arm in arms.values())]
        for key, (name, unit) in ARMS.items()
    ]
    note = f"{evaluation['verdict']}. Full z (PDAE): {evaluation['full_z_source']}."
    probe = [[name, *map(share, values)] for name, values in evaluation["probe"].items()]
    return [
        _table("Measured on held-out rooms", note, ["", *arms], rows),
        _table("Linear probe of all of z, by factor", "", ["", *map(words, evaluation["factors"])], probe),
    ]


def _profile(run: Run) -> list[Table]:
    profile = run.profile
    if not profile:
        return []
    rows = [["clean", "-", *map(share, profile["clean"])]]
    for t, error, found in zip(profile["times"], profile["error"], profile["accuracy"], strict=True):
        rows.append([str(t), number(error), *map(share, found)])
    columns = ["t", "error", *map(words, profile["factors"])]
    note = "Factors of a room that are still read from the frozen model's x_0_hat at time t."
    return [_table("What the frozen model loses", note, columns, rows)]


def _evaluated(run: Run) -> list[Table]:
    """As ``diffsiam evaluate`` lays them out, the thesis' numbers beside."""
    if not run.results:
        return []
    try:
        grids = list(grids_of(run.results))
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{run.run_dir}/evaluation/results.json: not as this version writes it ({error}); "
            "evaluate the run again, or move the file away"
        ) from error
    note = SCALE.format(**run.results)
    return [
        _table(grid.title, note if i == 0 else "", grid.columns, grid.rows) for i, grid in enumerate(grids)
    ]


def _table(title: str, note: str, columns: list[str], rows: list[list[str]]) -> Table:
    return {"title": title, "note": note, "columns": columns, "rows": rows}
