"""Stopping when the scheduler, the launcher or the user asks: finish the step, save, leave."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

import torch
from torch import Tensor

from engine.processes import REQUESTS

# Ctrl-C reaches every process of a terminal, and the deepspeed launcher then sends SIGTERM to its children as
# well: what arrives together is one request.
TOGETHER_SECONDS = 2.0


class Interrupted(Exception):
    """A request to stop that arrived inside :meth:`Preemption.interruptible`."""


class Preemption:
    """Turns SIGINT, SIGTERM and SIGUSR1 into a flag that the loop reads before each step; a context manager.

    The first signal sets the flag and says so in one line (on rank 0). One more, at least two seconds later,
    ends the process at once with 128 + its number; the checkpoint on disk stays intact. Handlers are those of
    before after :meth:`close`. Create it in the main thread.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._interrupts = False
        self._previous = {number: signal.signal(number, self._handle) for number in REQUESTS}

    def requested(self) -> bool:
        """Whether this process has been asked to stop."""
        return self._first is not None

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Around what loses nothing when it is broken off, such as drawing: a request raises there at once.

        Raises:
            Interrupted: there was a request, before or during the block.
        """
        if self.requested():
            raise Interrupted
        self._interrupts = True
        try:
            yield
        finally:
            self._interrupts = False

    def agreed(self, reduce: Callable[[Tensor], Tensor] | None = None) -> bool:
        """Whether any rank has been asked to stop: one answer on all ranks, so that all stop at one step.

        Args:
            reduce: sums a float32 CPU tensor (1,) over the ranks. Over a gloo group, so that no device is
                waited for; None for one rank.
        """
        if reduce is None:
            return self.requested()
        return bool(reduce(torch.tensor([float(self.requested())])).item() > 0)

    def close(self) -> None:
        """Give the signals back to whoever handled them before."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def __enter__(self) -> Preemption:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            _say(
                f"{signal.Signals(number).name}: stopping after this step, saving; once more to leave at once"
            )
            if self._interrupts:
                self._interrupts = False
                raise Interrupted
        elif now - self._first >= TOGETHER_SECONDS:
            os._exit(128 + number)  # no clean-up that could hang in a collective


def _say(text: str) -> None:
    # print() may be what was interrupted, and it cannot be re-entered.
    if int(os.environ.get("RANK", "0")) == 0:
        os.write(2, f"\n{text}\n".encode())
