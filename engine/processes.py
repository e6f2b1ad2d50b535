"""Whether a process of this host still is what it was."""

from __future__ import annotations

import os
from pathlib import Path


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
