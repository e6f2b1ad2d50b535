"""Inputs at the sizes of the presets, and comparisons in float64."""

import torch
from torch import Tensor

PX, BATCH = 128, 32
SEED = 2**63 + 11
SCHEDULE_STEPS = 1000
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ALPHA_BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, SCHEDULE_STEPS, dtype=torch.float64), 0)


def photos(batch: int = BATCH, px: int = PX) -> Tensor:
    """uint8 (B, px, px, 3) on the GPU."""
    return torch.randint(0, 256, (batch, px, px, 3), dtype=torch.uint8, device="cuda")


def levels(batch: int = BATCH) -> Tensor:
    """From the first to the last, (B,) int64."""
    return torch.linspace(0, SCHEDULE_STEPS - 1, batch, device="cuda").long()


def positions(batch: int = BATCH) -> Tensor:
    """Neighbours on either side of 2^32, (B,) int64."""
    return torch.arange(batch, device="cuda") + (2**32 - batch // 2)


def laid(x: Tensor, layout: str) -> Tensor:
    return x.contiguous(memory_format=LAYOUTS[layout])


def per_sample(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def errors(found: Tensor, exact: Tensor) -> tuple[float, float]:
    """Largest and root-mean-square error relative to the exact values' largest and root mean square."""
    found, exact = found.detach().double(), exact.detach().double()
    error, smallest = found - exact, 1e-300  # where the truth is 0 throughout, so must be what was found
    largest = error.abs().max() / exact.abs().max().clamp_min(smallest)
    typical = error.square().mean().sqrt() / exact.square().mean().sqrt().clamp_min(smallest)
    return largest.item(), typical.item()


def assert_close(name: str, found: Tensor, exact: Tensor, largest: float, rms: float) -> None:
    """Both errors are within bounds; not-a-numbers never are."""
    worst, typical = errors(found, exact)
    assert worst <= largest, f"{name}: largest error {worst:.1e} of {largest:.1e}"
    assert typical <= rms, f"{name}: root-mean-square error {typical:.1e} of {rms:.1e}"
