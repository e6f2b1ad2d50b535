"""The report of a run that trains: rewritten now and then, and never a reason for training to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine import screen

EVERY_SECONDS = 60.0
LARGEST_SHARE = 0.01  # of the time that it may take


class LivePage:
    """A sink of the loop that rewrites ``RUN/report/index.html``.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.monotonic):
        self._run_dir, self._clock = run_dir, clock
        self._next = -float("inf")

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """Once a minute, or more seldom where the page takes long."""
        begun = self._clock()
        if begun < self._next:
            return
        write_page(self._run_dir, running=True)
        spent = self._clock() - begun
        self._next = begun + max(EVERY_SECONDS, spent / LARGEST_SHARE)

    def close(self) -> None:
        """The page as the run leaves it."""
        write_page(self._run_dir)


def write_page(run_dir: Path, running: bool = False) -> Path | None:
    """The report of one run; None, with a warning, where it cannot be written."""
    from engine.report.page import write_report

    try:
        return write_report([run_dir], running=running)
    except Exception as error:  # whatever is wrong with a page, the training is worth more
        screen.warn(f"the report was not written: {type(error).__name__}: {error}")
        return None
