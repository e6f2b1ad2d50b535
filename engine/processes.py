"""Processes of this host: whether one still is what it was, and those that read for this one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from pathlib import Path

REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # to stop; see engine.preempt


def status_of(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the state on; None where there is no such process, or no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def start_time(pid: int) -> str | None:
    """Start of a process in clock ticks since boot, since pids are used again; None where /proc does not
    say.
    """
    fields = status_of(pid)
    return fields[19] if fields else None


def is_alive(pid: int) -> bool:
    """Whether a process of this host with that pid runs; one that is dead and not yet buried does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives and belongs to somebody else
        return True
    fields = status_of(pid)
    return fields is None or fields[0] not in "ZX"


def leave_requests_to_the_parent() -> None:
    """In a process that another one started to work for it: a signal that reaches all of them is that one's
    to judge, and while it saves it may need this one.
    """
    if multiprocessing.parent_process() is not None:
        with contextlib.suppress(ValueError):  # not the main thread
            for number in REQUESTS:
                signal.signal(number, signal.SIG_IGN)


def end_helpers() -> None:
    """End the processes that this one started to work for it; one that is stopped would stay for ever."""
    for helper in multiprocessing.active_children():
        helper.kill()
