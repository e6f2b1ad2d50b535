"""One writer for a run directory: a lock file names the holder and is taken over when it is gone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.json_files import DAMAGED
from engine.processes import is_alive, start_time

HEARTBEAT_SECONDS = 30.0
ABANDONED_SECONDS = 600.0


@contextlib.contextmanager
def run_lock(run_dir: Path | str) -> Iterator[None]:
    """Hold ``<run_dir>/run.lock`` while the block runs; creates the directory.

    The lock of a dead process is taken over. On another host that is known by its heartbeat: a holder touches
    its lock every 30 s, and 10 min without a touch give it up.

    Raises:
        UsageError: a live process holds it (names pid and host), or the directory cannot be written.
    """
    lock = Path(run_dir) / "run.lock"
    mine = _me()
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, mine)
    except OSError as error:
        raise UsageError(
            f"cannot write to the run directory {lock.parent}: {error}; choose another one"
        ) from error
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(lock, mine, stop), daemon=True)
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        if _read(lock) == mine:  # somebody may have removed it by hand and started another run
            lock.unlink(missing_ok=True)


def holder(run_dir: Path | str) -> str | None:
    """Who trains in a run directory now, or None."""
    lock = Path(run_dir) / "run.lock"
    return _live_holder(lock) if lock.exists() else None


def usurper(run_dir: Path | str) -> str | None:
    """Who took this process' lock of a run directory away: it was removed by hand while this process lived,
    and another run began; or None.
    """
    lock = Path(run_dir) / "run.lock"
    return None if _read(lock) in (None, _me()) else _live_holder(lock)


def _me() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": start_time(os.getpid())}


def _acquire(lock: Path, mine: dict[str, Any]) -> None:
    with _alone_in(lock.parent):
        if lock.exists():
            if holder := _live_holder(lock):
                raise UsageError(
                    f"{lock.parent} is in use by {holder}; stop that run or choose another directory"
                    f" (remove {lock} only if you are sure that it is gone)"
                )
            lock.unlink()
        try:
            with open(lock, "x") as stream:
                json.dump(mine, stream)
        except FileExistsError:
            raise UsageError(
                f"{lock.parent} was taken by another run just now; choose another directory"
            ) from None


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Judge and replace an old lock alone: else a second starter would remove the first one's new lock."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every network file system can lock a directory
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _live_holder(lock: Path) -> str | None:
    """Who holds the lock, or None if that process is gone."""
    record = _read(lock)
    if record is None:  # cut off while it was written
        return None if _silence(lock) > ABANDONED_SECONDS else "an unknown process"
    pid, host = record["pid"], record["host"]
    if host == socket.gethostname():
        alive = (
            is_alive(pid) and start_time(pid) == record["started"]
        )  # pids are used again, in containers at once
    else:
        alive = _silence(lock) <= ABANDONED_SECONDS
    return f"process {pid} on {host}" if alive else None


def _read(lock: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(lock.read_text())
        return {key: record[key] for key in ("pid", "host", "started")}
    except (*DAMAGED, KeyError, TypeError):
        return None


def _silence(lock: Path) -> float:
    """Seconds since the lock was touched, by the file system's own clock: those of hosts differ."""
    probe = lock.with_name(f".clock_{os.getpid()}")
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now - lock.stat().st_mtime


def _beat(lock: Path, mine: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            if _read(lock) == mine:  # another's heart is not ours to beat
                os.utime(lock)
