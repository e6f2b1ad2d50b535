"""Memory and time of a step as predicted, beside the same measured: ``python -m bench.peak``, for a CPU.

Memory is the process' peak (VmHWM) after three steps, optimizer state and average included; its prediction is
``--dry-run``'s, made before anything is built.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench.contenders import Ours, make_batch
from bench.step import config_for
from engine import screen
from engine.config import Config
from engine.cost import build_networks, measure
from engine.errors import UsageError
from engine.memory import at_peak
from engine.parallel import Ranks, start_ranks, stop_ranks
from engine.plan import setting_of
from engine.rates import measure_rates
from engine.step import choose_policy
from engine.words import size_of

STEPS = 3


def bench(config: Config, ranks: Ranks) -> dict[str, Any]:
    """What ``--json`` prints: bytes and seconds, predicted and measured."""
    policy = choose_policy(config, ranks.device)
    networks = build_networks(config)
    cost = measure(networks, config, policy, config.train.batch_size)
    sizes = at_peak(networks, cost, setting_of(config, ranks, policy))
    rates = measure_rates(policy)
    ours, batch, spent = Ours(config, ranks, policy), make_batch(config, ranks.device), []
    for _ in range(STEPS):
        began = time.perf_counter()
        ours.step(batch)
        spent.append(time.perf_counter() - began)
    return {
        "px": config.data.px,
        "batch": config.train.batch_size,
        "parts": sizes,
        "predicted_bytes": sum(sizes.values()),
        "measured_bytes": _highest(),
        "predicted_seconds": sum(rates.spend(cost.operations)),
        "measured_seconds": statistics.median(spent),
    }


def _highest() -> int:
    """The most memory that this process has occupied."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main(arguments: list[str]) -> int:
    """Run and return the exit code."""
    parser = argparse.ArgumentParser(prog="bench.peak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/celeba64.json"))
    parser.add_argument("--px", type=int, help="side of the images (default: the config's)")
    parser.add_argument("--batch", type=int, default=8, help="images (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override keys of the config")
    options = parser.parse_intermixed_args(arguments)
    screen.quiet_libraries()
    try:
        config, ranks = config_for(options), start_ranks()
        report = bench(config, ranks)
        stop_ranks()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps(report))
        return 0
    memory, seconds = (
        report[f"predicted_{what}"] / report[f"measured_{what}"] for what in ("bytes", "seconds")
    )
    sizes = {what: size_of(report[f"{what}_bytes"]) for what in ("predicted", "measured")}
    screen.line(f"peak: {sizes['predicted']} predicted, {sizes['measured']} measured ({memory:.2f})")
    times = report["predicted_seconds"], report["measured_seconds"]
    screen.line(f"a step: {times[0]:.2f} s predicted, {times[1]:.2f} s measured ({seconds:.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
