"""Try launch shapes of adagn_silu on this GPU: ``python -m bench.tune``.

The kernels have fixed heuristics: the same GPU and another give the same bits, and nobody waits for a search.
This finds the constants that the heuristics are written with. Nothing else reads its results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.contests import Contest, contests, run
from bench.gputime import copy_bandwidth, sets_for, time_cold
from bench.report import in_a_line, markdown
from bench.shapes import load_preset
from bench.traffic import size
from kernels.adagn_silu import op
from kernels.backend import set_backend

NAMES = ("TILE", "WIDEST", "MOST_TILES", "WARPS", "STAGES")
CHOICES = tuple(itertools.product((1024, 2048, 4096), (32, 64, 128), (2, 4, 8, 16), (4, 8), (1, 3, 4)))
LARGEST, SMALLEST = 16, 8  # elements a thread holds of a tile: one or two 128-bit accesses in bfloat16
Row = dict[str, Any]


def choices() -> Iterator[tuple[int, ...]]:
    """Launch shapes that leave a thread neither too much nor too little."""
    for tile, widest, tiles, warps, stages in CHOICES:
        if SMALLEST <= tile // (32 * warps) <= LARGEST and 4096 <= tile * tiles <= 32768 and stages <= tiles:
            yield tile, widest, tiles, warps, stages


def sizes(count: int, batch: int) -> list[Contest]:
    """Norms of the 128-px preset that move the most memory in a step, forward ones and trained ones."""
    every = list(contests(load_preset("bedroom"), batch, ("adagn_silu",)))
    return sorted(every, key=lambda c: -c.count * c.traffic.kernel_bytes)[:count]


def attempt(contest: Contest, choice: tuple[int, ...], device: torch.device, timed: bool) -> Row:
    """One launch shape at one size."""
    for name, value in zip(NAMES, choice, strict=True):
        setattr(op, name, value)
    row: Row = {"title": contest.title, **dict(zip(NAMES, choice, strict=True))}
    try:
        inputs = contest.make(device)
        if not timed:
            run(contest.kernel, inputs, contest.leaves)
            return row
        sets = [inputs, *(contest.make(device) for _ in range(sets_for(size(*inputs.values()), device) - 1))]
        calls = [partial(run, contest.kernel, some, contest.leaves) for some in sets]
        return {**row, "us": time_cold(calls).median}
    except Exception as error:  # a shape that does not fit
        return {**row, "error": in_a_line(error)}


def table(rows: list[Row], bandwidth: float, moved: dict[str, int], best: int = 6) -> str:
    """The fastest shapes of each size, and those that are fastest over all sizes."""
    timed = [row for row in rows if "us" in row]
    lines: list[list[str]] = []

    def line(title: str, row: Row, us: float, bytes_moved: int) -> list[str]:
        share = f"{100 * bytes_moved / (us * 1e-6) / bandwidth:.0f} %"
        return [title, *(str(row[name]) for name in NAMES), f"{us:.1f}", share]

    for title in dict.fromkeys(row["title"] for row in timed):
        of_size = sorted((row for row in timed if row["title"] == title), key=lambda row: row["us"])
        lines += [line(title, row, row["us"], moved[title]) for row in of_size[:best]]
    sums: dict[tuple[int, ...], list[Row]] = {}
    for row in timed:
        sums.setdefault(tuple(row[name] for name in NAMES), []).append(row)
    most = max(map(len, sums.values()), default=0)
    whole = sorted((sum(r["us"] for r in s), s) for s in sums.values() if len(s) == most)[:best]
    lines += [line("all", some[0], us, sum(moved[r["title"]] for r in some)) for us, some in whole]
    return markdown(["size", *NAMES, "us", "bytes of today's passes / copy"], lines)


def main(arguments: list[str]) -> int:
    """Search, print the fastest, and return the exit code."""
    parser = argparse.ArgumentParser(prog="bench.tune", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, default=4, help="norms to try (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--budget", type=float, default=240, help="seconds (default: %(default)s)")
    parser.add_argument("--share", default="0/1", help="I/N: every N-th launch shape from I on")
    parser.add_argument("--compile-only", action="store_true", help="fill Triton's cache, time nothing")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: bench.tune needs a CUDA device", file=sys.stderr)
        return 2
    device, end = torch.device("cuda"), time.monotonic() + options.budget
    set_backend("triton")
    some = sizes(options.sizes, options.batch)
    first, step = map(int, options.share.split("/"))
    work = itertools.product(some, list(choices())[first::step])
    rows = [
        attempt(contest, choice, device, not options.compile_only)
        for contest, choice in work
        if time.monotonic() < end
    ]
    if options.compile_only:
        return 0
    bandwidth = copy_bandwidth(device)
    print(table(rows, bandwidth, {contest.title: contest.traffic.kernel_bytes for contest in some}))
    if options.out:
        options.out.write_text(json.dumps({"copy_bytes_per_second": bandwidth, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
