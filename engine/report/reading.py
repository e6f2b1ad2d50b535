"""What a run has left on disk, read for its report. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.config import Config
from engine.config_file import from_dict
from engine.errors import UsageError
from engine.json_files import read_json, read_lines, read_object

STARTED = "started.json"  # in RUN/report: what the run said when it started
CLAIMS = "claims.json"
Point = dict[str, Any]


@dataclass(frozen=True)
class Sheet:
    """A picture that a run drew."""

    title: str
    path: Path


@dataclass(frozen=True)
class Run:
    """One run's directory, read once.

    Attributes:
        name: tells it from the others of the report.
        metrics: lines of metrics.jsonl in order of step.
        checkpoint: manifest of the newest checkpoint, {} without one.
        state: what that checkpoint says beside its tensors.
        started: implementations chosen, devices, versions; {} for runs that wrote none.
        evaluation: Rooms' report of the end of training, None before.
        profile: what the frozen model loses, None where it was not measured.
        results: of ``diffsiam evaluate``, None where it was not called.
        label_map: of ``diffsiam report --labels``, None where it was not measured.
    """

    run_dir: Path
    name: str
    config: Config
    metrics: list[Point]
    checkpoint: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    started: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    profile: dict[str, Any] | None = None
    results: dict[str, Any] | None = None
    label_map: dict[str, Any] | None = None

    @property
    def step(self) -> int:
        """The last step that left a line."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def is_done(self) -> bool:
        return self.step >= self.config.train.steps

    def curve(self, name: str) -> tuple[list[int], list[Any]]:
        """Steps and values of one metric, where it was logged."""
        found = [(int(point["step"]), point[name]) for point in self.metrics if name in point]
        return [step for step, _ in found], [value for _, value in found]

    def last(self, name: str) -> Any:
        """The newest value of one metric, None where there is none."""
        return next((point[name] for point in reversed(self.metrics) if name in point), None)

    @cached_property
    def seconds(self) -> float:
        """Time spent in training steps, from the rate and the steps of every line."""
        total, before = 0.0, 0
        for point in self.metrics:
            if rate := point.get("images_per_second"):
                total += (point["step"] - before) * self.config.train.batch_size / rate
            before = point["step"]
        return total

    @cached_property
    def sheets(self) -> list[Sheet]:
        """Pictures of the run: profile, newest grid, counterfactuals, and everything under edits/."""
        grids = sorted((self.run_dir / "grids").glob("step_*.png"))
        diffusion = self.config.task == "diffusion"
        drawn = "Samples" if diffusion else "Reconstruction: u alone, and u + w g"
        found = [Sheet(f"{drawn}, step {int(path.stem[5:]):,}", path) for path in grids[-1:]]
        report = self.run_dir / "report"
        found += [
            Sheet("Counterfactuals: room a with parts of room b", report / "counterfactuals.png"),
            Sheet("What the frozen model makes of x_t", report / "profile.png"),
        ]
        for record in sorted((self.run_dir / "edits").glob("*/edit.json")):
            edit = read_object(record)
            title = str(edit.get("command", record.parent.name))
            found.append(Sheet(f"diffsiam {title}", record.parent / "sheet.png"))
        return [sheet for sheet in found if sheet.path.is_file()]


def read_runs(run_dirs: Sequence[Path]) -> list[Run]:
    """Several runs under names that tell them apart.

    Raises:
        UsageError: one is no run, or is named twice.
    """
    resolved = [path.resolve() for path in run_dirs]
    for path, place in zip(run_dirs, resolved, strict=True):
        if resolved.count(place) > 1:
            raise UsageError(f"{path}: named twice; give each run once")
    return [_read(path, name) for path, name in zip(run_dirs, _names(resolved), strict=True)]


def read_evaluation(run_dir: Path) -> dict[str, Any] | None:
    """Rooms' report of the end of training, None where there is none."""
    return _object(run_dir / "report" / "evaluation.json")


def find_claims(run_dirs: Sequence[Path]) -> Path | None:
    """claims.json in a run's directory, or up to two above it, where ``bench.claims`` leaves it."""
    for run_dir in run_dirs:
        for folder in (run_dir, *run_dir.resolve().parents[:2]):
            if (folder / CLAIMS).is_file():
                return folder / CLAIMS
    return None


def read_claims(path: Path) -> dict[str, Any]:
    """Verdicts and their numbers.

    Raises:
        UsageError: the file is none of ``bench.claims``.
    """
    found = read_json(path)
    if not isinstance(found, dict) or "verdicts" not in found:
        raise UsageError(f"--claims {path}: no verdicts in it; it is the claims.json of bench.claims")
    return found


def _names(places: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ."""
    for length in range(1, 1 + max(len(place.parts) for place in places)):
        names = ["/".join(place.parts[-length:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def _read(run_dir: Path, name: str) -> Run:
    if not run_dir.is_dir():
        raise UsageError(
            f"{run_dir}: no such directory; give the directory of a run, such as runs/quickstart"
        )
    values = read_json(run_dir / "config.json")
    if not isinstance(values, dict):
        raise UsageError(f"{run_dir}: no run, it has no config.json; give the directory that training wrote")
    report, newest = run_dir / "report", _newest_checkpoint(run_dir)
    return Run(
        run_dir,
        name,
        from_dict(values),
        _metrics(run_dir / "metrics.jsonl"),
        _manifest(newest) if newest else {},
        read_object(newest / "state.json") if newest else {},
        read_object(report / STARTED),
        read_evaluation(run_dir),
        _object(report / "profile.json"),
        _object(run_dir / "evaluation" / "results.json"),
        _object(report / "label_map.json"),
    )


def _newest_checkpoint(run_dir: Path) -> Path | None:
    return max((run_dir / "checkpoints").glob("step_*"), default=None, key=lambda path: int(path.name[5:]))


def _manifest(checkpoint: Path) -> dict[str, Any]:
    found = read_object(checkpoint / "manifest.json")
    is_one = isinstance(found.get("files"), dict) and isinstance(found.get("step"), int)
    return found if is_one else {}


def _metrics(path: Path) -> list[Point]:
    return [point for point in read_lines(path) if isinstance(point.get("step"), int)]


def _object(path: Path) -> dict[str, Any] | None:
    return read_object(path) or None
