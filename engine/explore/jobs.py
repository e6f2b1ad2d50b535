"""Edits that were asked for, one after the other in a thread of their own, with their progress."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from engine.errors import CheckpointError, DataError, UsageError

KEPT = 64  # results that can still be fetched
Work = Callable[[Callable[[int], None]], Any]


class Stopped(Exception):
    """The user stopped the job."""


@dataclass
class Job:
    """One edit.

    Attributes:
        total, done: image moves.
        state: "waiting", "running", "done", "failed" or "stopped".
        error: what to tell the user of a failed one.
        made: what the work returned.
    """

    number: int
    total: int
    done: int = 0
    state: str = "waiting"
    error: str = ""
    made: Any = None
    begun: float = 0.0
    stop: bool = False

    def tell(self, more: int) -> None:
        """So many image moves are done.

        Raises:
            Stopped: nobody wants the rest.
        """
        self.done += more
        if self.stop:
            raise Stopped

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None where there is none yet."""
        if self.state != "running" or not self.done:
            return None
        return max(0.0, (time.monotonic() - self.begun) / self.done * (self.total - self.done))


@dataclass
class Jobs:
    """All jobs of a server."""

    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1))
    _jobs: dict[int, Job] = field(default_factory=dict)
    _numbers: Any = field(default_factory=itertools.count)

    def start(self, total: int, work: Work) -> Job:
        """Do this when all before it is done."""
        job = Job(next(self._numbers), total)
        self._jobs[job.number] = job
        for old in list(self._jobs)[:-KEPT]:
            del self._jobs[old]
        self._worker.submit(_carry_out, job, work)
        return job

    def get(self, number: int) -> Job | None:
        """One of the last KEPT."""
        return self._jobs.get(number)

    def close(self) -> None:
        """Stop what runs and wait for it."""
        for job in self._jobs.values():
            job.stop = True
        self._worker.shutdown(cancel_futures=True)


def _carry_out(job: Job, work: Work) -> None:
    job.begun = time.monotonic()
    try:
        job.state = "running"
        job.tell(0)
        job.made = work(job.tell)
        job.state = "done"
    except Stopped:
        job.state = "stopped"
    except (UsageError, DataError, CheckpointError) as error:
        job.state, job.error = "failed", str(error)
    except Exception as error:  # the page must say so: nobody sees a thread fail
        job.state, job.error = "failed", f"{type(error).__name__}: {error}"
