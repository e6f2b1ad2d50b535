"""A run that no longer moves ends, and says at which step, in which collective, with all threads' stacks."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from engine.errors import RankError
from engine.peers import Peer, missing
from engine.processes import end_helpers

GRACE_SECONDS = 30.0
_ENGINE = str(Path(__file__).resolve().parent)


class HangWatch:
    """Ends this process with exit code 6 when nothing happens for too long; a context manager.

    A thread compares the time since the last :meth:`step` or the begin of the last :meth:`phase` with a
    limit. Should even that thread be stuck, a timer that needs no interpreter writes the stacks and leaves
    with code 1 half a minute later.

    Args:
        seconds: a step may take, data and other ranks included.
        slow_seconds: a phase may take: starting, the first step with compilation, drawing, saving.
        rank: of this process, for the message.
        peers: of all ranks.
        run_dir: where ``hang_rank<r>.txt`` goes.
    """

    def __init__(
        self, seconds: float, slow_seconds: float, rank: int, peers: Sequence[Peer], run_dir: Path | str
    ):
        self._seconds, self._slow = seconds, max(slow_seconds, seconds)
        self._rank, self._peers = rank, peers
        self._file = Path(run_dir) / f"hang_rank{rank}.txt"
        self._what, self._limit, self._since = "starting", self._slow, time.monotonic()
        self._closed = threading.Event()
        self._main = threading.main_thread().ident or 0
        self._thread = threading.Thread(target=self._watch, name="hang watch", daemon=True)

    def step(self, step: int, first: bool = False) -> None:
        """A step begins."""
        self._now(f"step {step}", self._slow if first else self._seconds)

    @contextlib.contextmanager
    def phase(self, what: str) -> Iterator[None]:
        """Around something that may take longer than a step."""
        before = self._what
        self._now(f"{what} after {before}", self._slow)
        yield
        self._now(before, self._seconds)

    def __enter__(self) -> HangWatch:
        self._now(self._what, self._slow)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _now(self, what: str, limit: float) -> None:
        self._what, self._limit, self._since = what, limit, time.monotonic()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._limit / 4)):
            with contextlib.suppress(ValueError, AttributeError):  # standard error may be no file
                faulthandler.dump_traceback_later(
                    self._limit + GRACE_SECONDS, exit=True, file=sys.__stderr__ or sys.stderr
                )
            if time.monotonic() - self._since > self._limit:
                self._give_up()

    def _give_up(self) -> None:
        text = (
            f"rank {self._rank} has not moved for {self._limit:g} s in {self._what}, "
            f"{whereabouts(self._main)}; {missing(self._peers, 0)}; run.timeout says how long a step may "
            f"take; stacks of all threads are in {self._file}; the last checkpoint is intact"
        )
        with contextlib.suppress(OSError), open(self._file, "w") as file:
            file.write(text + "\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        print(f"error: {text}", file=sys.stderr, flush=True)
        end_helpers()
        os._exit(RankError.exit_code)  # no clean-up: it would wait for what does not come


def whereabouts(main: int) -> str:
    """Which collective a thread of this process waits in, and from which line of ours."""
    frames = sys._current_frames()
    for thread in (main, *frames):
        stack = list(_outwards(frames.get(thread)))
        collective = next((f for f in stack if _is_collective(f)), None)
        if collective is not None:
            return f"waiting for other ranks in {collective.f_code.co_name}, called at {_ours(stack)}"
    return f"not in a collective but at {_ours(list(_outwards(frames.get(main))))}"


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_collective(frame: FrameType) -> bool:
    return frame.f_code.co_filename.endswith(os.path.join("distributed", "distributed_c10d.py"))


def _ours(stack: list[FrameType]) -> str:
    frame = next((f for f in stack if f.f_code.co_filename.startswith(_ENGINE)), None)
    if frame is None:
        return "a line of no module of the engine"
    name = Path(frame.f_code.co_filename).relative_to(Path(_ENGINE).parent)
    return f"{name}:{frame.f_lineno} ({frame.f_code.co_name})"
