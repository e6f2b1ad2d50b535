"""Memory of a rank at its highest, and the largest micro-batch that fits.

What lasts (weights, optimizer state, average) follows from sizes and ZeRO stage; what forward and backward
make is counted (engine/cost.py). Two allowances are no counts: fragments that an allocator cannot give out,
and what the process holds before it builds anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from diffsiam.convolution import packed_bytes
from engine.cost import Cost, Networks
from engine.parallel import bucket_elements

FLOAT = 4  # bytes: parameters, gradients, optimizer state and average are float32 under every policy
OPTIMIZER_COPIES = {"adam": 2, "sgd": 1}  # two moments, one momentum
BUCKETS = {0: 0, 1: 2, 2: 2, 3: 1}  # by ZeRO stage: one is filled while the other is being reduced
FRAGMENTS = 1 / 8  # of all tensors; glibc's malloc kept 3 to 25 % of freed memory in runs of this model
CUDA_PROCESS = 10**9  # bytes: context, kernels, cuDNN's and cuBLAS' workspaces (an assumption)


@dataclass(frozen=True)
class Setting:
    """How a run is spread over ranks and devices.

    Attributes:
        optimizer: "adam" or "sgd".
        zero: ZeRO stage 0..3.
        world: number of ranks.
        accumulation: micro-batches of a step.
        frozen_dtype: of the frozen U-Net's weights.
        on_host: whether ranks compute on a CPU, whose memory then also holds the float32 original of the
            frozen U-Net.
        packs: whether large frozen weights are packed (:func:`diffsiam.convolution.pack`).
    """

    optimizer: str
    zero: int
    world: int
    accumulation: int
    frozen_dtype: torch.dtype
    on_host: bool
    packs: bool


def memory(
    networks: Networks, optimizer: str, zero: int, world: int, frozen_dtype: torch.dtype
) -> dict[str, int]:
    """Bytes on one rank, by what they hold, that last from step to step or as long as a step.

    ZeRO (arXiv 1910.02054) shards over the ranks: from stage 1 the optimizer state and a float32 copy of the
    weights, from stage 2 the gradients, at stage 3 the weights and their average. DeepSpeed keeps gathered
    weights from the forward to the backward pass, so at stage 3 they are whole during a step.

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
        "weights, gathered": trained if zero == 3 and world > 1 else 0,
        "gradients": share(trained, 2),
        "optimizer state": share(copies * trained, 1),
        "reduction buckets": BUCKETS[zero] * FLOAT * bucket_elements(networks.module),
        "moving average": share(trained, 3) + buffers,
    }


def _parameters(network: nn.Module | None) -> int:
    return 0 if network is None else sum(p.numel() for p in network.parameters())


def at_peak(networks: Networks, cost: Cost, setting: Setting, process: int | None = None) -> dict[str, int]:
    """Bytes on one rank when it holds most, by what they hold; their sum is the peak.

    Args:
        process: bytes that the process holds anyway; None: those of this one on a CPU, or
            :data:`CUDA_PROCESS`.
    """
    s = setting
    sizes = memory(networks, s.optimizer, s.zero, s.world, s.frozen_dtype)
    if s.on_host:
        sizes["weights, frozen"] += FLOAT * _parameters(networks.frozen)
    if s.packs and networks.frozen is not None:
        sizes["weights, packed"] = packed_bytes(networks.frozen)
    if s.zero == 0 and s.accumulation == 1:
        del sizes["gradients"]  # they come into being while activations go, and are among the following
        sizes["forward and backward"] = cost.peak
    else:
        sizes["forward and backward"] = cost.peak_beside_gradients
    sizes["fragments"] = round(FRAGMENTS * sum(sizes.values()))
    if process is None:
        process = resident_here() if s.on_host else CUDA_PROCESS
    return {what: size for what, size in (sizes | {"process": process}).items() if size}


def peaks(
    networks: Networks, few: Cost, more: Cost, setting: Setting, process: int | None = None
) -> Callable[[int, int], int]:
    """Peak of any (micro-batch, accumulation), on the line through those of two micro-batches."""

    def peak(part: int, accumulation: int) -> int:
        some = replace(setting, accumulation=accumulation)
        low, high = (sum(at_peak(networks, cost, some, process).values()) for cost in (few, more))
        return round(low + (high - low) * (part - few.images) / (more.images - few.images))

    return peak


def resident_here() -> int:
    """Bytes of memory that this process occupies now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    return 0


def largest_micro_batch(images: int, smallest: int, fits: Callable[[int, int], bool]) -> int | None:
    """The largest part of a rank's images of a step that fits, None if none does.

    The global batch stays as it is: (images / part) micro-batches are accumulated.

    Args:
        images: of one step on one rank.
        smallest: part that makes sense.
        fits: whether (part, accumulation) does.
    """
    parts = (part for part in range(images, smallest - 1, -1) if images % part == 0)
    return next((part for part in parts if fits(part, images // part)), None)
