"""What a micro-batch costs, counted without computing it.

Networks are built without memory (on the meta device), and images go through them forward and backward as
fake tensors, which carry shape, dtype and device but no data. So the counts are those of the very code that
would run, for any size of model, in seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from diffsiam.attention import set_attention
from diffsiam.schedule import Schedule
from diffsiam.unet import UNet
from engine.build import build_diffusion, build_frozen, build_model, build_schedule, build_subsets
from engine.communication import norm_calls
from engine.config import Config
from engine.operations import Operation, Operations
from engine.step import Policy
from kernels.backend import as_on

FROZEN = "frozen U-Net"
NAMES = {"encoder": "encoder f", "decoder": "decoder g", "simsiam": "SimSiam head", "unet": "U-Net"}


@dataclass(frozen=True)
class Networks:
    """What a run computes with, without memory: on the meta device, and fake once it was measured."""

    module: nn.Module
    frozen: UNet | None
    schedule: Schedule
    mode: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))

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
        peak: most bytes alive at once of what forward and backward make: activations, temporaries, gradients.
        peak_beside_gradients: the same without the parameters' gradients.
        before, after: operations of the forward and of the backward pass.
        norms: channels of every call of a batch norm.
    """

    images: int
    forward: dict[str, int]
    total: int
    kept: int
    peak: int
    peak_beside_gradients: int
    before: tuple[Operation, ...]
    after: tuple[Operation, ...]
    norms: tuple[int, ...]

    @property
    def operations(self) -> tuple[Operation, ...]:
        return self.before + self.after


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


def measure(
    networks: Networks, config: Config, policy: Policy, micro: int, planned: str | None = None
) -> Cost:
    """Take ``micro`` images forward and backward as fake tensors. The networks are fake afterwards.

    Args:
        planned: "cuda" counts what runs there, on a machine without a GPU too; None: on the policy's device.
    """
    _make_fake(networks, policy)
    with networks.mode, as_on(planned):  # the method's constants enter as real tensors
        batch, kept = _fake_batch(config, policy.device, micro), _Kept(networks)
        with (
            FlopCounterMode(display=False) as counter,
            norm_calls(networks.module) as norms,
            Operations(networks.module) as operations,
        ):
            with torch.autograd.graph.saved_tensors_hooks(kept.pack, _unpack), policy.autocasting():
                loss = _loss(networks.module, config, batch)
            forward, middle = _by_network(networks, counter), len(operations.seen)
            loss.backward()
    return Cost(
        micro,
        forward,
        counter.get_total_flops(),
        kept.bytes,
        operations.peak,
        operations.peak_beside_gradients,
        tuple(operations.seen[:middle]),
        tuple(operations.seen[middle:]),
        tuple(norms),
    )


def _make_fake(networks: Networks, policy: Policy) -> None:
    """Give meta tensors a device; fake ones lose the gradients of the count before."""
    if next(networks.module.parameters()).is_meta:
        if networks.frozen is not None:
            networks.frozen.to(policy.frozen_dtype)
        with networks.mode:
            for part in networks.all():
                part.to_empty(device=policy.device)
                if policy.device.type == "cpu":  # where SDPA may choose a kernel whose products nobody counts
                    set_attention(part, policy.attend)
    networks.module.zero_grad(set_to_none=True)


class Prices:
    """The price of any micro-batch, from those of two: whatever is counted is a constant and a part that
    grows with the number of images. Only nearly so the peak: another moment may be the highest.

    Raises:
        ValueError: the two do not run the same operations.
    """

    def __init__(self, small: Cost, large: Cost):
        if len(small.before) != len(large.before) or len(small.after) != len(large.after):
            raise ValueError(f"{small.images} and {large.images} images do not run the same operations")
        self.small, self.large = small, large

    def of(self, images: int) -> Cost:
        """The price of so many images."""
        a, b = self.small, self.large

        def at(low: int, high: int) -> int:
            return round(low + (high - low) * (images - a.images) / (b.images - a.images))

        def all_at(low: Sequence[Operation], high: Sequence[Operation]) -> tuple[Operation, ...]:
            pairs = zip(low, high, strict=True)
            return tuple(replace(x, flops=at(x.flops, y.flops), bytes=at(x.bytes, y.bytes)) for x, y in pairs)

        return Cost(
            images,
            {name: at(count, b.forward[name]) for name, count in a.forward.items()},
            at(a.total, b.total),
            at(a.kept, b.kept),
            at(a.peak, b.peak),
            at(a.peak_beside_gradients, b.peak_beside_gradients),
            all_at(a.before, b.before),
            all_at(a.after, b.after),
            a.norms,
        )


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
