"""Time of an optimizer step on any number of GPUs, from counts, data sheets and stated assumptions.

An operation takes the longer of its arithmetic at the rate that convolutions reach and its bytes at the rate
that memory reaches; operations follow one another, or the host's launching them where that is slower.
Gradients travel on a ring beside the backward pass, everything else in between. Loading of images, reports
and checkpoints are not in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.resources import files

from engine.communication import Collective
from engine.cost import Cost
from engine.errors import UsageError
from engine.operations import Operation

# Passes over a parameter's four bytes in an update: read gradient, weight and state, write weight and state.
UPDATE_PASSES = {"adam": 7, "sgd": 5}
AVERAGE_PASSES = 3


@dataclass(frozen=True)
class Gpu:
    """A row of engine/assets/gpus.json, which says what the fields are."""

    name: str
    tflops: float
    memory_gb: float
    bandwidth_gbs: float
    link_gbs: float
    network_gbs: float


@dataclass(frozen=True)
class Assumptions:
    """What data sheets do not tell. Each may be overridden.

    Attributes:
        math: share of peak arithmetic that convolutions and matrix products reach.
        memory: share of peak bandwidth that passes over memory reach (a copy on one H100: 3.01 of 3.35
            TB/s).
        fusion: share of the bytes and launches of element-wise operations that a compiler leaves.
        launch_us: microseconds of the host for an operation.
        link: share of a link's bandwidth that a ring reaches.
        latency_us: microseconds of a collective for each doubling of the ranks.
        overlap: share of the backward pass during which gradients may travel.
        node: GPUs of a node.
        network_gbs: GB/s of a GPU to other nodes; 0: the table's.
    """

    math: float = 0.5
    memory: float = 0.9
    fusion: float = 0.5
    launch_us: float = 5.0
    link: float = 0.8
    latency_us: float = 10.0
    overlap: float = 0.8
    node: float = 8
    network_gbs: float = 0.0


SHARES = ("math", "memory", "fusion", "link")  # in (0, 1]
ANY_SHARE = ("overlap",)  # in [0, 1]


@cache
def gpus() -> dict[str, Gpu]:
    """The GPUs that are known, by short name."""
    table = json.loads(files("engine").joinpath("assets/gpus.json").read_text())
    return {name: Gpu(**row) for name, row in table.items() if name != "notes"}


def gpu_named(name: str) -> Gpu:
    """One of them.

    Raises:
        UsageError: it is not known.
    """
    if name not in gpus():
        raise UsageError(f"--gpu {name}: known are {', '.join(gpus())}")
    return gpus()[name]


def assume(given: Iterable[str]) -> Assumptions:
    """The defaults with ``name=number`` in place of some.

    Raises:
        UsageError: no such name, no number, or out of range.
    """
    names = [field.name for field in fields(Assumptions)]
    values: dict[str, float] = {}
    for text in given:
        name, _, number = text.partition("=")
        if name not in names:
            raise UsageError(f"--assume {text}: write name=number with one of {', '.join(names)}")
        try:
            value = float(number)
        except ValueError:
            raise UsageError(f"--assume {text}: {number or 'nothing'} is not a number") from None
        low, high = (0.0, 1.0) if name in (*SHARES, *ANY_SHARE) else (0.0, 1e6)
        excluded = name in SHARES and value == 0
        if not low <= value <= high or excluded:
            raise UsageError(
                f"--assume {text}: use {'more than' if name in SHARES else 'from'} 0 to {high:g}"
            )
        if name == "node" and (value < 1 or value != int(value)):
            raise UsageError(f"--assume {text}: a node has a whole number of GPUs, 1 or more")
        values[name] = value
    return replace(Assumptions(), **values)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, and where they go.

    Attributes:
        arithmetic: operations bound by arithmetic.
        bandwidth: operations bound by memory.
        update: optimizer and average.
        waiting: on the host, which launches operations more slowly than the GPU runs them.
        exchange: communication that nothing hides.
        hidden: communication beside the backward pass, not part of the sum.
    """

    arithmetic: float
    bandwidth: float
    update: float
    waiting: float
    exchange: float
    hidden: float

    @property
    def total(self) -> float:
        return self.arithmetic + self.bandwidth + self.update + self.waiting + self.exchange

    @property
    def bottleneck(self) -> str:
        """The largest part, in words."""
        parts = {
            "arithmetic": self.arithmetic,
            "memory bandwidth": self.bandwidth + self.update,
            "launches": self.waiting,
            "communication": self.exchange,
        }
        return max(parts, key=lambda name: parts[name])

    def to_dict(self) -> dict[str, float | str]:
        """Everything, for JSON."""
        return {**asdict(self), "total": self.total, "bottleneck": self.bottleneck}


@dataclass(frozen=True)
class Load:
    """What one rank does in a step.

    Attributes:
        cost: of a micro-batch.
        accumulation: micro-batches.
        parameters: that are trained; of them ``updated`` on this rank (fewer from ZeRO stage 1).
        optimizer: a key of :data:`UPDATE_PASSES`.
        compiled: whether a compiler fuses element-wise operations.
        sent: collectives of the step.
        last_only: whether gradients travel with the last micro-batch alone.
    """

    cost: Cost
    accumulation: int
    parameters: int
    updated: int
    optimizer: str
    compiled: bool
    sent: tuple[Collective, ...]
    last_only: bool


def step_time(load: Load, gpu: Gpu, assumed: Assumptions, world: int) -> StepTime:
    """Seconds of an optimizer step on each of ``world`` GPUs."""
    device = Device(gpu.tflops * 1e12 * assumed.math, gpu.bandwidth_gbs * 1e9 * assumed.memory)
    fusion = assumed.fusion if load.compiled else 1.0
    before = device.spend(load.cost.before, fusion)
    after = device.spend(load.cost.after, fusion)
    passes = UPDATE_PASSES[load.optimizer] * load.updated + AVERAGE_PASSES * load.parameters
    update = 4 * passes / device.bytes
    busy = [load.accumulation * (a + b) for a, b in zip(before, after, strict=True)]
    launched = sum(1.0 if o.flops or o.custom else fusion for o in load.cost.operations)
    host = load.accumulation * launched * assumed.launch_us * 1e-6
    exchange = hidden = 0.0
    window = assumed.overlap * sum(after) * (1 if load.last_only else load.accumulation)
    for collective in load.sent:
        seconds = travel(collective, gpu, assumed, world)
        beside = min(seconds, window) if collective.hidden else 0.0
        exchange, hidden = exchange + seconds - beside, hidden + beside
    return StepTime(busy[0], busy[1], update, max(0.0, host - sum(busy)), exchange, hidden)


@dataclass(frozen=True)
class Device:
    """Rates that operations reach: FLOP/s and bytes/s."""

    flops: float
    bytes: float

    def spend(self, operations: Iterable[Operation], fusion: float = 1.0) -> tuple[float, float]:
        """Seconds bound by arithmetic, and seconds bound by memory."""
        arithmetic = bandwidth = 0.0
        for operation in operations:
            fused = 1.0 if operation.flops or operation.custom else fusion
            math_seconds, memory_seconds = operation.flops / self.flops, fused * operation.bytes / self.bytes
            if math_seconds > memory_seconds:
                arithmetic += math_seconds
            else:
                bandwidth += memory_seconds
        return arithmetic, bandwidth


def travel(collective: Collective, gpu: Gpu, assumed: Assumptions, world: int) -> float:
    """Seconds of collectives on a ring whose slowest link is the network, where there is more than a node."""
    network = assumed.network_gbs or gpu.network_gbs
    slowest = min(gpu.link_gbs, network) if world > assumed.node else gpu.link_gbs
    latency = collective.calls * assumed.latency_us * 1e-6 * math.log2(max(world, 2))
    return latency + collective.sent(world) / (slowest * 1e9 * assumed.link)
