"""Time our whole training step beside its rivals: ``python -m bench.step``, or ``make bench``.

Rivals are the published step (:mod:`bench.rivals`) and the one that a good engineer writes
(:mod:`bench.plain`). First the gate: with the same weights, batch, t, k and noise all must give the same loss
and gradients in float32; where they are to run in bfloat16 or compiled, those steps must then agree with the
float32 one within their precision. A red gate ends the run with exit code 1 and no timing.

Then the steps (draws, encoder, noise, frozen and trained decoders, losses, backward, optimizer, average) are
timed in turns on a batch that lies in memory. There each draws t, k and noise in its own way, which is part
of the price. Dropout is off: they could not draw the same masks.

Last comes the floor (:mod:`bench.floor`): what our convolutions and matrix products take alone, which bounds
what the rest could still gain.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import timing
from bench.contenders import Ours, build_rival, make_batch, rival_gradients, rival_phases, views_of
from bench.floor import floor
from bench.gate import Gate, comparable, compare, compare_rounded
from bench.plain import Plain
from bench.rivals import Published, Rival
from bench.timing import peaks, race, split
from engine import screen
from engine.config import Config
from engine.config_file import load
from engine.errors import UsageError
from engine.operations import Operations
from engine.parallel import Ranks, start_ranks, stop_ranks
from engine.step import Policy, choose_policy
from engine.words import size_of

SMALLEST_GATE = 8  # images: batch norms of fewer magnify rounding beyond comparison
SPLIT_STEPS = 3  # whose parts are timed
COMPILE = ("auto", "on", "off")

T = TypeVar("T")


def bench(config: Config, count: int, ranks: Ranks, compile: str = "auto") -> dict[str, Any]:
    """Gate and, if it is green, times: what ``--json`` prints.

    Args:
        count: timed steps of each.
        compile: whether the plain rival is compiled; "auto": on CUDA.
    """
    device, policy = ranks.device, choose_policy(config, ranks.device)
    compiled = compile == "on" or (compile == "auto" and device.type == "cuda")
    report: dict[str, Any] = {"machine": _machine(config, policy, compiled)}
    steps: dict[str, Ours | Rival] = {}
    if not _gates(report, steps, config, ranks, policy, compiled):
        return report

    batch = make_batch(config, device)
    views = views_of(batch)
    calls: dict[str, Callable[[], Any]] = {}
    for name, one in steps.items():
        calls[name] = (
            partial(one.step, batch) if isinstance(one, Ours) else partial(one.step, batch["x_0"], views)
        )
    timings = race(calls, count, config.train.batch_size, device)
    report["split"], report["peak_memory"] = {}, {}
    for name, one in steps.items():
        phases = one.phases() if isinstance(one, Ours) else rival_phases(one)
        report["split"][name] = split(calls[name], phases, SPLIT_STEPS, device)
        report["peak_memory"][name] = _peak_memory(calls[name], one, name == "plain" and compiled, device)
    for name, found in timings.items():
        report[name], report[f"{name}_ms"] = asdict(found), found.median_ms
        if name != "ours":
            report[f"ratio_{name}"] = found.median_ms / timings["ours"].median_ms
    reached = peaks(device, policy.autocast or torch.float32)
    report["peaks"], rate = reached, report["flop_step"] / (report["ours_ms"] / 1000)
    report["flop_per_second"], report["share_of_peak"] = rate, rate / reached["convolution"]
    report["floor"] = floor(calls["ours"], device)
    return report


def _gates(
    report: dict[str, Any],
    steps: dict[str, Ours | Rival],
    config: Config,
    ranks: Ranks,
    policy: Policy,
    compiled: bool,
) -> bool:
    """Compare all steps, note the gates in ``report`` and what is to be timed in ``steps``; whether all are
    green.
    """
    device, seed = ranks.device, config.seed
    batch = make_batch(config, device, max(config.train.batch_size, SMALLEST_GATE))
    exact = _with(config, precision="fp32", compile="off")
    published = build_rival(Published, config, device)
    with comparable():
        with FlopCounterMode(display=False) as counter:
            reference = rival_gradients(published, batch, seed)
        # Of the published step: what another computes in fewer operations counts as these.
        report["flop_step"] = counter.get_total_flops() * config.train.batch_size // len(batch["x_0"])
        ours = Ours(exact, ranks, choose_policy(exact, device))
        gate = compare(ours.gradients(batch), reference)
        plain = build_rival(Plain, config, device)
        gate_plain = compare(rival_gradients(plain, batch, seed), reference)
    report["gate"], report["gate_plain"] = asdict(gate), asdict(gate_plain)
    if not (gate.green and gate_plain.green):
        return False
    if policy.autocast is not None or policy.compile or compiled:
        del ours, plain
        ours, rounded = Ours(config, ranks, policy), None
        plain = build_rival(partial(Plain, compiled=compiled), config, device, policy.autocast)
        if policy.autocast is not None:
            cast = build_rival(Published, config, device, policy.autocast)
            rounded = rival_gradients(cast, batch, seed)
            del cast
        reference = rival_gradients(published, batch, seed)
        gate = compare_rounded(ours.gradients(batch), reference, rounded)
        gate_plain = compare_rounded(rival_gradients(plain, batch, seed), reference, rounded)
        report["gate_fast"], report["gate_plain_fast"] = asdict(gate), asdict(gate_plain)
    steps |= {"ours": ours, "published": published, "plain": plain}
    return gate.green and gate_plain.green


def _peak_memory(
    step: Callable[[], Any], one: Ours | Rival, compiled: bool, device: torch.device
) -> int | None:
    """Bytes of what stays from step to step and, at its largest, of what a step makes; None for a compiled
    step on a CPU, where nobody counts.
    """
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in one.state()}
    state = sum(storages.values())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return state + torch.cuda.max_memory_allocated() - before
    if compiled:
        return None
    with Operations() as seen:
        step()
    return state + seen.peak


def _with(config: Config, **train: Any) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


def _machine(config: Config, policy: Policy, compiled: bool) -> dict[str, Any]:
    cuda = policy.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(policy.device)
        if cuda
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "clock": timing.clock.__name__,
        "torch": torch.__version__,
        "precision": dict(policy.reasons)["precision"],
        "ours": dict(policy.reasons)["networks"],
        "plain": "compiled" if compiled else "eager",
        "px": config.data.px,
        "batch": config.train.batch_size,
    }


def show(report: dict[str, Any]) -> None:
    """Print a report for people."""
    screen.block([(name, str(value)) for name, value in report["machine"].items()], "bench.step")
    for name in ("gate", "gate_plain", "gate_fast", "gate_plain_fast"):
        if gate := report.get(name):
            screen.line(f"{name}: {Gate(**gate)}")
    names = [name for name in ("ours", "published", "plain") if name in report]
    if not names:
        screen.warn("the steps do not compute the same thing: nothing was timed")
        return
    rows = [[name, *report[name].values(), report.get(f"ratio_{name}", 1.0)] for name in names]
    screen.table(["step", "median ms", "p20", "p80", "images/s", "time / ours"], rows)
    parts = list(dict.fromkeys(part for name in names for part in report["split"][name]))
    rows = [[name, *(report["split"][name].get(part, "") for part in parts)] for name in names]
    screen.table(["ms of", *parts], rows)
    for name in names:
        peak = report["peak_memory"][name]
        screen.line(f"peak memory, {name}: {'not counted' if peak is None else size_of(peak)}")
    convolution, product = (rate / 1e9 for rate in report["peaks"].values())
    screen.line(
        f"{report['flop_step'] / 1e9:.1f} GFLOP a step, {report['flop_per_second'] / 1e9:.0f} GFLOP/s: "
        f"{report['share_of_peak']:.0%} of a convolution's {convolution:.0f} (a product: {product:.0f})"
    )
    least, ours = report["floor"]["ms"], report["ours_ms"]
    bounds = ", ".join(f"{report[f'{name}_ms'] / least:.2f}x {name}" for name in names[1:])
    screen.line(
        f"if all but our {report['floor']['calls']} convolutions and products were free: {least:.1f} ms, "
        f"{report['share_of_peak'] * ours / least:.0%} of that peak, {bounds}"
    )


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="bench.step", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--config", type=Path, default=Path("configs/quickstart.json"), help="JSON file of the run"
    )
    parser.add_argument("--px", type=int, help="side of the images (default: the config's)")
    parser.add_argument("--batch", type=int, help="images per step (default: the config's)")
    parser.add_argument(
        "--steps", type=int, default=15, help="timed steps of each kind (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument(
        "--compile", choices=COMPILE, default="auto", help="compile the plain rival (auto: on CUDA; minutes)"
    )
    parser.add_argument(
        "--processor-time", action="store_true", help="of all threads, on a CPU that others use too"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override keys of the config")
    return parser.parse_intermixed_args(arguments)


def config_for(options: argparse.Namespace) -> Config:
    """The config as benchmarked: no images are read, and weights are random where it names none.

    Raises:
        UsageError: the config is wrong, or trains the diffusion model alone.
    """
    given = ["data.source=rooms", "data.path=null", "report.factors=false", "decoder.dropout=0.0"]
    given += ["train.accumulation=1", "parallel.zero=auto"]
    given += [f"data.px={options.px}"] if options.px else []
    given += [f"train.batch_size={options.batch}"] if options.batch else []
    given += ["frozen.weights=random"] if _lacks_weights(options.config) else []
    config = load(options.config, [*given, *options.overrides])
    if config.task == "diffusion":
        raise UsageError(
            f"{options.config}: task=diffusion has no rival here; give a config of task=diffsiam"
        )
    if config.train.batch_size < 2:
        raise UsageError("batch of 1: batch norms need at least two images; use --batch 2 or more")
    return config


def _lacks_weights(path: Path) -> bool:
    """Whether a config needs a diffusion model and names none."""
    try:
        file = json.loads(path.read_text())
    except (OSError, ValueError):  # load says what is wrong with it
        return False
    if not isinstance(file, dict) or file.get("task") == "diffusion":
        return False
    frozen = file.get("frozen", {})
    return isinstance(frozen, dict) and frozen.get("weights") is None


def with_ranks(options: argparse.Namespace, job: Callable[[Config, Ranks], T]) -> T:
    """``job`` with the config that the options name, as the only rank.

    Raises:
        UsageError: the config or an option is not possible.
    """
    screen.quiet_libraries()
    config = config_for(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    ranks = start_ranks()
    try:
        return job(config, ranks)
    finally:
        stop_ranks()


def main(arguments: list[str]) -> int:
    """Run and return the exit code: 0 timed, 1 the gate is red, 2 usage."""
    options = parse(arguments)
    if options.processor_time:
        timing.clock = time.process_time
    try:
        report = with_ranks(
            options, lambda config, ranks: bench(config, options.steps, ranks, options.compile)
        )
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(report, indent=2)) if options.json else show(report)
    return 0 if "ours_ms" in report else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
