"""Named moments of a run at which a fault can be asked for, to see what becomes of it; nothing unless asked.

    DIFFSIAM_FAULT=POINT[:rank=R][:step=N|N-M|N-]:ACTION[=VALUE][,...]

    save.renamed:kill                 die as soon as a checkpoint has its name
    loss:rank=1:step=5:nan            the loss of rank 1 is NaN at step 5
    data:step=3-:sleep=2              every batch from step 3 on comes two seconds late

At a point a process can be killed ("kill"), asked to stop ("term", "usr1"), stopped ("stop"), delayed
("sleep=SECONDS") or fail ("raise", "enospc"); a value can become "nan" or "inf", be multiplied
("scale=FACTOR") or moved ("add=AMOUNT"). Ranks are those of the launcher; a point outside steps has none.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engine.errors import UsageError

VARIABLE = "DIFFSIAM_FAULT"
SIGNALS = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "usr1": signal.SIGUSR1,
    "stop": signal.SIGSTOP,
}
VALUES = ("nan", "inf", "scale", "add")
ACTIONS = (*SIGNALS, "sleep", "raise", "enospc", *VALUES)


@dataclass(frozen=True)
class Fault:
    """What to do where; ``rank`` None: on every one; ``first`` None: at every step and outside of steps."""

    point: str
    rank: int | None
    first: int | None
    last: float
    action: str
    value: float

    def applies(self, point: str, step: int | None) -> bool:
        """Whether this process is to do it at this point and step."""
        return (
            point == self.point
            and (self.rank is None or self.rank == int(os.environ.get("RANK", "0")))
            and (self.first is None or (step is not None and self.first <= step <= self.last))
        )


def point(name: str, step: int | None = None) -> None:
    """A moment at which something may happen to this process."""
    for fault in _asked(name, step):
        if fault.action in SIGNALS:
            os.kill(os.getpid(), SIGNALS[fault.action])
        elif fault.action == "sleep":
            time.sleep(fault.value)
        elif fault.action == "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif fault.action == "raise":
            raise RuntimeError(f"fault at {name}")


def spoil(name: str, step: int | None, tensor: Tensor) -> Tensor:
    """A moment at which something may happen to a value."""
    for fault in _asked(name, step):
        if fault.action in ("nan", "inf"):
            tensor = tensor * float(fault.action)
        elif fault.action == "scale":
            tensor = tensor * fault.value
        elif fault.action == "add":
            tensor = tensor + fault.value
    return tensor


def spoil_gradient(name: str, step: int, module: nn.Module) -> None:
    """A moment at which something may happen to the gradient of the first parameter in the next backward."""
    if _asked(name, step):
        parameter = next(p for p in module.parameters() if p.requires_grad)
        handles: list[RemovableHandle] = []

        def once(gradient: Tensor) -> Tensor:
            handles[0].remove()
            return spoil(name, step, gradient)

        handles.append(parameter.register_hook(once))


@torch.no_grad()
def spoil_weights(name: str, step: int, module: nn.Module) -> None:
    """A moment at which something may happen to the first parameter."""
    if _asked(name, step):
        parameter = next(module.parameters())
        parameter.copy_(spoil(name, step, parameter))


def _asked(name: str, step: int | None) -> list[Fault]:
    asked = os.environ.get(VARIABLE)
    return [fault for fault in parse(asked) if fault.applies(name, step)] if asked else []


@cache
def parse(text: str) -> tuple[Fault, ...]:
    """The faults that ``DIFFSIAM_FAULT`` asks for.

    Raises:
        UsageError: it is misspelt.
    """
    return tuple(_fault(part) for part in text.split(","))


def _fault(text: str) -> Fault:
    try:
        name, *conditions, action = text.split(":")
        given = dict(condition.split("=") for condition in conditions)
        rank = int(given.pop("rank")) if "rank" in given else None
        first, dash, last = given.pop("step", "").partition("-")
        action, _, value = action.partition("=")
        if given or action not in ACTIONS or not name:
            raise ValueError
        end = float(last or "inf") if dash else float(first or 0)
        return Fault(name, rank, int(first) if first else None, end, action, float(value or 0))
    except ValueError:
        raise UsageError(
            f"{VARIABLE}: {text!r} is not POINT[:rank=R][:step=N|N-M|N-]:ACTION[=VALUE]; "
            f"actions are {', '.join(ACTIONS)}"
        ) from None
