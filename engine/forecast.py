"""``diffsiam plan``: what a run would take on GPUs that are not here, and on up to 1,024 of them.

Operations and memory are counted as they would run on CUDA in bfloat16 (fake tensors, no GPU needed); rates
come from data sheets and stated assumptions (engine/scaling.py). A forecast, not a measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from diffsiam.attention import attend_sdpa
from engine import screen
from engine.config import Config
from engine.config_checks import ARCHITECTURE, micro_batch
from engine.cost import Networks, Prices, build_networks, measure
from engine.errors import UsageError
from engine.loop import zero_stage
from engine.memory import Setting, at_peak, largest_micro_batch, peaks
from engine.parallel import Ranks
from engine.plan import communication, least, setting_of
from engine.scaling import Assumptions, Gpu, Load, StepTime, step_time
from engine.step import Policy
from engine.words import seconds, size_of

CPU = torch.device("cpu")
FEWEST = 2  # images that are counted: some batch norms need two
MOST = 1024  # GPUs of the what-ifs
STAGE_SENDS_ONCE = (0, 1)  # ZeRO stages whose gradients travel with the last micro-batch


@dataclass(frozen=True)
class Row:
    """One number of GPUs.

    Attributes:
        batch: images of a step over all GPUs.
        micro, accumulation: images of a GPU at a time, and how often in a step.
        memory: bytes of a GPU at its peak.
        sent: bytes that a GPU sends in a step.
        days: for all images that the config's run sees.
    """

    gpus: int
    batch: int
    micro: int
    accumulation: int
    zero: int
    memory: int
    sent: int
    time: StepTime
    images_per_second: float
    days: float

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "time": self.time.to_dict()}


class Forecast:
    """Everything that does not depend on the number of GPUs, counted once, for micro-batches about as
    large as ``micro``."""

    def __init__(self, config: Config, gpu: Gpu, assumed: Assumptions, micro: int):
        self.config, self.gpu, self.assumed = _shape_only(config), gpu, assumed
        self.policy = _cuda_policy(config)
        self.networks: Networks = build_networks(self.config)
        few = max(micro, FEWEST)  # counted itself, not drawn from others: a peak is no line but near one
        counts = (measure(self.networks, self.config, self.policy, n, "cuda") for n in (few, 2 * few))
        self.prices = Prices(*counts)
        self.parameters = sum(p.numel() for p in self.networks.module.parameters())

    def peak(self, world: int) -> Callable[[int, int], int]:
        """Bytes on one of ``world`` GPUs of (micro-batch, accumulation)."""
        return peaks(self.networks, self.prices.small, self.prices.large, self.setting(world))

    def setting(self, world: int, accumulation: int = 1) -> Setting:
        """How a run is spread over ``world`` GPUs."""
        spread = setting_of(self.config, _gpu_ranks(world), self.policy)
        return replace(spread, accumulation=accumulation, on_host=False)

    def largest(self, world: int, batch: int | None = None) -> int | None:
        """The largest micro-batch that fits a GPU and divides its share of the global batch."""
        peak, room = self.peak(world), self.gpu.memory_gb * 1e9
        share = (batch or self.config.train.batch_size) // world
        return largest_micro_batch(share, least(self.config, world), lambda *parts: peak(*parts) <= room)

    def most_images(self, world: int) -> int:
        """Images that fit a GPU at once, whatever the global batch."""
        peak, room = self.peak(world), self.gpu.memory_gb * 1e9
        return max(0, int((room - peak(0, 1)) // (peak(1, 1) - peak(0, 1))))

    def row(self, world: int, batch: int, micro: int) -> Row:
        """``world`` GPUs with these sizes."""
        accumulation = batch // (world * micro)
        zero = zero_stage(self.config, _gpu_ranks(world))
        cost = self.prices.of(micro)
        train = self.config.train.model_copy(update={"accumulation": accumulation})
        spread = self.config.model_copy(update={"train": train})
        sent = tuple(communication(spread, self.networks, cost, zero, world))
        load = Load(
            cost,
            accumulation,
            self.parameters,
            -(-self.parameters // world) if zero else self.parameters,
            self.config.optimizer.name,
            self.policy.compile,
            sent,
            zero in STAGE_SENDS_ONCE,
        )
        time = step_time(load, self.gpu, self.assumed, world)
        rate = batch / time.total
        seen = self.config.train.steps * self.config.train.batch_size
        memory = self.peak(world)(micro, accumulation)
        volume = round(sum(c.sent(world) for c in sent))
        days = seen / rate / 86400
        return Row(world, batch, micro, accumulation, zero, memory, volume, time, rate, days)

    def same_batch(self) -> list[Row]:
        """Ever more GPUs sharing the config's global batch, while each gets a whole image."""
        batch, rows = self.config.train.batch_size, []
        for world in _doublings():
            if batch % world == 0 and (micro := self.largest(world)):
                rows.append(self.row(world, batch, micro))
        return rows

    def same_share(self, micro: int) -> list[Row]:
        """Ever more GPUs with the same number of images each: the global batch grows."""
        return [self.row(world, world * micro, micro) for world in _doublings()]


def _doublings() -> list[int]:
    return [1 << power for power in range(MOST.bit_length())]


def _shape_only(config: Config) -> Config:
    """The config with random weights where it states an architecture: nothing else of them is needed."""
    frozen = config.frozen
    if config.task == "diffusion" or any(getattr(frozen, name) is None for name in ARCHITECTURE):
        return config
    return config.model_copy(update={"frozen": frozen.model_copy(update={"weights": "random"})})


def _cuda_policy(config: Config) -> Policy:
    """What :func:`engine.step.choose_policy` decides on a GPU that has bfloat16; fake tensors are on the
    CPU.
    """
    low = config.train.precision != "fp32"
    dtype = torch.bfloat16 if low else torch.float32
    return Policy(
        CPU, torch.bfloat16 if low else None, dtype, attend_sdpa, config.train.compile == "auto", ()
    )


def _gpu_ranks(world: int) -> Ranks:
    return Ranks(0, world, torch.device("cuda", 0))


def plan(config: Config, gpus: int, gpu: Gpu, assumed: Assumptions) -> dict[str, Any]:
    """The forecast for ``gpus`` GPUs and for others, as ``--json`` prints it.

    Raises:
        UsageError: the batch cannot be shared by so many, or one image does not fit.
    """
    asked = micro_batch(config, gpus)
    if config.train.precision == "fp32":
        raise UsageError("train.precision=fp32: the table of GPUs holds bfloat16 rates; use auto or bf16")
    forecast = Forecast(config, gpu, assumed, asked)
    largest = forecast.largest(gpus)
    if largest is None:
        raise UsageError(
            f"not even a micro-batch of {least(config, gpus)} fits the {gpu.memory_gb:g} GB of {gpu.name}: "
            f"{size_of(forecast.peak(gpus)(least(config, gpus), 1))}; use a larger GPU or a smaller model"
        )
    micro = min(asked, largest)
    row = forecast.row(gpus, config.train.batch_size, micro)
    setting = forecast.setting(gpus, row.accumulation)
    return {
        "gpu": asdict(gpu),
        "assumptions": asdict(assumed),
        "flops_per_image": forecast.prices.of(micro).total / micro,
        "micro_batch": {"asked": asked, "largest": largest, "most": forecast.most_images(gpus)},
        "memory": at_peak(forecast.networks, forecast.prices.of(micro), setting),
        "here": row.to_dict(),
        "same_batch": [r.to_dict() for r in forecast.same_batch()],
        "same_share": [r.to_dict() for r in forecast.same_share(micro)],
    }


def show(report: dict[str, Any]) -> None:
    """Print a forecast for people."""
    gpu, row, sizes = report["gpu"], report["here"], report["micro_batch"]
    time = row["time"]
    ms = {name: f"{1000 * value:.1f} ms" for name, value in time.items() if isinstance(value, float)}
    parts = f"arithmetic {ms['arithmetic']}, memory {ms['bandwidth']}, optimizer {ms['update']}, "
    parts += f"launches {ms['waiting']}, communication {ms['exchange']} (and {ms['hidden']} hidden)"
    peak = sum(report["memory"].values())
    used = report["flops_per_image"] * row["images_per_second"] / row["gpus"] / (gpu["tflops"] * 1e12)
    accumulated = f" x {row['accumulation']} accumulated" if row["accumulation"] > 1 else ""
    smaller = f"; {sizes['asked']} do not fit" if sizes["asked"] > sizes["largest"] else ""
    rows = [
        ("gpus", f"{row['gpus']} x {gpu['name']}, ZeRO {row['zero']}"),
        ("batch", f"{row['batch']} images: {row['micro']}{accumulated} a GPU{smaller}"),
        ("a step", f"{seconds(time['total'])}: {parts}"),
        ("bottleneck", str(time["bottleneck"])),
        ("rate", f"{row['images_per_second']:,.0f} images/s, {used:.0%} of peak arithmetic"),
        ("the run", f"{row['days']:,.1f} days"),
        ("sent", f"{size_of(row['sent'])} by each GPU in a step"),
        ("memory", f"{size_of(peak)} of {size_of(gpu['memory_gb'] * 1e9)}: {_sizes(report['memory'])}"),
        (
            "fits",
            f"{sizes['most']} images at once; largest micro-batch of this global batch {sizes['largest']}",
        ),
    ]
    screen.block(rows, "forecast, not a measurement")
    _show_rows(report["same_batch"], "the same global batch on more GPUs")
    _show_rows(report["same_share"], "the same share of every GPU: the global batch grows")
    assumed = ", ".join(
        f"{name}={value:g}" for name, value in report["assumptions"].items() if name != "network_gbs" or value
    )
    screen.line(f"assumed (change with --assume name=number): {assumed}")
    screen.line(
        f"data sheet: {gpu['tflops']:g} TFLOP/s bfloat16, {gpu['bandwidth_gbs']:g} GB/s memory, "
        f"{gpu['link_gbs']:g} GB/s in a node, {gpu['network_gbs']:g} GB/s a GPU between nodes"
    )
    screen.line("not in it: loading of images, reports, checkpoints; compiling before the first step")


def _sizes(memory: dict[str, int]) -> str:
    return ", ".join(f"{what} {size_of(size)}" for what, size in memory.items())


def _show_rows(rows: list[dict[str, Any]], title: str) -> None:
    first = rows[0]
    cells = []
    for row in rows:
        speed_up = row["images_per_second"] / first["images_per_second"]
        efficiency = speed_up * first["gpus"] / row["gpus"]
        share = f"{row['micro']}" + (f" x {row['accumulation']}" if row["accumulation"] > 1 else "")
        cells.append(
            [
                row["gpus"],
                row["batch"],
                share,
                seconds(row["time"]["total"]),
                f"{row['images_per_second']:,.0f}",
                f"{efficiency:.0%}",
                f"{row['days']:,.2f}",
                size_of(row["memory"]),
                row["time"]["bottleneck"],
            ]
        )
    columns = ["GPUs", "batch", "a GPU", "a step", "images/s", "efficiency", "days", "memory", "bottleneck"]
    screen.table(columns, cells, title)
