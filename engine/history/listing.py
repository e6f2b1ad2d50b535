"""``diffsiam runs list`` and ``diffsiam runs compare``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from engine import screen
from engine.history.reading import Run, find_runs, open_run

# Shown of a run in the list, from its last line that has them; in task "diffusion" the loss alone.
SHOWN = ("loss", "reduction")
NEVER_COMPARED = {"run.dir", "notes"}
ABSENT = "-"


def show_list(folder: Path, as_json: bool = False) -> None:
    """Print the runs in a folder, three levels deep.

    Raises:
        UsageError: there is no such folder.
    """
    runs = find_runs(folder)
    if as_json:
        screen.line(json.dumps([_summary(run, folder) for run in runs], indent=1))
        return
    if not runs:
        screen.line(f"no run in {folder}; `diffsiam train --config configs/quickstart.json` makes one")
        return
    rows = [[_cell(value) for value in _summary(run, folder).values()] for run in runs]
    screen.table(list(_summary(runs[0], folder)), rows)


def _summary(run: Run, folder: Path) -> dict[str, Any]:
    last = {name: value for line in run.metrics.values() for name, value in line.items()}
    config = run.config
    return {
        "run": str(run.path.relative_to(folder)) if run.path != folder else run.path.name,
        "method": config["method"] if config["task"] == "diffsiam" else "diffusion model",
        "data": f"{config['data.source']} {config['data.px']} px",
        "seed": config["seed"],
        "steps": f"{run.step}/{run.steps}",
        "status": run.status,
        **{name: last.get(name) for name in SHOWN},
        "saved": len(run.checkpoints),
        "MB": round(run.bytes / 1e6, 1),
        "last change": datetime.fromtimestamp(run.path.stat().st_mtime).strftime("%Y-%m-%d %H:%M"),
    }


def show_comparison(paths: Sequence[Path], as_json: bool = False) -> None:
    """Print in what runs differ: config, what they started from, and what came out.

    Raises:
        UsageError: one is no run.
    """
    runs = [open_run(path) for path in paths]
    step, metrics = common_metrics(runs)
    parts = {
        "config": config_differences(runs),
        "started from": _different(_origins(runs)),
        f"metrics at step {step}" if step else "metrics": metrics,
        "report": _by_name([run.results for run in runs]),
    }
    if as_json:
        screen.line(json.dumps({"runs": [str(path) for path in paths], **parts}, indent=1))
        return
    for title, rows in parts.items():
        if rows:
            _show_rows(title, rows, _names(paths))
        elif title in ("config", "started from"):
            screen.line(f"{title}: no difference")


def _show_rows(title: str, rows: dict[str, list[Any]], names: list[str]) -> None:
    changes = [_change(values) for values in rows.values()]
    cells = [[name, *map(_cell, values)] for name, values in rows.items()]
    if any(changes):
        names = [*names, "change"]
        cells = [[*row, change] for row, change in zip(cells, changes, strict=True)]
    screen.table(["", *names], cells, title)


def config_differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """key -> its value in each run, where they differ; where the run lies, and notes, are none."""
    keys = {key: None for run in runs for key in run.config if key not in NEVER_COMPARED}
    return _different({key: [run.config.get(key) for run in runs] for key in keys})


def common_metrics(runs: Sequence[Run]) -> tuple[int, dict[str, list[Any]]]:
    """The last step that all runs logged, and each run's numbers there; (0, {}) without one."""
    steps = set.intersection(*(set(run.metrics) for run in runs))
    if not steps:
        return 0, {}
    lines = [run.metrics[max(steps)] for run in runs]
    numbers = [{k: v for k, v in line.items() if isinstance(v, int | float)} for line in lines]
    return max(steps), _by_name(numbers)


def _origins(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Data, frozen weights and versions of each run."""
    rows: dict[str, list[Any]] = {
        "data fingerprint": [(run.state.get("data") or "")[:12] or None for run in runs],
        "frozen weights, sha256": [
            ((run.state.get("weights") or {}).get("sha256") or "")[:12] or None for run in runs
        ],
    }
    return rows | _by_name([run.versions for run in runs])


def _by_name(records: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _different(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: values for name, values in rows.items() if any(value != values[0] for value in values)}


def _change(values: Sequence[Any]) -> str:
    """Of the second of two numbers against the first, in percent; empty where that makes no sense."""
    if len(values) != 2 or not all(isinstance(v, float) for v in values) or not values[0]:
        return ""
    return f"{values[1] / values[0] - 1:+.1%}"


def _cell(value: Any) -> Any:
    if value is None:
        return ABSENT
    plain = isinstance(value, int | float | str) and not isinstance(value, bool)
    return value if plain else json.dumps(value)


def _names(paths: Sequence[Path]) -> list[str]:
    """Last parts of the paths, or all of them where those are not different."""
    short = [path.name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]
