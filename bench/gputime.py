"""Times on a GPU as they are without launch gaps and without a warm cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

REPLAYS = 12  # of which the median is taken
SPAN_MS = 4.0  # of one replay, at least
MOST_CALLS = 64  # in one graph
COPY_BYTES = 2**30


@dataclass(frozen=True)
class Time:
    """Of one call: median, 20th and 80th percentile in microseconds, and how it was measured."""

    median: float
    p20: float
    p80: float
    how: str


def time_cold(calls: Sequence[Callable[[], Any]]) -> Time:
    """Time calls that do the same on different memory, in turns, so that no call finds its inputs in L2.

    They are captured into a CUDA graph, whose replays have no gaps between launches; what cannot be captured
    is timed by events around a run of calls.
    """
    # Every call's results live until its next turn: it writes to cold memory as well.
    results: list[Any] = [None] * len(calls)

    def turns(rounds: int) -> None:
        for _ in range(rounds):
            for i, call in enumerate(calls):
                results[i] = call()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        turns(2)
        once = max(1.0, _span(partial(turns, 1)) / len(calls))
        rounds = max(1, min(MOST_CALLS, round(SPAN_MS * 1000 / once)) // len(calls))
        run, how = _captured(partial(turns, rounds), stream)
        run()
        per_call = [_span(run) / (rounds * len(calls)) for _ in range(REPLAYS)]
    torch.cuda.synchronize()
    fifths = statistics.quantiles(per_call, n=5)
    return Time(statistics.median(per_call), fifths[0], fifths[3], how)


def _captured(run: Callable[[], Any], stream: torch.cuda.Stream) -> tuple[Callable[[], Any], str]:
    """``run`` as the replay of a graph where it can be captured, and how it runs."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            run()
    except RuntimeError as error:
        torch.cuda.synchronize()
        return run, f"events, capture failed: {str(error).splitlines()[0][:60]}"
    return graph.replay, "graph"


def _span(run: Callable[[], Any]) -> float:
    """Microseconds between two events around ``run``."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return 1000 * begin.elapsed_time(end)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written a second by the faster of two large copies: the driver's, and a kernel that
    changes the sign of every element.
    """
    source = torch.randn(COPY_BYTES // 2, device=device).to(torch.bfloat16)
    target = torch.empty_like(source)
    copies = (lambda: target.copy_(source), lambda: torch.neg(source, out=target))
    microseconds = min(time_cold([copy]).median for copy in copies)
    return 2 * COPY_BYTES / (microseconds * 1e-6)


def sets_for(bytes_of_a_call: int, device: torch.device) -> int:
    """How many sets of inputs are more than the L2 cache holds, four times over; at least two."""
    cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 50 * 2**20
    return max(2, min(16, -(-4 * cache // max(1, bytes_of_a_call))))
