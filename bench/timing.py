"""Clocks: steps timed in turns, the parts of a step, and what a machine reaches at best."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

BLOCK = 5  # steps in a row before the other takes its turn
WARM_UP = {"cpu": 2, "cuda": 20}
# Images (B, C, H, W) of 3x3 convolutions and sides of square products; the fastest of each is the peak.
CONVOLUTIONS = {
    "cpu": ((4, 64, 64, 64), (4, 128, 64, 64), (4, 256, 32, 32), (16, 256, 32, 32)),
    "cuda": ((32, 128, 128, 128), (32, 256, 64, 64), (128, 512, 32, 32)),
}
PRODUCTS = {"cpu": (512, 1024), "cuda": (4096, 8192)}
REPEATS = 10

# Of a CPU, in seconds; time.process_time where others are at work on it (bench.step --processor-time).
clock: Callable[[], float] = time.perf_counter

Phases = Mapping[str, Sequence[tuple[Any, str]]]  # part of a step -> (object, name of the method that is it)


@dataclass(frozen=True)
class Timing:
    """Milliseconds per step over all timed steps, and images per second at the median."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    images_per_second: float


def timed(step: Callable[[], Any], count: int, device: torch.device) -> list[float]:
    """Milliseconds of each of ``count`` steps; by the device's own clock on CUDA, for the host runs ahead."""
    if device.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            step()
            event.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False)]
    marks = [clock()]
    for _ in range(count):
        step()
        marks.append(clock())
    return [1000 * (b - a) for a, b in zip(marks, marks[1:], strict=False)]


def race(
    steps: dict[str, Callable[[], Any]], count: int, batch: int, device: torch.device
) -> dict[str, Timing]:
    """Time every step ``count`` times or some more, in turns, so that a drifting clock meets all of them."""
    for step in steps.values():
        timed(step, WARM_UP[device.type], device)
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(-(-count // BLOCK)):
        for name, step in steps.items():
            spent[name] += timed(step, BLOCK, device)
    return {name: _timing(values, batch) for name, values in spent.items()}


def _timing(milliseconds: list[float], batch: int) -> Timing:
    fifths = statistics.quantiles(milliseconds, n=5)
    median = statistics.median(milliseconds)
    return Timing(median, fifths[0], fifths[3], 1000 * batch / median)


def split(step: Callable[[], Any], phases: Phases, count: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each part of a step, and of the "rest". A part within another counts for itself
    alone: what the outer one is given is without it.
    """
    spent: dict[str, list[float]] = defaultdict(list)
    for _ in range(count):
        with _watched(phases, device) as watch:
            total = timed(step, 1, device)[0]
        parts = watch.milliseconds()
        for name in phases:
            spent[name].append(parts.get(name, 0.0))
        spent["rest"].append(total - sum(parts.values()))
    return {name: statistics.median(values) for name, values in spent.items()}


class _Watch:
    """Marks at the ends of calls, from which their times follow when the device has caught up."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._calls: list[tuple[str, Any, Any]] = []
        self._open: list[str] = []
        self._within: list[tuple[str, int]] = []  # (the call around it, index of the call)

    def mark(self) -> Any:
        if not self._cuda:
            return clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def call(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        begin, around = self.mark(), self._open[-1] if self._open else None
        self._open.append(name)
        try:
            return function(*args, **kwargs)
        finally:
            self._open.pop()
            if around is not None:
                self._within.append((around, len(self._calls)))
            self._calls.append((name, begin, self.mark()))

    def milliseconds(self) -> dict[str, float]:
        if self._cuda:
            torch.cuda.synchronize()
        each = [a.elapsed_time(b) if self._cuda else 1000 * (b - a) for _, a, b in self._calls]
        totals: dict[str, float] = defaultdict(float)
        for (name, _, _), ms in zip(self._calls, each, strict=True):
            totals[name] += ms
        for around, inner in self._within:
            totals[around] -= each[inner]
        return totals


@contextmanager
def _watched(phases: Phases, device: torch.device) -> Iterator[_Watch]:
    """While the block runs, every call of the phases' methods is timed."""
    watch, changed = _Watch(device), []
    for name, methods in phases.items():
        for owner, method in methods:
            function, own = getattr(owner, method), method in vars(owner)

            def timed_call(*args: Any, _name: str = name, _function: Any = function, **kwargs: Any) -> Any:
                return watch.call(_name, _function, *args, **kwargs)

            setattr(owner, method, timed_call)
            changed.append((owner, method, function if own else None))
    try:
        yield watch
    finally:
        for owner, method, function in changed:
            if function is None:
                delattr(owner, method)
            else:
                setattr(owner, method, function)


def peaks(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s that convolutions (3x3, channels_last, forward) and matrix products reach here at best."""
    best = {"convolution": 0.0, "product": 0.0}
    with torch.no_grad():
        for shape in CONVOLUTIONS[device.type]:
            x = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
            weight = torch.randn(shape[1], shape[1], 3, 3, device=device, dtype=dtype)
            weight = weight.contiguous(memory_format=torch.channels_last)
            flops = 2 * 9 * shape[1] * x.numel()
            best["convolution"] = max(best["convolution"], flops / _shortest(_convolve(x, weight), device))
        for side in PRODUCTS[device.type]:
            a = torch.randn(side, side, device=device, dtype=dtype)
            best["product"] = max(best["product"], 2 * side**3 / _shortest(_multiply(a), device))
    return best


def _convolve(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], Any]:
    return lambda: F.conv2d(x, weight, padding=1)


def _multiply(a: torch.Tensor) -> Callable[[], Any]:
    return lambda: a @ a


def _shortest(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of some calls."""
    timed(call, 2, device)
    return min(timed(call, REPEATS, device)) / 1000
