"""Noise jump: x_l = sqrt(abar_l) x_0 + sqrt(1 - abar_l) eps at the per-sample level l (thesis Eq. 3.2, 3.11
with l = t + k)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.philox import STREAM_NOISE, Seed, normal

# A factor, not a divisor: on CUDA torch divides by a number as it multiplies by its rounded inverse, on a CPU
# it divides. 0 and 255 become -1 and 1 exactly.
UNIT = 1.0 / 127.5


def to_unit_range(x_0: Tensor) -> Tensor:
    """uint8 NHWC in 0..255 -> float32 NCHW in [-1, 1], channels_last strides; float NCHW passes through as
    float32."""
    if x_0.dtype == torch.uint8:
        return x_0.permute(0, 3, 1, 2).float() * UNIT - 1.0
    return x_0.float()


def noise_for(seed: Seed, positions: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """eps of each sample, (B, C, H, W) float32, drawn in NHWC element order so that no memory layout enters
    its value.

    Args:
        seed: 64-bit run seed, a number or a 0-d int64 tensor.
        positions: (B,) int64, position of each sample in the global stream.
        shape: (C, H, W).
    """
    channels, height, width = shape
    flat = normal(seed, positions, channels * height * width, STREAM_NOISE)
    return flat.view(len(positions), height, width, channels).permute(0, 3, 1, 2)


def noise_jump(
    x_0: Tensor,
    level: Tensor,
    alpha_bar: Tensor,
    seed: Seed,
    positions: Tensor,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> tuple[Tensor, Tensor]:
    """Normalise, draw eps and noise in one go.

    Args:
        x_0: uint8 (B, H, W, 3) or float (B, 3, H, W) in [-1, 1].
        level: (B,) int64 in 0..T-1, the noise level t + k.
        alpha_bar: (T,) table of abar, float64 to be exact at the lowest levels.
        seed, positions: names of the noise, see :mod:`kernels.philox`.
        dtype, memory_format: of x_level. Everything is computed in float32, or in float64 where that is asked
            for.

    Returns:
        x_level (B, 3, H, W), and eps, the same shape in float32.
    """
    x = to_unit_range(x_0)
    eps = noise_for(seed, positions, (x.shape[1], x.shape[2], x.shape[3]))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    a = alpha_bar[level].double()[:, None, None, None]
    x_level = a.sqrt().to(compute) * x + (1 - a).sqrt().to(compute) * eps
    return x_level.to(dtype).contiguous(memory_format=memory_format), eps
