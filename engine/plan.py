"""What a run would cost, computed without running it: ``--dry-run``.

Networks are built without memory (on the meta device), and one micro-batch goes through them as fake tensors,
which carry shape, dtype and device but no data. So the counts are those of the very code that would run, for
any size of model, in seconds; memory is that of the precision policy which this machine gets.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from diffsiam.schedule import Schedule
from diffsiam.unet import UNet
from engine import screen
from engine.build import build_diffusion, build_frozen, build_model, build_schedule, build_subsets
from engine.config import Config
from engine.config_checks import micro_batch
from engine.config_file import cautions, dump
from engine.data.held_out import split
from engine.data.sources import open_source
from engine.loop import zero_stage
from engine.parallel import Ranks, bucket_elements
from engine.step import Policy, choose_policy

FROZEN = "frozen U-Net"
NAMES = {"encoder": "encoder f", "decoder": "decoder g", "simsiam": "SimSiam head", "unet": "U-Net"}
FLOAT = 4  # bytes: parameters, gradients, optimizer state and average are float32 under every policy
OPTIMIZER_COPIES = {"adam": 2, "sgd": 1}  # two moments, one momentum
BUCKETS = {0: 0, 1: 2, 2: 2, 3: 1}  # by ZeRO stage: one is filled while the other is being reduced


@dataclass(frozen=True)
class Networks:
    """What a run computes with, without memory."""

    module: nn.Module
    frozen: UNet | None
    schedule: Schedule

    def all(self) -> list[nn.Module]:
        return [part for part in (self.module, self.frozen, self.schedule) if part is not None]

    def parts(self) -> dict[str, nn.Module]:
        """The networks by name, the frozen one first."""
        frozen: dict[str, nn.Module] = {FROZEN: self.frozen} if self.frozen is not None else {}
        return frozen | {NAMES[name]: child for name, child in self.module.named_children() if name in NAMES}


@dataclass(frozen=True)
class Cost:
    """Price of a micro-batch.

    Attributes:
        images: its size.
        forward: FLOPs of each network's forward pass, by name; a multiply-add is two.
        total: FLOPs of forward and backward pass together.
        kept: bytes that autograd keeps from the forward for the backward pass: activations and, under
            autocast, weights cast to bfloat16; the weights themselves are not among them.
    """

    images: int
    forward: dict[str, int]
    total: int
    kept: int


@dataclass(frozen=True)
class Plan:
    """All that is shown."""

    config: Config
    ranks: Ranks
    policy: Policy
    images: int  # in the data set
    networks: Networks
    cost: Cost


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
    _show_memory(plan)


def build_networks(config: Config) -> Networks:
    """The networks of a run on the meta device. ``frozen.weights`` is read for its architecture only.

    Raises:
        UsageError: the weights cannot be read, or are of another architecture than stated.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")  # the very intention
        schedule = build_schedule(config)
        if config.task == "diffusion":
            return Networks(build_diffusion(config, schedule), None, schedule)
        frozen = build_frozen(config)
        return Networks(build_model(config, frozen, schedule, build_subsets(config)), frozen, schedule)


def measure(networks: Networks, config: Config, policy: Policy, micro: int) -> Cost:
    """Take ``micro`` images forward and backward as fake tensors. The networks are fake afterwards."""
    if networks.frozen is not None:
        networks.frozen.to(policy.frozen_dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):  # the method's constants enter as real tensors
        for part in networks.all():
            part.to_empty(device=policy.device)
        batch, kept = _fake_batch(config, policy.device, micro), _Kept(networks)
        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(kept.pack, _unpack), policy.autocasting():
                loss = _loss(networks.module, config, batch)
            forward = _by_network(networks, counter)
            loss.backward()
    return Cost(micro, forward, counter.get_total_flops(), kept.bytes)


class _Kept:
    """The distinct storages that autograd keeps, parameters left out."""

    def __init__(self, networks: Networks):
        self._weights = {p.untyped_storage()._cdata for part in networks.all() for p in part.parameters()}
        self._kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address serves twice

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights:
            self._kept[storage._cdata] = storage
        return tensor

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._kept.values())


def _unpack(tensor: Tensor) -> Tensor:
    return tensor


def _fake_batch(config: Config, device: torch.device, micro: int) -> list[Tensor]:
    """Images, positions and, where SimSiam is trained, two views."""
    shape = (micro, config.data.px, config.data.px, 3)
    views = 2 if config.task == "diffsiam" and config.simsiam.weight > 0 else 0
    images = [torch.empty(shape, dtype=torch.uint8, device=device) for _ in range(1 + views)]
    return [images[0], torch.empty(micro, dtype=torch.int64, device=device), *images[1:]]


def _loss(module: nn.Module, config: Config, batch: list[Tensor]) -> Tensor:
    x_0, positions, *views = batch
    out = module(x_0, positions, config.seed, *views)
    return out[0].mean() if config.task == "diffusion" else out.total


def _by_network(networks: Networks, counter: FlopCounterMode) -> dict[str, int]:
    """FLOPs so far; the frozen network, whose halves are called apart, is what the others leave."""
    counts, root = counter.get_flop_counts(), type(networks.module).__name__
    by_name = {NAMES[name]: sum(counts.get(f"{root}.{name}", {}).values()) for name in NAMES}
    trained = {name: by_name[name] for name in networks.parts() if name != FROZEN}
    if networks.frozen is None:
        return trained
    return {FROZEN: counter.get_total_flops() - sum(trained.values()), **trained}


def memory(
    networks: Networks, optimizer: str, zero: int, world: int, frozen_dtype: torch.dtype
) -> dict[str, int]:
    """Bytes on one rank, by what they hold, without activations.

    ZeRO (arXiv 1910.02054) shards over the ranks: from stage 1 the optimizer state and a float32 copy of the
    weights, from stage 2 the gradients, at stage 3 the weights and their average.

    Args:
        optimizer: "adam" or "sgd".
        zero: ZeRO stage 0..3.
        world: number of ranks.
        frozen_dtype: of the frozen U-Net's weights.
    """
    trained = FLOAT * _parameters(networks.module)
    buffers = sum(buffer.nbytes for buffer in networks.module.buffers())

    def share(size: int, from_stage: int) -> int:
        return -(-size // world) if zero >= from_stage else size

    copies = OPTIMIZER_COPIES[optimizer] + (1 if zero else 0)
    return {
        "weights, frozen": frozen_dtype.itemsize * _parameters(networks.frozen),
        "weights, trained": share(trained, 3) + buffers,
        "gradients": share(trained, 2),
        "optimizer state": share(copies * trained, 1),
        "reduction buckets": BUCKETS[zero] * FLOAT * bucket_elements(networks.module),
        "moving average": share(trained, 3) + buffers,
    }


def _parameters(network: nn.Module | None) -> int:
    return 0 if network is None else sum(p.numel() for p in network.parameters())


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
        rows.append([name, trained, f"{_parameters(part):>13,}", tensors, forward])
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
        *plan.policy.reasons,
    ]


def _show_memory(plan: Plan) -> None:
    zero, name = zero_stage(plan.config, plan.ranks), plan.config.optimizer.name
    notes = {
        "weights, frozen": str(plan.policy.frozen_dtype).removeprefix("torch."),
        "weights, trained": "float32",
        "gradients": "float32",
        "optimizer state": name + (" and a float32 copy of the weights" if zero else ""),
        "reduction buckets": "DeepSpeed's",
        "moving average": "float32",
        "activations": f"kept for the backward pass of {plan.cost.images} images, uncompiled",
        "total": "without temporary buffers, CUDA context and libraries",
    }
    sizes = memory(plan.networks, name, zero, plan.ranks.world, plan.policy.frozen_dtype)
    sizes["activations"] = plan.cost.kept
    sizes["total"] = sum(sizes.values())
    rows = [[what, f"{size_of(size):>11}", notes[what]] for what, size in sizes.items() if size]
    title = f"memory per rank ({plan.policy.device.type}, {_world(plan)}, ZeRO {zero})"
    screen.table(["what", "size", ""], rows, title)


def _world(plan: Plan) -> str:
    return f"{plan.ranks.world} ranks" if plan.ranks.world > 1 else "1 rank"


def size_of(count: float) -> str:
    """A number of bytes in words."""
    return _scaled(count, 1024, ("bytes", "KiB", "MiB", "GiB", "TiB"))


def flops(count: float) -> str:
    """A number of floating-point operations in words."""
    return _scaled(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"))


def _scaled(count: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while count >= base and power + 1 < len(units):
        count, power = count / base, power + 1
    return f"{count:,.1f} {units[power]}" if power else f"{count:,.0f} {units[0]}"
