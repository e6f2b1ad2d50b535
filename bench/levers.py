"""What each lever of the step is worth: ``python -m bench.levers --config configs/bedroom.json --batch 32``.

Our step with the kernels or their references, compiled or eager, the published step in float32 and under
autocast, and the plain one, all in one process and timed in turns on the same resident batch; with
``--ablate`` ours, one row for each of :mod:`bench.ablations`, and where a step's time goes by operation.
Everything is held against the published step in float32 first; what does not agree is not timed. Without the
kernels a compiled step lets Inductor fuse the group norms: that pair of rows decides what
``kernels.backend`` should be.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.ablations import ABLATIONS, OTHER_LOSS, Lever
from bench.contenders import Batch, Ours, build_rival, make_batch, rival_gradients, views_of
from bench.gate import Gate, Result, comparable, compare, compare_rounded
from bench.plain import Plain
from bench.report import in_a_line, markdown
from bench.rivals import Published
from bench.step import parse, with_ranks
from bench.timing import race, timed
from engine.config import Config
from engine.errors import UsageError
from engine.parallel import Ranks
from engine.step import Policy, choose_policy
from kernels.backend import set_backend

GIB = 2**30
NONE = Lever()
PROFILED, LISTED = 3, 20  # steps, and operations of them in the report
Row = dict[str, Any]


class Contestant:
    """One way to compute the step.

    Args:
        build: makes (gradients of a batch, one step on a batch); weights are the same for all.
    """

    def __init__(self, name: str, build: Callable[[], tuple[Callable[[], Result], Callable[[], Any]]]):
        self.name, self._build = name, build
        self.row: Row = {}

    def prepare(self, device: torch.device) -> None:
        """Build it, and note what its state takes and how long the first pass compiles."""
        before = _allocated(device)
        self.gradients, self.step = self._build()
        self.row["state_gib"] = (_allocated(device) - before) / GIB
        began = time.monotonic()
        self.result = self.gradients()
        _wait(device)
        self.row["first_pass_s"] = time.monotonic() - began

    def measure_memory(self, device: torch.device) -> None:
        """Note what one step takes on top of its state, optimizer state included."""
        self.step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = _allocated(device)
            self.step()
            self.row["step_gib"] = (torch.cuda.max_memory_allocated() - before) / GIB


def _allocated(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    gc.collect()
    return torch.cuda.memory_allocated()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def variants(config: Config, device: torch.device) -> dict[str, Config]:
    """Ours with each lever, by name; on a CPU there is neither kernel nor reason to compile."""
    if device.type != "cuda":
        return {"ours: reference, eager": _changed(config, "reference", "off")}
    return {
        "ours: triton, compiled": _changed(config, "triton", "auto"),
        "ours: reference, compiled": _changed(config, "reference", "auto"),
        "ours: triton, eager": _changed(config, "triton", "off"),
        "ours: reference, eager": _changed(config, "reference", "off"),
    }


def _changed(config: Config, backend: str, compile: str) -> Config:
    kernels = config.kernels.model_copy(update={"backend": backend})
    train = config.train.model_copy(update={"compile": compile})
    return config.model_copy(update={"kernels": kernels, "train": train})


def our_step(
    config: Config, ranks: Ranks, batch: Batch, lever: Lever = NONE
) -> tuple[Callable[[], Result], Callable[[], Any]]:
    """Gradients and step of the engine under ``config`` and with a lever moved; each call first sets the
    backend that the config names.
    """
    with lever.around():
        ours = Ours(config, ranks, lever.policy(choose_policy(config, ranks.device)))
    lever.install(ours)

    def with_backend(function: Callable[[Batch], Any]) -> Any:
        set_backend(config.kernels.backend)
        with lever.around():
            return function(batch)

    return partial(with_backend, ours.gradients), partial(with_backend, ours.step)


def published_step(
    config: Config, device: torch.device, batch: Batch, autocast: torch.dtype | None
) -> tuple[Callable[[], Result], Callable[[], Any]]:
    """Gradients and step as published, or with autocast's one line added."""
    published = build_rival(Published, config, device, autocast)
    step = partial(published.step, batch["x_0"], views_of(batch))
    return partial(rival_gradients, published, batch, config.seed), step


def plain_name(device: torch.device) -> str:
    """Whether the plain rival is compiled."""
    return f"plain, {'compiled' if device.type == 'cuda' else 'eager'}"


def plain_step(
    config: Config, device: torch.device, batch: Batch, autocast: torch.dtype | None
) -> tuple[Callable[[], Result], Callable[[], Any]]:
    """Gradients and step of the plain rival, compiled where there is a GPU."""
    plain = build_rival(partial(Plain, compiled=device.type == "cuda"), config, device, autocast)
    return partial(rival_gradients, plain, batch, config.seed), partial(
        plain.step, batch["x_0"], views_of(batch)
    )


def contestants(
    config: Config, ranks: Ranks, policy: Policy, batch: Batch, ablate: bool = False
) -> list[Contestant]:
    """The published step first: the others are held against it."""
    device = ranks.device
    found = [Contestant("published", partial(published_step, config, device, batch, None))]
    if policy.autocast is not None:
        cast = partial(published_step, config, device, batch, policy.autocast)
        found.append(Contestant("published, autocast", cast))
    if ablate:
        levers = {name: lever for name, lever in ABLATIONS.items() if lever.device in (None, device.type)}
        ours = {f"ours {name}": lever for name, lever in {"as it is": NONE, **levers}.items()}
        return found + [
            Contestant(name, partial(our_step, config, ranks, batch, lever)) for name, lever in ours.items()
        ]
    found.append(Contestant(plain_name(device), partial(plain_step, config, device, batch, policy.autocast)))
    named = variants(config, device)
    return found + [Contestant(name, partial(our_step, some, ranks, batch)) for name, some in named.items()]


def exact_gate(config: Config, ranks: Ranks, batch: Batch) -> Gate:
    """Whether ours in float32, eager, has the loss and gradients of the published step."""
    train = config.train.model_copy(update={"precision": "fp32", "compile": "off"})
    exact = config.model_copy(update={"train": train})
    with comparable():
        ours, _ = our_step(exact, ranks, batch)
        published, _ = published_step(exact, ranks.device, batch, None)
        return compare(ours(), published())


def bench(
    config: Config, ranks: Ranks, count: int, budget: float, compile_only: bool, ablate: bool = False
) -> Row:
    """Gates, memory and times of all contestants; what breaks is a row with its error."""
    device, began = ranks.device, time.monotonic()
    batch, policy = make_batch(config, device), choose_policy(config, device)
    every = contestants(config, ranks, policy, batch, ablate)
    if compile_only:
        for one in every:
            if "compiled" in one.name:
                one.prepare(device)
        return {}
    report: Row = {"px": config.data.px, "batch": config.train.batch_size, "rows": {}}
    report["precision"] = dict(policy.reasons)["precision"]
    report["gate"] = asdict(exact_gate(config, ranks, batch))
    gc.collect()
    ready: list[Contestant] = []
    for one in every:
        report["rows"][one.name] = one.row
        if time.monotonic() - began > budget:
            one.row["skipped"] = "no time left"
        elif not report["gate"]["green"]:
            one.row["skipped"] = "the gate in float32 is red"
        else:
            _make_ready(one, ready, device, policy)
    if ready:
        try:
            _time(ready, count, config.train.batch_size, device)
        except Exception as error:  # gates and memory are still worth reporting
            for one in ready:
                one.row.setdefault("error", in_a_line(error))
    if ablate and (ours := [one for one in ready if one.name == "ours as it is"]):
        report["operations"] = slowest(ours[0].step, device)
    return report


def slowest(step: Callable[[], Any], device: torch.device) -> list[Row]:
    """The operations that take most of a step, by their own time on the device."""
    kind = "device" if device.type == "cuda" else "cpu"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as told:
        for _ in range(PROFILED):
            step()
        _wait(device)
    field = f"self_{kind}_time_total"
    found = sorted(told.key_averages(), key=lambda event: -getattr(event, field))
    total = sum(getattr(event, field) for event in found) or 1
    return [
        {
            "operation": event.key,
            "ms": getattr(event, field) / 1000 / PROFILED,
            "share": getattr(event, field) / total,
            "calls": event.count / PROFILED,
        }
        for event in found[:LISTED]
    ]


def _make_ready(one: Contestant, ready: list[Contestant], device: torch.device, policy: Policy) -> None:
    """Build, gate and measure; add it to ``ready`` if it may be timed."""
    try:
        with nullcontext() if policy.autocast else comparable():
            one.prepare(device)
        by_name = {other.name: other.result for other in ready}
        if one.name != "published":
            exact, rounded = by_name["published"], by_name.get("published, autocast")
            judge = compare_rounded if policy.autocast or policy.compile else compare
            extra = (rounded,) if judge is compare_rounded else ()
            one.row["gate"] = asdict(judge(one.result, exact, *extra))
            # The published step under autocast is a rival, not a claim: it is timed whatever it rounds.
            if _is_claim(one.name) and not one.row["gate"]["green"]:
                return
        one.measure_memory(device)
        ready.append(one)
    except Exception as error:  # the others are still worth timing
        one.row["error"] = in_a_line(error)


def _is_claim(name: str) -> bool:
    """Whether a contestant says that it computes the published loss."""
    return name.startswith(("ours", "plain")) and not name.endswith(OTHER_LOSS)


def _time(ready: list[Contestant], count: int, batch: int, device: torch.device) -> None:
    if device.type == "cuda":
        for one in ready:  # lazily compiled parts, and the allocator's pools
            timed(one.step, 3, device)
    for name, timing in race({one.name: one.step for one in ready}, count, batch, device).items():
        next(one for one in ready if one.name == name).row.update(asdict(timing))


def failures(report: Row) -> list[str]:
    """What broke or was red."""
    found = [] if report["gate"]["green"] else [f"gate in float32: {Gate(**report['gate'])}"]
    for name, row in report["rows"].items():
        gate = row.get("gate")
        if "error" in row:
            found.append(f"{name}: {row['error']}")
        elif _is_claim(name) and gate and not gate["green"]:
            found.append(f"{name}: {Gate(**gate)}")
    return found


def table(report: Row) -> str:
    """In Markdown."""
    rows = []
    for name, row in report["rows"].items():
        if "median_ms" not in row:
            why = row.get("error") or row.get("skipped") or "red gate"
            rows.append([name, why[:100].replace("|", "/"), *[""] * 6])
            continue
        spread = f"{row['p20_ms']:.2f}-{row['p80_ms']:.2f}"
        memory = [f"{row[key]:.2f}" if key in row else "" for key in ("state_gib", "step_gib")]
        agreement = f"{row['gate']['cosine']:.5f}" if "gate" in row else ""
        speed = [f"{row['median_ms']:.2f}", spread, f"{row['images_per_second']:.0f}"]
        rows.append([name, *speed, *memory, f"{row['first_pass_s']:.1f}", agreement])
    columns = ["step", "median ms", "p20-p80", "images/s", "state GiB", "step GiB", "first pass s", "cosine"]
    operations = [
        [row["operation"][:60], f"{row['ms']:.2f}", f"{row['share']:.1%}", f"{row['calls']:.0f}"]
        for row in report.get("operations", [])
    ]
    profiled = markdown(["operation", "ms a step", "share", "calls"], operations) if operations else ""
    return markdown(columns, rows) + (f"\n{profiled}" if profiled else "")


def main(arguments: list[str]) -> int:
    """Run and return the exit code: 1 if something broke or was red."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--budget", type=float, default=1e9, help="seconds after which contestants are skipped")
    own.add_argument("--compile-only", action="store_true", help="fill the compile caches, time nothing")
    own.add_argument("--ablate", action="store_true", help="one lever at a time, and a profile")
    own.add_argument("--out", type=Path, help="JSON file")
    mine, others = own.parse_known_args(arguments)
    options = parse(others)
    try:
        report = with_ranks(
            options,
            lambda config, ranks: bench(
                config, ranks, options.steps, mine.budget, mine.compile_only, mine.ablate
            ),
        )
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if mine.compile_only:
        return 0
    report = {"config": options.config.stem, **report, "failures": failures(report)}
    if mine.out:
        mine.out.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1) if options.json else table(report))
    for line in report["failures"]:
        print(f"FAILED {line}", file=sys.stderr)
    return int(bool(report["failures"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
