"""Inputs and comparisons that the tests of the kernels share."""

import torch
from torch import Tensor

from kernels import backend

EPSILON = 2.0**-24  # half a unit in the last place of 1 in float32
# The interpreter cuts bfloat16 off where the GPU rounds to nearest.
BF16_ULPS = 2 if backend.INTERPRETED else 1
SEED = 2**63 + 11
FAR = [3, 2**33 + 1, 17]  # positions in the global stream, one beyond 32 bits

# (C, H, W) with 1, BLOCK - 1, BLOCK, BLOCK + 1 and 3 BLOCK + 7 elements for BLOCK = 16.
BLOCK = 16
ODD_IMAGES = [(1, 1, 1), (3, 5, 1), (1, 4, 4), (1, 17, 1), (5, 1, 11)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

ALPHA_BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
SHIFT = -torch.linspace(0.0, 1.5, 1000, dtype=torch.float64)
WEIGHT = torch.linspace(0.1, 0.7, 1000, dtype=torch.float64)


def photos(batch: int, image: tuple[int, int, int]) -> Tensor:
    """uint8 (B, H, W, C)."""
    channels, height, width = image
    return torch.randint(0, 256, (batch, height, width, channels), dtype=torch.uint8)


def laid(x: Tensor, layout: str) -> Tensor:
    """(B, C, H, W) in a layout by name."""
    return x.contiguous(memory_format=LAYOUTS[layout])


def per_sample(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def assert_within_bf16_ulps(found: Tensor, exact: Tensor, ulps: int) -> None:
    """``found`` (bfloat16) is at most ``ulps`` units in the last place of ``exact`` (float64) away."""
    exponent = torch.frexp(exact).exponent
    unit = torch.ldexp(torch.ones_like(exact), exponent - 8)  # 8 bits of significand
    assert ((found.double() - exact).abs() <= ulps * unit + 1e-30).all()


def assert_close(found: Tensor, exact: Tensor, worst: float, rms: float) -> None:
    """Largest and root-mean-square error relative to the exact values' largest and root mean square."""
    error = found.detach().double().cpu() - exact.detach().double().cpu()
    exact = exact.detach().double().cpu()
    assert error.abs().max() <= worst * exact.abs().max(), f"{error.abs().max() / exact.abs().max():.2e}"
    assert error.square().mean().sqrt() <= rms * exact.square().mean().sqrt()
