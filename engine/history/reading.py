"""What a run directory says of itself, without opening a tensor."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import Config
from engine.config_file import flat
from engine.errors import UsageError
from engine.json_files import read_lines, read_object
from engine.runlock import holder

DEPTH = 3  # of folders below the one that is searched
CHECKPOINT = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        config: its effective values by dotted key; those that it does not know yet are the defaults.
        checkpoints: by step, ascending.
        state: the JSON part of the newest checkpoint (config, data fingerprint, frozen weights), or {}.
        versions: of the packages that wrote it.
        metrics: the lines of metrics.jsonl by step.
    """

    path: Path
    config: dict[str, Any]
    checkpoints: dict[int, Path]
    state: dict[str, Any]
    versions: dict[str, str]
    metrics: dict[int, dict[str, Any]]

    @property
    def step(self) -> int:
        """The last step that is known of: saved, or else logged."""
        return max([0, *self.checkpoints, *self.metrics])

    @property
    def steps(self) -> int:
        return int(self.config["train.steps"])

    @property
    def status(self) -> str:
        """ "running", "finished", or "stopped"."""
        if holder(self.path):
            return "running"
        return "finished" if max([0, *self.checkpoints]) >= self.steps else "stopped"

    @property
    def bytes(self) -> int:
        return size_of(self.path)

    @property
    def results(self) -> dict[str, float]:
        """What the report measured at the end, by name; empty where there is none."""
        record = read_object(self.path / "report" / "evaluation.json")
        arm = record.get("arms", {}).get("this run", {})
        return {name: value for name, value in arm.items() if isinstance(value, int | float)}


def open_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        UsageError: it is none.
    """
    if not is_run(path):
        raise UsageError(f"{path}: no run there; `diffsiam runs list` shows those of runs/")
    checkpoints = {
        int(match[1]): entry
        for entry in sorted((path / "checkpoints").glob("step_*"))
        if (match := CHECKPOINT.fullmatch(entry.name))
    }
    newest = checkpoints[max(checkpoints)] if checkpoints else None
    state = read_object(newest / "state.json") if newest else {}
    manifest = read_object(newest / "manifest.json") if newest else {}
    saved = state.get("config")
    values = saved if isinstance(saved, dict) else read_object(path / "config.json")
    return Run(
        path,
        flat(Config().to_dict()) | flat(values),
        checkpoints,
        state,
        manifest.get("versions", {}),
        _lines(path / "metrics.jsonl"),
    )


def find_runs(folder: Path) -> list[Run]:
    """All runs in a folder, three levels deep, by name.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give the one that holds your runs")
    if is_run(folder):
        return [open_run(folder)]
    found, level = [], [folder]
    for _ in range(DEPTH):
        inner = [entry for place in level for entry in sorted(place.iterdir()) if entry.is_dir()]
        found += [entry for entry in inner if is_run(entry)]
        level = [entry for entry in inner if not is_run(entry)]
    return [open_run(path) for path in sorted(found)]


def is_run(path: Path) -> bool:
    """Whether a training wrote this folder."""
    return (path / "config.json").is_file() and (
        (path / "metrics.jsonl").is_file() or (path / "checkpoints").is_dir()
    )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _lines(path: Path) -> dict[int, dict[str, Any]]:
    """Records by step; a line that was cut off is left out."""
    records = {}
    for line in read_lines(path):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            records[int(line.pop("step"))] = line
    return records
