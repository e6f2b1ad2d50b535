"""Updates that are left out because a loss or a gradient is no number, and losses that leap.

A non-finite loss or gradient on any rank makes every rank leave out that update: parameters, optimizer state
and running statistics stay as they were, on the device, without waiting for it. What was left out is known a
few steps later, or where the metrics are read.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from engine import screen
from engine.errors import NumericsError

AFTER_NUMERICS = "the last checkpoint is intact; lower optimizer.lr or set optimizer.grad_clip"
WINDOW = 100  # steps in which run.skips updates may be left out
LAG = 8  # steps after which the host looks at what became of one
SPIKE_DEVIATIONS, SPIKE_HISTORY, SPIKE_LEAST = 6.0, 50, 16


class Statistics:
    """The buffers of a module (running statistics of batch norms), which a skipped step gives back.

    All buffers of a dtype are kept in one flat tensor: three launches a step, however many there are.
    """

    def __init__(self, module: nn.Module):
        self._groups: list[list[Tensor]] = []
        for dtype in {buffer.dtype for buffer in module.buffers()}:
            self._groups.append([buffer for buffer in module.buffers() if buffer.dtype == dtype])
        self._kept = [_flat(group) for group in self._groups]

    @torch.no_grad()
    def settle(self, skipped: Tensor) -> None:
        """Keep the buffers as they are, or give back those of the last call where ``skipped`` is not 0."""
        for i, group in enumerate(self._groups):
            self._kept[i] = torch.where(skipped.bool(), self._kept[i], _flat(group))
            parts = self._kept[i].split([buffer.numel() for buffer in group])
            shaped = [part.view(buffer.shape) for part, buffer in zip(parts, group, strict=True)]
            torch._foreach_copy_(group, shaped)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def not_finite(gradients: Iterable[Tensor]) -> Tensor:
    """1.0 where the norm of all gradients together is not finite, else 0.0: 0-d, on their device."""
    norms = torch._foreach_norm([gradient.detach() for gradient in gradients])
    return (~torch.linalg.vector_norm(torch.stack(norms)).isfinite()).float()


class Flags:
    """One flag of the device a step, on the host :data:`LAG` steps later: copied without waiting, and read
    when the copy has long arrived. All ranks read the flag of one step at one step.
    """

    def __init__(self, event: Callable[[], torch.cuda.Event] = torch.cuda.Event):
        self._event = event
        self._sent: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def send(self, step: int, flag: Tensor) -> None:
        """Start the copy of a step's flag, 0-d; nothing waits for it."""
        here = torch.empty((), dtype=flag.dtype, pin_memory=flag.is_cuda)
        here.copy_(flag.detach().reshape(()), non_blocking=True)
        arrival = self._event() if flag.is_cuda else None
        if arrival is not None:
            arrival.record()
        self._sent.append((step, here, arrival))

    def arrived(self, lag: int = LAG) -> list[tuple[int, bool]]:
        """(step, whether its flag is not 0) of those sent at least ``lag`` steps before the last, once each.
        At lag 0 it waits for the device, else only for a host that runs further ahead than that.
        """
        found = []
        while self._sent and self._sent[0][0] <= self._sent[-1][0] - lag:
            step, here, arrival = self._sent.popleft()
            if arrival is not None:
                arrival.synchronize()
            found.append((step, bool(here)))
        return found


class Skips:
    """The updates that were left out, step by step.

    Args:
        path: file that each is written to, one JSON object a line; None: none (ranks above 0).
        batch: images per step, which says which positions of the stream a step holds.
        allowed: how many of the last :data:`WINDOW` steps.
        before: how many there were before this start.
    """

    def __init__(self, path: Path | None, batch: int, allowed: int, before: int = 0):
        self.total, self._path, self._batch, self._allowed = before, path, batch, allowed
        self._flags = Flags()
        self._recent: deque[int] = deque()
        self._unreported: list[int] = []

    def note(self, step: int, skipped: Tensor) -> None:
        """Remember what became of a step: 0-d, not 0 where its update was left out. What became of the step
        :data:`LAG` before is counted and logged; the device is not waited for.
        """
        self._flags.send(step, skipped)
        self._count(LAG)

    def catch_up(self) -> None:
        """Count every step noted so far; waits for the device."""
        self._count(0)

    def read(self) -> list[int]:
        """The steps left out since the last call, up to the last one noted; waits for the device."""
        self.catch_up()
        steps, self._unreported = self._unreported, []
        return steps

    def _count(self, lag: int) -> None:
        for step, skipped in self._flags.arrived(lag):
            while self._recent and self._recent[0] <= step - WINDOW:
                self._recent.popleft()
            if skipped:
                self.total += 1
                self._recent.append(step)
                self._unreported.append(step)
                self._log(step)

    @property
    def recent(self) -> list[int]:
        """Steps left out within the window."""
        return list(self._recent)

    def too_many(self) -> bool:
        """Whether more were left out than a run may lose."""
        return len(self._recent) > self._allowed

    def _log(self, step: int) -> None:
        first, last = step * self._batch, (step + 1) * self._batch - 1
        screen.warn(
            f"step {step}: the loss or its gradient is not finite; the update is left out on all ranks "
            f"(positions {first} to {last} of the stream)"
        )
        if self._path is not None:
            with open(self._path, "a") as file:
                file.write(json.dumps({"step": step, "positions": [first, last]}) + "\n")


class Spikes:
    """Losses that leap: above the median of those before by more than six median absolute deviations."""

    def __init__(self) -> None:
        self._history: deque[float] = deque(maxlen=SPIKE_HISTORY)

    def leaps(self, loss: float) -> str | None:
        """What to say of a logged loss, or None; a loss that leaps is no part of the history."""
        history = self._history
        if len(history) >= SPIKE_LEAST:
            middle = statistics.median(history)
            deviation = statistics.median(abs(value - middle) for value in history)
            if loss - middle > max(SPIKE_DEVIATIONS * deviation, abs(middle)):
                return f"the loss leapt to {loss:.4g}, the median of the last {len(history)} is {middle:.4g}"
        history.append(loss)
        return None


def demand_finite(model: dict[str, Tensor], step: int) -> None:
    """Refuse to save a model that is lost: a step may leave the finite numbers after its loss was computed.

    Raises:
        NumericsError: the checkpoints before this step are intact.
    """
    finite = torch.stack([tensor.isfinite().all() for tensor in model.values()])
    if not finite.all():
        name = next(name for name, good in zip(model, finite.tolist(), strict=True) if not good)
        raise NumericsError(f"{name} is not finite after step {step}, which is not saved; {AFTER_NUMERICS}")


def demand_number(loss: object, step: int) -> None:
    """Refuse to go on with a logged loss that is no number although every update was finite.

    Raises:
        NumericsError: the checkpoints before this step are intact.
    """
    if isinstance(loss, float) and not math.isfinite(loss):
        raise NumericsError(f"the loss is {loss} at step {step}; {AFTER_NUMERICS}")
