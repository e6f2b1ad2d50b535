"""The noise jump as an operation: chosen backend, checked arguments, no noise in memory unless asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import tensors
from kernels.backend import use_triton
from kernels.noise_jump import ref
from kernels.philox import STREAM_NOISE, Seed, seed_tensor
from kernels.tensors import require, require_batch, require_dense, require_together

NAME = "noise_jump"
BLOCK = 2048  # 16 elements a thread: bytes come in one 128-bit load
WARPS = 4


def noise_jump(
    x_0: Tensor,
    level: Tensor,
    alpha_bar: Tensor,
    seed: Seed,
    positions: Tensor,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
    return_eps: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Noise images to their level. Equivalent PyTorch:
    ``sqrt(abar[level]) * x_0 + sqrt(1 - abar[level]) * eps``.

    Args:
        x_0: uint8 (B, H, W, C), contiguous, normalised to [-1, 1] on the way; or float (B, C, H, W) in
            [-1, 1], contiguous or channels_last.
        level: (B,) int64 in 0..T-1.
        alpha_bar: (T,) float32 or float64 table.
        seed: 64-bit run seed, or a 0-d int64 tensor on the device of x_0 (a captured graph re-reads it at
            every replay).
        positions: (B,) int64, places in the global stream; with the seed they name the noise
            (:mod:`kernels.philox`).
        dtype: of x_level, float32 or bfloat16.
        memory_format: of x_level, ``torch.channels_last`` or ``torch.contiguous_format``.
        return_eps: also return the noise.

    Returns:
        x_level (B, C, H, W) without gradient, and eps (B, C, H, W) float32 where it exists: asked for, or
        drawn by the reference anyway. The kernel's noise lives in registers; whoever needs it again draws it
        again.

    Raises:
        ValueError: shape, dtype, strides or device are none of these.
    """
    _check(x_0, level, alpha_bar, positions, dtype, memory_format)
    seed = seed_tensor(seed, x_0.device)
    require_together(NAME, x_0.device, level=level, alpha_bar=alpha_bar, seed=seed, positions=positions)
    x_0 = x_0.detach()
    if not use_triton(x_0):
        return ref.noise_jump(x_0, level, alpha_bar, seed, positions, dtype, memory_format)
    channels_last = memory_format == torch.channels_last
    x_level, eps = _noise_jump(x_0, level, alpha_bar, seed, positions, dtype, channels_last, return_eps)
    return x_level, eps if return_eps else None


def _check(
    x_0: Tensor,
    level: Tensor,
    alpha_bar: Tensor,
    positions: Tensor,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> None:
    require(x_0.dim() == 4, NAME, f"x_0 must have 4 dimensions, got {tuple(x_0.shape)}")
    if x_0.dtype == torch.uint8:
        require(
            x_0.is_contiguous(),
            NAME,
            f"uint8 x_0 must be contiguous (B, H, W, C), got strides {x_0.stride()}",
        )
    else:
        require(
            x_0.dtype in (torch.float32, torch.bfloat16),
            NAME,
            f"x_0 must be uint8, float32 or bfloat16, got {x_0.dtype}",
        )
        require_dense(NAME, "x_0", x_0)
    require_batch(NAME, len(x_0), level=level, positions=positions)
    is_table = (
        alpha_bar.dim() == 1
        and alpha_bar.is_contiguous()
        and alpha_bar.dtype in (torch.float32, torch.float64)
    )
    require(
        is_table,
        NAME,
        f"alpha_bar must be (T,) float32 or float64, got {tuple(alpha_bar.shape)} {alpha_bar.dtype}",
    )
    require(dtype in (torch.float32, torch.bfloat16), NAME, f"dtype must be float32 or bfloat16, got {dtype}")
    formats = (torch.channels_last, torch.contiguous_format)
    require(
        memory_format in formats,
        NAME,
        f"memory_format must be channels_last or contiguous_format, got {memory_format}",
    )


def _shape(x_0: Tensor) -> tuple[int, int, int, int]:
    """(B, C, H, W)."""
    if x_0.dtype == torch.uint8:
        batch, height, width, channels = x_0.shape
        return batch, channels, height, width
    batch, channels, height, width = x_0.shape
    return batch, channels, height, width


@torch.library.custom_op("diffsiam::noise_jump", mutates_args=())
def _noise_jump(
    x_0: Tensor,
    level: Tensor,
    alpha_bar: Tensor,
    seed: Tensor,
    positions: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
    return_eps: bool,
) -> tuple[Tensor, Tensor]:
    from kernels.noise_jump.kernel import _noise_jump_kernel

    shape = batch, channels, height, width = _shape(x_0)
    out = tensors.new(shape, dtype, x_0.device, channels_last)
    eps = tensors.new(shape if return_eps else (0,), torch.float32, x_0.device, channels_last and return_eps)
    n = channels * height * width
    blocks = -(-n // BLOCK)
    with tensors.launching_on(x_0):
        _noise_jump_kernel[(batch * blocks,)](
            x_0, level, alpha_bar, seed, positions, out, eps, n, height * width, blocks,
            CHANNELS=channels, FROM_BYTES=x_0.dtype == torch.uint8,
            X_PACKED=x_0.dtype == torch.uint8 or tensors.is_channels_last(x_0), OUT_PACKED=channels_last,
            RETURN_EPS=return_eps, STREAM=STREAM_NOISE, BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return out, eps


@_noise_jump.register_fake
def _(x_0, level, alpha_bar, seed, positions, dtype, channels_last, return_eps):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty(_shape(x_0), dtype=dtype, device=x_0.device, memory_format=layout)
    return out, torch.empty_like(out, dtype=torch.float32) if return_eps else out.new_empty(
        0, dtype=torch.float32
    )
