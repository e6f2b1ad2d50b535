"""``diffsiam runs prune``: what a finished run does not need any more."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from engine import checkpoint, screen
from engine.errors import CheckpointError, UsageError
from engine.history.reading import Run, open_run, size_of
from engine.runlock import holder, run_lock


def prune(paths: Sequence[Path], keep: int, features: bool, do_it: bool) -> None:
    """Remove all checkpoints but the ``keep`` newest valid ones, what dead processes left half-written and,
    if asked for, the features that evaluations keep.

    Args:
        do_it: False only says what would go.

    Raises:
        UsageError: one is no run, or is being trained.
        CheckpointError: no checkpoint of a run is valid, so none of them is removed.
    """
    freed = 0
    for path in paths:
        run = open_run(path)
        if alive := holder(path):
            raise UsageError(f"{path} is in use by {alive}; prune it when it has ended")
        doomed = superfluous(run, keep, features)
        freed += sum(map(size_of, doomed))
        for entry in doomed:
            word = "removed" if do_it else "would remove"
            screen.line(f"{word} {entry}: {size_of(entry) / 1e6:.1f} MB")
        if do_it and doomed:
            with run_lock(path):
                for entry in doomed:
                    remove(entry)
    screen.line(f"{freed / 1e6:.1f} MB " + ("freed" if do_it else "in all; --yes removes them"))


def superfluous(run: Run, keep: int, features: bool) -> list[Path]:
    """Folders that may go. Every checkpoint that is to stay is compared with its manifest first."""
    kept: list[Path] = []
    reasons = []
    for step in sorted(run.checkpoints, reverse=True):
        if len(kept) == keep:
            break
        try:
            kept.append(checkpoint.verify(run.checkpoints[step]).path)
        except CheckpointError as error:
            reasons.append(str(error))
    if run.checkpoints and not kept:
        raise CheckpointError(f"{run.path}: no checkpoint is valid, none is removed: {'; '.join(reasons)}")
    doomed = [path for path in run.checkpoints.values() if path not in kept]
    doomed += sorted((run.path / "checkpoints").glob(".tmp_*"))
    if features and (run.path / "features").is_dir():
        doomed.append(run.path / "features")
    return doomed


def remove(folder: Path) -> None:
    """Remove a folder so that an interruption leaves no half of it under its name."""
    hidden = folder.with_name(f".tmp_0_{folder.name.removeprefix('.')}")
    folder.rename(hidden)
    shutil.rmtree(hidden)
