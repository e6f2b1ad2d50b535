"""What a run would cost, computed without running it: ``--dry-run``.

Counts are those of engine/cost.py for this machine's precision policy, memory that of engine/memory.py; the
rates behind the time of a step are measured here, on one convolution and one copy.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from engine import screen
from engine.communication import Collective, collectives
from engine.config import Config
from engine.config_checks import micro_batch
from engine.config_file import cautions, dump
from engine.cost import FROZEN, Cost, Networks, build_networks, measure
from engine.data.held_out import split
from engine.data.sources import open_source
from engine.loop import zero_stage
from engine.memory import Setting, at_peak, largest_micro_batch, peaks
from engine.parallel import Ranks, ranks_here
from engine.rates import device_memory, measure_rates
from engine.step import Policy, choose_policy
from engine.words import flops, seconds, size_of


@dataclass(frozen=True)
class Plan:
    """All that is shown."""

    config: Config
    ranks: Ranks
    policy: Policy
    images: int  # in the data set
    networks: Networks
    cost: Cost

    @property
    def setting(self) -> Setting:
        """How it is spread."""
        return setting_of(self.config, self.ranks, self.policy)


def show_plan(config: Config) -> None:
    """Print what a run of ``config`` would be on this machine: values, networks, length, arithmetic, memory.

    The number of ranks is ``WORLD_SIZE``, as launchers set it; rank 0 speaks.

    Raises:
        UsageError: what the run itself would raise before its first step.
    """
    ranks = _ranks()
    micro = micro_batch(config, ranks.world)
    if not ranks.is_main:
        return
    data = config.data
    source = open_source(data.source, data.path, data.px, config.seed, data.count, data.split)
    images = len(split(source, data.held_out)[0])
    policy = choose_policy(config, ranks.device)
    networks = build_networks(config)
    plan = Plan(config, ranks, policy, images, networks, measure(networks, config, policy, micro))

    screen.line(dump(config))
    for text in cautions(config):
        screen.warn(text)
    _show_networks(plan)
    screen.block(_rows(plan), "the run")
    _show_communication(plan)
    _show_memory(plan)
    screen.line(_largest(plan))


def _ranks() -> Ranks:
    """This process' place as the launcher's environment states it; no process group is formed."""
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    return Ranks(rank, int(os.environ.get("WORLD_SIZE", "1")), device)


def _show_networks(plan: Plan) -> None:
    rows = []
    for name, part in plan.networks.parts().items():
        trained, tensors = "no" if name == FROZEN else "yes", len(list(part.parameters()))
        forward = flops(plan.cost.forward[name] / plan.cost.images)
        rows.append([name, trained, f"{sum(p.numel() for p in part.parameters()):>13,}", tensors, forward])
    screen.table(["network", "trained", "parameters", "tensors", "forward pass, per image"], rows, "networks")


def _rows(plan: Plan) -> list[tuple[str, str]]:
    train, cost = plan.config.train, plan.cost
    seen, per_image = train.steps * train.batch_size, cost.total / cost.images
    forward = sum(cost.forward.values()) / cost.images
    epochs = f"{seen / plan.images:,.1f} epochs of {plan.images:,}"
    passes = f" x {train.accumulation} micro-batches" if train.accumulation > 1 else ""
    return [
        ("steps", f"{train.steps:,} of {train.batch_size} images: {seen:,} images seen, {epochs}"),
        ("batch", f"{cost.images} images{passes} x {_world(plan)}"),
        ("an image", f"{flops(per_image)}: forward {flops(forward)}, backward {flops(per_image - forward)}"),
        ("a step", f"{flops(per_image * train.batch_size)}; the whole run {flops(per_image * seen)}"),
        ("time", _time(plan)),
        *plan.policy.reasons,
    ]


def _time(plan: Plan) -> str:
    """Of a step, from counts and rates."""
    rates = measure_rates(plan.policy)
    each = sum(rates.spend(plan.cost.operations)) * plan.config.train.accumulation
    run = seconds(each * plan.config.train.steps)
    measured = f"{flops(rates.flops)}/s of a convolution, {size_of(rates.bytes)}/s of a copy, measured here"
    return f"{seconds(each)} a step, {run} the run: {measured}"


def communication(config: Config, networks: Networks, cost: Cost, zero: int, world: int) -> list[Collective]:
    """What a step sends."""
    parameters = sum(p.numel() for p in networks.module.parameters())
    return collectives(parameters, cost.norms, zero, config.train.accumulation, world)


def _show_communication(plan: Plan) -> None:
    zero, world = zero_stage(plan.config, plan.ranks), plan.ranks.world
    sent = communication(plan.config, plan.networks, plan.cost, zero, world)
    if not sent:
        return
    rows = [[c.what, c.kind, c.calls, size_of(c.bytes), size_of(c.sent(world))] for c in sent]
    total = size_of(sum(c.sent(world) for c in sent))
    rows.append(["total", "", sum(c.calls for c in sent), "", total])
    columns = ["what", "collective", "calls", "of", "sent by each rank"]
    screen.table(columns, rows, f"communication per step ({_world(plan)}, ZeRO {zero})")


def setting_of(config: Config, ranks: Ranks, policy: Policy) -> Setting:
    """How a run is spread over these ranks."""
    return Setting(
        config.optimizer.name,
        zero_stage(config, ranks),
        ranks.world,
        config.train.accumulation,
        policy.frozen_dtype,
        policy.device.type == "cpu",
        policy.packs,
    )


def _show_memory(plan: Plan) -> None:
    sizes, setting = at_peak(plan.networks, plan.cost, plan.setting), plan.setting
    kept = f"{size_of(plan.cost.kept)} of it kept for the backward pass"
    copies = " and a float32 copy of the weights" if setting.zero else ""
    notes = {
        "weights, frozen": str(setting.frozen_dtype).removeprefix("torch.")
        + (", and their float32 original" if setting.on_host else ""),
        "weights, packed": "large frozen ones, bfloat16 as matrix tiles read them",
        "weights, trained": "float32",
        "weights, gathered": "by DeepSpeed, from the forward to the backward pass",
        "gradients": "float32",
        "optimizer state": setting.optimizer + copies,
        "reduction buckets": "DeepSpeed's",
        "moving average": "float32",
        "forward and backward": f"{plan.cost.images} images at their peak, uncompiled; {kept}",
        "fragments": "an eighth: freed memory that the allocator cannot give out again",
        "process": "Python and libraries as loaded here" if setting.on_host else "context and libraries",
        "peak": "",
    }
    sizes["peak"] = sum(sizes.values())
    rows = [[what, f"{size_of(size):>11}", notes[what]] for what, size in sizes.items()]
    title = f"memory per rank ({plan.policy.device.type}, {_world(plan)}, ZeRO {setting.zero})"
    screen.table(["what", "size", ""], rows, title)


def _largest(plan: Plan) -> str:
    """The largest micro-batch for the memory that there is; the global batch stays as it is."""
    world = plan.ranks.world
    share, there = plan.config.train.batch_size // world, device_memory(plan.policy.device, ranks_here(world))
    few, more = plan.cost, measure(plan.networks, plan.config, plan.policy, 2 * plan.cost.images)
    peak = peaks(plan.networks, few, more, plan.setting)
    part = largest_micro_batch(share, least(plan.config, world), lambda *parts: peak(*parts) <= there)
    room = f"{size_of(there)} of memory a rank, {size_of(peak(2, 1) - peak(1, 1))} an image"
    if part is None:
        return f"largest micro-batch: none fits ({room})"
    return f"largest micro-batch: {part} images, train.accumulation={share // part} ({room})"


def least(config: Config, world: int) -> int:
    """The smallest micro-batch of a rank: a batch norm of one rank needs two images."""
    norms = config.task == "diffsiam" and (config.simsiam.weight > 0 or config.encoder.norm == "batch")
    return 2 if world == 1 and norms else 1


def _world(plan: Plan) -> str:
    return f"{plan.ranks.world} ranks" if plan.ranks.world > 1 else "1 rank"
