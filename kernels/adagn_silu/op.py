"""Group norm, modulations and SiLU as one operation: chosen backend, checked arguments, own backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import tensors
from kernels.adagn_silu import cpu, ref
from kernels.backend import use_cpu_path, use_triton
from kernels.tensors import INDEX_LIMIT, is_channels_last, require, require_together

NAME = "adagn_silu"
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
WARPS = 4
TILE = 2048  # elements of a tile, 16 a thread: two 128-bit accesses in bfloat16
WIDEST = 64  # channels of a tile
MOST_TILES = 8  # per program
STAGES = 3  # tiles on their way from memory
MERGE_BLOCK = 64  # chunks that the second stage reads at once


def adagn_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    time: Tensor | None = None,
    z: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """SiLU((1 + s_z) ((1 + s) GN(x) + b) + b_z). Equivalent PyTorch:
    :func:`kernels.adagn_silu.ref.adagn_silu`.

    The kernel is for channels_last. Under ``kernels.backend=auto`` an x in another layout goes to the
    reference, whose output keeps it; under ``triton`` it is refused. On a CPU "auto" takes
    :mod:`kernels.adagn_silu.cpu`.

    Args:
        x: (B, C, H, W) float32, bfloat16 or float64; computed in float32, or in float64 where x is.
        groups: number of groups, divides C.
        weight, bias: (C,) affine of the group norm.
        time, z: (B, 2 C), scale in the first half and shift in the second, applied in this order; None skips.

    Returns:
        (B, C, H, W), dtype of x from kernel and CPU path (the reference follows PyTorch's type promotion).

    Raises:
        ValueError: shape, dtype, strides or device are none of these.
    """
    require(x.dim() == 4, NAME, f"x must be (B, C, H, W), got {tuple(x.shape)}")
    batch, channels = x.shape[:2]
    require(groups > 0 and channels % groups == 0, NAME, f"{groups} groups do not divide {channels} channels")
    for name, vector in (("weight", weight), ("bias", bias)):
        require(vector.shape == (channels,), NAME, f"{name} must be ({channels},), got {tuple(vector.shape)}")
    for name, pair in (("time", time), ("z", z)):
        fits = pair is None or pair.shape == (batch, 2 * channels)
        require(
            fits,
            NAME,
            f"{name} must be ({batch}, {2 * channels}), got {None if pair is None else tuple(pair.shape)}",
        )
    require_together(NAME, x.device, weight=weight, bias=bias, time=time, z=z)
    if use_cpu_path(x, suits=is_channels_last(x)):
        return cpu.adagn_silu(x, groups, weight, bias, time, z, eps)
    if not use_triton(x, suits=is_channels_last(x)):
        return ref.adagn_silu(x, groups, weight, bias, time, z, eps)
    require(
        is_channels_last(x),
        NAME,
        f"x must be channels_last, got shape {tuple(x.shape)} with strides {x.stride()}",
    )
    require(x[:1].numel() < INDEX_LIMIT, NAME, "x has 2^31 elements or more a sample")
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("time", time), ("z", z)):
        if tensor is not None:
            require(
                tensor.dtype in DTYPES,
                NAME,
                f"{name} must be float32, bfloat16 or float64, got {tensor.dtype}",
            )
            require(
                tensor is x or tensor.is_contiguous(),
                NAME,
                f"{name} must be contiguous, got strides {tensor.stride()}",
            )
    return _adagn_silu(x, weight, bias, time, z, groups, eps)[0]


def tiling(channels: int, pixels: int) -> dict[str, int]:
    """BLOCK_P, BLOCK_C, TILES and STAGES for an image of these sizes; they depend on nothing else, so that a
    sample is computed alike in any batch.
    """
    divisor = channels & -channels  # the largest power of two that divides
    block_c = min(WIDEST, divisor if divisor >= 8 else tensors.power_of_two(channels))
    block_p = min(max(1, TILE // block_c), tensors.power_of_two(pixels))
    tiles = min(MOST_TILES, -(-pixels // block_p))
    return {"BLOCK_P": block_p, "BLOCK_C": block_c, "TILES": tiles, "STAGES": min(STAGES, tiles)}


def merging(chunks: int, width: int) -> dict[str, int]:
    """Block and warps of the second stage for groups of ``width`` channels: 8 elements a thread."""
    block_n, block_w = min(MERGE_BLOCK, tensors.power_of_two(chunks)), tensors.power_of_two(width)
    warps = max(1, min(8, block_n * block_w // 256))
    return {"STEPS": -(-chunks // block_n), "BLOCK_N": block_n, "BLOCK_W": block_w, "num_warps": warps}


class _Launch:
    """Grids and constants that the kernels of one call share."""

    def __init__(self, x: Tensor, groups: int, time: Tensor | None, z: Tensor | None):
        import triton.language as tl

        self.batch, channels, height, width = x.shape
        self.pixels = height * width
        tiles = tiling(channels, self.pixels)
        chunk = tiles["BLOCK_P"] * tiles["TILES"]
        self.chunks = -(-self.pixels // chunk)
        self.accumulator = torch.float64 if x.dtype == torch.float64 else torch.float32
        acc = tl.float64 if x.dtype == torch.float64 else tl.float32
        self.present = {"HAS_TIME": time is not None, "HAS_Z": z is not None}
        self.tile = {"C": channels, **tiles, "ACC": acc, "num_warps": WARPS, "enable_fp_fusion": True}
        self.grid = (self.batch * self.chunks * -(-channels // tiles["BLOCK_C"]),)
        self.width, self.chunk, self.groups = channels // groups, chunk, groups
        self.merge = {"C": channels, "WIDTH": self.width, **merging(self.chunks, self.width), "ACC": acc}
        self.merge |= {"enable_fp_fusion": True}
        self.merge_grid = (self.batch, groups)

    def new(self, x: Tensor, *shape: int) -> Tensor:
        """Uninitialised (B, *shape) in the accumulator's dtype."""
        return tensors.new((self.batch, *shape), self.accumulator, x.device)


@torch.library.custom_op("diffsiam::adagn_silu", mutates_args=())
def _adagn_silu(
    x: Tensor, weight: Tensor, bias: Tensor, time: Tensor | None, z: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the groups' mean and 1 / standard deviation (B, G) for the backward pass."""
    from kernels.adagn_silu import kernel

    launch = _Launch(x, groups, time, z)
    channels = x.shape[1]
    y = tensors.new(tuple(x.shape), x.dtype, x.device, channels_last=True)
    partial_mean, partial_m_2 = launch.new(x, launch.chunks, channels), launch.new(x, launch.chunks, channels)
    mean, rstd = launch.new(x, groups), launch.new(x, groups)
    sizes = (launch.pixels, launch.chunks)
    modulations = (weight if time is None else time, weight if z is None else z)  # absent ones are never read
    with tensors.launching_on(x):
        kernel._adagn_stats_kernel[launch.grid](x, partial_mean, partial_m_2, *sizes, **launch.tile)
        kernel._adagn_merge_kernel[launch.merge_grid](
            partial_mean, partial_m_2, mean, rstd, *sizes, CHUNK=launch.chunk, EPS=eps, **launch.merge
        )
        kernel._adagn_apply_kernel[launch.grid](
            x,
            weight,
            bias,
            *modulations,
            mean,
            rstd,
            y,
            *sizes,
            WIDTH=launch.width,
            **launch.present,
            **launch.tile,
        )
    return y, mean, rstd


@torch.library.custom_op("diffsiam::adagn_silu_backward", mutates_args=())
def _adagn_silu_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    time: Tensor | None,
    z: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    needs_dx: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx (empty unless needed), dweight, dbias, dtime and dz (empty where there is none)."""
    from kernels.adagn_silu import kernel

    launch = _Launch(x, groups, time, z)
    channels = x.shape[1]
    s_1, s_2 = launch.new(x, launch.chunks, channels), launch.new(x, launch.chunks, channels)
    dweight, dbias = launch.new(x, channels), launch.new(x, channels)
    mean_1, mean_2 = launch.new(x, groups), launch.new(x, groups)
    dtime, dz = (
        tensors.new((0,) if m is None else tuple(m.shape), (x if m is None else m).dtype, x.device)
        for m in (time, z)
    )
    dx = tensors.new(tuple(x.shape) if needs_dx else (0,), x.dtype, x.device, channels_last=needs_dx)
    sizes = (launch.pixels, launch.chunks)
    affine = (weight, bias, weight if time is None else time, weight if z is None else z)
    tile = {"WIDTH": launch.width, **launch.present, **launch.tile}
    with tensors.launching_on(x):
        kernel._adagn_sums_kernel[launch.grid](dy, x, *affine, mean, rstd, s_1, s_2, *sizes, **tile)
        kernel._adagn_reduce_kernel[launch.merge_grid](
            s_1,
            s_2,
            *affine,
            dweight,
            dbias,
            dtime,
            dz,
            mean_1,
            mean_2,
            *sizes,
            **launch.present,
            **launch.merge,
        )
        if needs_dx:
            kernel._adagn_dx_kernel[launch.grid](
                dy, x, *affine, mean, rstd, mean_1, mean_2, dx, *sizes, **tile
            )
    return dx, dweight.sum(0).to(weight.dtype), dbias.sum(0).to(bias.dtype), dtime, dz


@_adagn_silu.register_fake
def _(x, weight, bias, time, z, groups, eps):
    statistics = x.new_empty(
        (len(x), groups), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32
    )
    return torch.empty_like(x, memory_format=torch.channels_last), statistics, torch.empty_like(statistics)


@_adagn_silu_backward.register_fake
def _(dy, x, weight, bias, time, z, mean, rstd, groups, needs_dx):
    dx = torch.empty_like(x, memory_format=torch.channels_last) if needs_dx else x.new_empty(0)
    dtime, dz = (x.new_empty(0) if m is None else torch.empty_like(m) for m in (time, z))
    return dx, torch.empty_like(weight), torch.empty_like(bias), dtime, dz


def _keep_for_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, bias, time, z, ctx.groups, _ = inputs
    ctx.save_for_backward(x, weight, bias, time, z, *output[1:])


def _backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, time, z, mean, rstd = ctx.saved_tensors
    needed = ctx.needs_input_grad
    dy = dy.contiguous(memory_format=torch.channels_last)
    gradients = _adagn_silu_backward(dy, x, weight, bias, time, z, mean, rstd, ctx.groups, needed[0])
    return (
        *(gradient if need else None for gradient, need in zip(gradients, needed[:5], strict=True)),
        None,
        None,
    )


_adagn_silu.register_autograd(_backward, setup_context=_keep_for_backward)
