"""Time the kernels beside their eager and compiled references: ``python -m bench.kernels``.

Bytes and operations are counted on any machine. On a GPU every contender is first held against float64 and
then timed with inputs that no cache holds; one that fails its gate is not timed. Times are of the operation
at the size and as often as one training step of the preset runs it.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.contests import Contest, Function, contests, run
from bench.gputime import copy_bandwidth, sets_for, time_cold
from bench.report import in_a_line, markdown
from bench.shapes import PRESETS, load_preset
from bench.traffic import size
from kernels.backend import set_backend

OPERATIONS = ("adagn_silu", "noise_jump", "recon_loss", "subset_mask")
BATCHES = {"bedroom": 32}  # images of a step on one GPU
BATCH = 128
CONTENDERS = ("kernel", "compiled", "eager")

Row = dict[str, Any]


def warm(contest: Contest, device: torch.device) -> Row:
    """Compile the kernel and the compiled reference, so that other processes find both in the caches."""
    inputs = contest.make(device)
    for function in (contest.kernel, torch.compile(contest.eager, dynamic=False)):
        run(function, inputs, contest.leaves)
    torch.compiler.reset()
    return {}


def measure(contest: Contest, device: torch.device) -> Row:
    """Gate and time every contender of one contest; what goes wrong with one is its entry."""
    row: Row = {}
    inputs = contest.make(device)
    wide = {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}
    exact = run(contest.exact, wide, contest.leaves)
    del wide
    compiled = torch.compile(contest.eager, dynamic=False)
    gated = {"kernel": contest.kernel, "compiled": compiled, "eager": contest.eager}
    for name, function in {**gated, **contest.unlike}.items():
        try:
            entry: Row = {"gate": None}
            row[name] = entry
            if name in gated:
                entry["gate"] = gate = _gate(run(function, inputs, contest.leaves), exact, contest.bounds)
                if not gate["green"]:
                    continue
            entry.update(_time(contest, function, device))
        except Exception as error:  # the others are still worth timing
            row[name] = {"error": in_a_line(error)}
    torch.compiler.reset()
    return row


def _gate(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor], bounds: tuple[float, float]) -> Row:
    """The worst of all results in units of what is allowed."""
    worst: Row = {"excess": -1.0, "tensor": ""}
    for name, truth in exact.items():
        truth, value = truth.double(), found[name].double()
        error = value - truth
        excess = 0.0
        if not torch.equal(value, truth):
            largest = (error.abs().max() / truth.abs().max()).item()
            rms = (error.square().mean() / truth.square().mean()).sqrt().item()
            excess = max(_ratio(largest, bounds[0]), _ratio(rms, bounds[1]))
        if not excess <= worst["excess"]:  # not-a-number is the worst of all
            worst = {"excess": excess, "tensor": name}
    return {**worst, "green": bool(worst["excess"] <= 1)}


def _ratio(error: float, bound: float) -> float:
    return error / bound if bound else float("inf")


def _time(contest: Contest, function: Function, device: torch.device) -> Row:
    inputs = contest.make(device)
    count = sets_for(size(*inputs.values()), device)
    sets = [inputs, *(contest.make(device) for _ in range(count - 1))]
    found = time_cold([partial(run, function, some, contest.leaves) for some in sets])
    return {"us": found.median, "p20": found.p20, "p80": found.p80, "how": found.how, "sets": count}


def describe(contest: Contest, preset: str) -> Row:
    """What is known of a contest without running it."""
    named = {"preset": preset, "operation": contest.operation, "title": contest.title}
    return {**named, "direction": contest.direction, "count": contest.count, **asdict(contest.traffic)}


def bench(
    every: Sequence[tuple[str, Contest]],
    device: torch.device,
    attempt: Callable[[Contest, torch.device], Row],
    deadline: float,
    save: Callable[[list[Row]], None],
) -> list[Row]:
    """One row a contest, saved as they come; those that the time does not reach say so."""
    rows: list[Row] = []
    for preset, contest in every:
        row = describe(contest, preset)
        if device.type == "cuda":
            if time.monotonic() < deadline:
                row |= _attempt(attempt, contest, device)
            else:
                row["skipped"] = "no time left"
        rows.append(row)
        save(rows)
    return rows


def _attempt(attempt: Callable[[Contest, torch.device], Row], contest: Contest, device: torch.device) -> Row:
    try:
        return attempt(contest, device)
    except Exception as error:  # inputs or float64 reference: too large, or a broken context
        return {"error": in_a_line(error)}
    finally:
        gc.collect()


def per_step(rows: Sequence[Row]) -> list[Row]:
    """All runs of an operation in one training step: bytes, operations, and milliseconds of each contender
    with how many of the runs they are of.
    """
    sums: dict[tuple[str, str], Row] = {}
    for row in (r for r in rows if r["count"]):
        key = row["preset"], row["operation"]
        total = sums.setdefault(key, {"preset": key[0], "operation": key[1], "count": 0})
        for name in ("least", "kernel_bytes", "eager_bytes", "launches", "flops"):
            total[name] = total.get(name, 0) + row["count"] * row[name]
        total["count"] += row["count"]
        for name in (n for n in CONTENDERS if "us" in row.get(n, {})):
            spent = total.setdefault(name, {"ms": 0.0, "timed": 0})
            spent["ms"] += row["count"] * row[name]["us"] / 1000
            spent["timed"] += row["count"]
    return list(sums.values())


def failures(rows: Sequence[Row]) -> list[str]:
    """What broke or was red, one line each."""
    found = []
    for row in rows:
        where = f"{row['preset']} {row['operation']} {row['title']}"
        if "error" in row:
            found.append(f"{where}: {row['error']}")
        for name in (n for n in (*CONTENDERS, "torch_randn") if n in row):
            entry = row[name]
            gate = entry.get("gate")
            if "error" in entry:
                found.append(f"{where}, {name}: {entry['error']}")
            elif gate and not gate["green"]:
                found.append(
                    f"{where}, {name}: RED, {gate['tensor']} is {gate['excess']:.1f} x the allowed error"
                )
    return found


def tables(rows: Sequence[Row], bandwidth: float | None, most: int | None = None) -> str:
    """The report in Markdown: sums by step, then every contest or the first ``most``."""
    timed = [f"ms {name}" for name in ("floor", *CONTENDERS)] if bandwidth else []
    columns = [
        "preset",
        "operation",
        "runs a step",
        "GB least",
        "GB ours",
        "GB eager",
        "GFLOP",
        "eager launches",
    ]
    parts = [markdown([*columns, *timed], [_sum_cells(total, bandwidth) for total in per_step(rows)])]
    if bandwidth:
        copy = f"Measured copy: {bandwidth / 1e12:.2f} TB/s, bytes read and written"
        parts.insert(0, f"{copy}; floor: least bytes at that rate.\n")
    columns = ["preset", "operation", "size", "direction", "runs", "MB least", "MB ours", "MB eager", "MFLOP"]
    columns += ["eager launches"]
    if bandwidth:
        columns += ["us floor", *(f"us {name}" for name in CONTENDERS), "ours GB/s", "ours / copy", "others"]
    parts.append(markdown(columns, [_cells(row, bandwidth) for row in rows[:most]]))
    return "\n".join(parts)


def _sum_cells(total: Row, bandwidth: float | None) -> list[str]:
    gigabytes = [f"{total[name] / 1e9:.3f}" for name in ("least", "kernel_bytes", "eager_bytes")]
    cells = [total["preset"], total["operation"], str(total["count"]), *gigabytes]
    cells += [f"{total['flops'] / 1e9:.2f}", str(total["launches"])]
    if not bandwidth:
        return cells
    cells.append(f"{total['least'] / bandwidth * 1e3:.3f}")
    for name in CONTENDERS:
        spent = total.get(name, {"ms": 0.0, "timed": 0})
        partly = "" if spent["timed"] == total["count"] else f" ({spent['timed']} runs)"
        cells.append(f"{spent['ms']:.3f}{partly}" if spent["timed"] else "not timed")
    return cells


def _cells(row: Row, bandwidth: float | None) -> list[str]:
    megabytes = [f"{row[name] / 1e6:.2f}" for name in ("least", "kernel_bytes", "eager_bytes")]
    cells = [row["preset"], row["operation"], row["title"], row["direction"], str(row["count"]), *megabytes]
    cells += [f"{row['flops'] / 1e6:.0f}", str(row["launches"])]
    if not bandwidth:
        return cells
    us = {name: row.get(name, {}).get("us") for name in CONTENDERS}
    shown = [f"{value:.1f}" if value else _why_not(row, name) for name, value in us.items()]
    achieved = row["kernel_bytes"] / us["kernel"] / 1e-6 if us["kernel"] else None
    others = [
        f"{name} {entry['us']:.1f}" for name, entry in row.items() if name == "torch_randn" and "us" in entry
    ]
    speed = [f"{achieved / 1e9:.0f}", f"{100 * achieved / bandwidth:.0f} %"] if achieved else ["", ""]
    return [*cells, f"{row['least'] / bandwidth * 1e6:.1f}", *shown, *speed, ", ".join(others)]


def _why_not(row: Row, name: str) -> str:
    entry = row.get(name, {})
    if "error" in row or "error" in entry:
        return "error"
    if entry.get("gate") and not entry["gate"]["green"]:
        return "RED"
    return row.get("skipped", "not timed")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="bench.kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", nargs="+", default=list(PRESETS), help="presets (default: %(default)s)")
    parser.add_argument("--operation", nargs="+", default=list(OPERATIONS), choices=OPERATIONS)
    parser.add_argument("--batch", type=int, help="images (default: 32 at 128 px, else 128)")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds after which rows are skipped")
    parser.add_argument("--share", default="0/1", help="I/N: every N-th contest from I on")
    parser.add_argument("--compile-only", action="store_true", help="fill the compile caches, time nothing")
    parser.add_argument("--out", type=Path, help="JSON file, rewritten after every row")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run and return the exit code: 1 if a contender broke or was red."""
    options = parse(arguments)
    deadline = time.monotonic() + options.budget
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_backend("triton" if device.type == "cuda" else "auto")
    every = [
        (name, contest)
        for name in options.config
        for contest in contests(
            load_preset(name), options.batch or BATCHES.get(name, BATCH), tuple(options.operation)
        )
    ]
    first, step = map(int, options.share.split("/"))
    timed = not options.compile_only
    bandwidth = copy_bandwidth(device) if device.type == "cuda" and timed else None
    report: Row = {"copy_bytes_per_second": bandwidth}

    def save(rows: list[Row]) -> None:
        report.update(rows=rows, per_step=per_step(rows), failures=failures(rows))
        if options.out:
            options.out.write_text(json.dumps(report, indent=1))

    rows = bench(every[first::step], device, measure if timed else warm, deadline, save)
    if timed:
        print(json.dumps(report, indent=1) if options.json else tables(rows, bandwidth))
    for line in failures(rows):
        print(f"FAILED {line}", file=sys.stderr)
    return int(bool(failures(rows)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
