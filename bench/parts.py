"""Pieces of a long benchmark, each a process with a time limit: one that breaks takes no other with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TAIL = 2500  # characters of output that a report keeps


@dataclass(frozen=True)
class Part:
    """How a process ended.

    Attributes:
        code: exit code; None where it was stopped at its limit, or never started for want of time.
        output: stdout and stderr together.
    """

    name: str
    code: int | None
    seconds: float
    output: str

    @property
    def ok(self) -> bool:
        return self.code == 0

    def summary(self) -> dict[str, Any]:
        """For a report: the end of the output only where something went wrong."""
        kept = {} if self.ok else {"tail": self.output[-TAIL:]}
        return {"name": self.name, "code": self.code, "seconds": round(self.seconds, 1), **kept}


class Clock:
    """Seconds until the budget is spent."""

    def __init__(self, budget: float):
        self.end = time.monotonic() + budget

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


def start(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Python with ``arguments`` in the repository, in a session of its own."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(
    name: str, arguments: Sequence[str], limit: float, environment: Mapping[str, str] | None = None
) -> Part:
    """Run one part; at its limit it is killed with everything that it started."""
    if limit <= 1:
        return Part(name, None, 0.0, "no time left")
    began = time.monotonic()
    return finish(name, start(arguments, environment), began, limit)


def finish(name: str, process: subprocess.Popen[str], began: float, limit: float) -> Part:
    """Wait for a started part."""
    try:
        output, _ = process.communicate(timeout=max(0.1, limit))
        return Part(name, process.returncode, time.monotonic() - began, output)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        seconds = time.monotonic() - began
        return Part(name, None, seconds, f"{output}\nstopped after {seconds:.0f} s")


def together(
    jobs: Mapping[str, Sequence[str]], limit: float, environment: Mapping[str, str] | None = None
) -> list[Part]:
    """Run parts at the same time."""
    began = time.monotonic()
    running = {name: start(arguments, environment) for name, arguments in jobs.items()}
    return [
        finish(name, process, began, limit - (time.monotonic() - began)) for name, process in running.items()
    ]
