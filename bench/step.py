"""Time our whole training step beside the published one: ``python -m bench.step``, or ``make bench``.

First the gate: with the same weights, batch, t, k and noise both must give the same loss and gradients in
float32; where ours is to run in bfloat16 or compiled, that step must then agree with the float32 one within
its precision. A red gate ends the run with exit code 1 and no timing.

Then both steps (draws, encoder, noise, frozen and trained decoders, losses, backward, optimizer, average) are
timed in turns on a batch that lies in memory. There each draws t, k and noise in its own way, which is part
of the price. Dropout is off: the two could not draw the same masks.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from bench.gate import Gate, Result, comparable, compare, compare_rounded, take_gradients, wake
from bench.rivals import Draws, Published
from diffsiam.objective import DiffSiam
from engine import screen
from engine.build import build_frozen
from engine.config import Config
from engine.config_file import load
from engine.ema import Ema
from engine.errors import UsageError
from engine.learning_rate import learning_rate
from engine.loop import build_trainer, due, reseed_dropout
from engine.metrics import Metrics
from engine.parallel import Ranks, start_ranks, stop_ranks
from engine.step import Policy, choose_policy, prepare_frozen, prepare_trainable
from engine.tasks import Representation
from kernels.noise_jump.ref import noise_for

SMALLEST_BATCH = 8
BLOCK = 5  # steps in a row before the other takes its turn
WARM_UP = {"cpu": 2, "cuda": 20}

Batch = dict[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """Milliseconds per step over all timed steps, and images per second at the median."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    images_per_second: float


class Ours:
    """The training step of engine/loop.py without loader and files."""

    def __init__(self, config: Config, ranks: Ranks, policy: Policy):
        self.config, self.steps = config, 0
        original = build_frozen(config)
        frozen = None if original is None else prepare_frozen(wake(original), policy)
        self.task = Representation(config, policy, frozen, boundaries(config), start=original)
        module = prepare_trainable(wake(self.task.build()), policy)
        self.trainer = build_trainer(config, module, ranks, policy)
        buffers = self.trainer.module.named_buffers()
        train = config.train
        self.ema = Ema(self.trainer.local_parameters(), buffers, train.ema_decay, train.ema_warmup)
        self.metrics = Metrics(ranks.device)

    def gradients(self, batch: Batch) -> Result:
        """Loss and gradients of the trained parameters, without an update."""
        loss = self.task.loss(self.trainer.engine, batch)
        self.trainer.backward(loss)
        return loss.detach(), take_gradients(self.trainer.module)

    def step(self, batch: Batch) -> Tensor:
        """One update; returns the loss, 0-d, which nobody has waited for."""
        self.trainer.set_lr(learning_rate(self.config, self.steps))
        reseed_dropout(self.config, self.steps, 0)
        loss = self.task.loss(self.trainer.engine, batch, self.metrics)
        self.trainer.backward(loss)
        self.metrics.settle(self.trainer.step())
        self.ema.update(self.steps)
        self.steps += 1
        if due(self.config.log.every, self.steps):
            self.metrics.flush()
        return loss.detach()


def build_published(config: Config, device: torch.device, autocast: torch.dtype | None = None) -> Published:
    """The published step with the weights that :class:`Ours` starts from."""
    frozen = build_frozen(config)
    policy = choose_policy(config, device)
    task = Representation(config, policy, None if frozen is None else wake(frozen), boundaries(config))
    module = wake(task.build()).to(device)
    assert isinstance(module, DiffSiam)
    frozen = None if frozen is None else frozen.to(device)
    return Published(config, module.encoder, module.decoder, module.simsiam, frozen, task.subsets, autocast)


def published_gradients(published: Published, batch: Batch, seed: int) -> Result:
    """Loss and gradients for our t, k and noise."""
    positions, px = batch["position"], published.config.data.px
    draw = published.subsets.draw(seed, positions)
    draws = Draws(draw.t, draw.level, draw.k, noise_for(seed, positions, (3, px, px)))
    loss = published.loss(batch["x_0"], _views(batch), draws)
    loss.backward()
    return loss.detach(), take_gradients(published.module)


def _views(batch: Batch) -> list[Tensor]:
    return [batch[name] for name in ("view_1", "view_2") if name in batch]


def boundaries(config: Config) -> list[int] | None:
    """Those of the config, or equal windows: a step takes as long with any."""
    if config.subsets.choice != "profile":
        return None
    n, steps = config.subsets.n, config.schedule.steps
    return list(config.subsets.boundaries or (steps * i // n for i in range(1, n)))


def make_batch(config: Config, device: torch.device) -> Batch:
    """Random images: nothing in a step depends on what they show."""
    generator = torch.Generator().manual_seed(config.seed)
    shape = (config.train.batch_size, config.data.px, config.data.px, 3)
    names = ("x_0", "view_1", "view_2") if config.simsiam.weight > 0 else ("x_0",)
    batch = {name: torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for name in names}
    batch["position"] = torch.arange(shape[0])
    return {name: tensor.to(device) for name, tensor in batch.items()}


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
    marks = [time.perf_counter()]
    for _ in range(count):
        step()
        marks.append(time.perf_counter())
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


def bench(config: Config, count: int, ranks: Ranks) -> dict[str, Any]:
    """Gate and, if it is green, times: what ``--json`` prints."""
    device, batch = ranks.device, make_batch(config, ranks.device)
    exact = _with(config, precision="fp32", compile="off")
    policy, exact_policy = choose_policy(config, device), choose_policy(exact, device)
    published, ours = build_published(config, device), Ours(exact, ranks, exact_policy)
    with comparable():
        gate = compare(ours.gradients(batch), published_gradients(published, batch, config.seed))
    report: dict[str, Any] = {"machine": _machine(config, policy), "gate": asdict(gate)}
    views = _views(batch)
    rivals = {"published": lambda: published.step(batch["x_0"], views)}
    if gate.green and (policy.autocast is not None or policy.compile):
        ours, rounded = Ours(config, ranks, policy), None
        if policy.autocast is not None:
            cast = build_published(config, device, policy.autocast)
            rivals["published_autocast"] = lambda: cast.step(batch["x_0"], views)
            rounded = published_gradients(cast, batch, config.seed)
        reference = published_gradients(published, batch, config.seed)
        gate = compare_rounded(ours.gradients(batch), reference, rounded)
        report["gate_fast"] = asdict(gate)
    if not gate.green:
        return report

    steps: dict[str, Callable[[], Any]] = {"ours": lambda: ours.step(batch), **rivals}
    timings = race(steps, count, config.train.batch_size, device)
    for name, timing in timings.items():
        report[name], report[f"{name}_ms"] = asdict(timing), timing.median_ms
        if name != "ours":
            report[f"ratio_{name}"] = timing.median_ms / timings["ours"].median_ms
    return report


def _with(config: Config, **train: Any) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


def _machine(config: Config, policy: Policy) -> dict[str, Any]:
    cuda = policy.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(policy.device)
        if cuda
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": dict(policy.reasons)["precision"],
        "px": config.data.px,
        "batch": config.train.batch_size,
    }


def show(report: dict[str, Any]) -> None:
    """Print a report for people."""
    screen.block([(name, str(value)) for name, value in report["machine"].items()], "bench.step")
    for name in ("gate", "gate_fast"):
        if gate := report.get(name):
            screen.line(f"{name}: {Gate(**gate)}")
    names = [name for name in ("ours", "published", "published_autocast") if name in report]
    if not names:
        screen.warn("the steps do not compute the same thing: nothing was timed")
        return
    rows = [[name, *report[name].values(), report.get(f"ratio_{name}", 1.0)] for name in names]
    screen.table(["step", "median ms", "p20", "p80", "images/s", "time / ours"], rows)


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
    if config.train.batch_size < SMALLEST_BATCH:
        raise UsageError(
            f"batch of {config.train.batch_size}: batch norms of so few images magnify rounding beyond "
            f"comparison; use --batch {SMALLEST_BATCH} or more"
        )
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
    try:
        report = with_ranks(options, lambda config, ranks: bench(config, options.steps, ranks))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(report, indent=2)) if options.json else show(report)
    return 0 if "ours_ms" in report else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
