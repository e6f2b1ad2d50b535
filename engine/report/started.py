"""What a run says when it starts, kept for its report."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from engine.plain_json import write_json
from engine.report.reading import STARTED

PACKAGES = ("diffsiam", "torch", "triton", "deepspeed", "xformers", "nvidia-dali-cuda130")


def write_started(run_dir: Path, rows: Sequence[tuple[str, str]], world: int) -> None:
    """``report/started.json``: devices and implementations as on the screen, ranks, versions."""
    folder = run_dir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / STARTED, {"rows": rows, "world": world, "versions": _versions()})


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
