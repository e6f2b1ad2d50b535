"""Group norm, modulations and SiLU as one operation, which may begin with a residual sum: chosen backend,
checked arguments, own backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
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
    _require_shapes(x, groups, weight, bias, time, z)
    suits = is_channels_last(x)
    if use_cpu_path(x, suits and x.dtype in DTYPES):
        return cpu.adagn_silu(x, groups, weight, bias, time, z, eps)
    if not use_triton(x, suits):
        return ref.adagn_silu(x, groups, weight, bias, time, z, eps)
    _require_kernel_takes(x, weight, bias, time, z)
    return _adagn_silu(x, None, weight, bias, time, z, groups, eps)[0]


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """The group norm in front of attention, which has no SiLU. Equivalent PyTorch: ``F.group_norm``, which it
    is but for channels_last images on a CPU under "auto" (:mod:`kernels.adagn_silu.cpu`).

    Args:
        x: (B, C, H, W) float32, bfloat16 or float64.
        groups, weight, bias, eps: as for :func:`adagn_silu`.
    """
    if use_cpu_path(x, is_channels_last(x) and x.dtype in DTYPES):
        return cpu.group_norm(x, groups, weight, bias, eps)
    return F.group_norm(x, groups, weight, bias, eps)


def add_adagn_silu(
    x: Tensor,
    residual: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    time: Tensor | None = None,
    z: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """:func:`adagn_silu` of x + residual, and that sum. Equivalent PyTorch:
    :func:`kernels.adagn_silu.ref.add_adagn_silu`.

    The kernel adds in the pass that takes the statistics: it reads the two and writes the sum, which spares
    reading the sum once, and in backward the gradients of its uses are added by the pass that writes them.
    Where x and residual differ in dtype or are not both channels_last, PyTorch adds them and
    :func:`adagn_silu` goes on; so it does on a CPU, where a step's additions are less than 1 % of it.

    Args:
        x, residual: (B, C, H, W) as x of :func:`adagn_silu`; the sum is rounded, then normalised.
        groups, weight, bias, time, z, eps: as there.

    Returns:
        y and x + residual, both (B, C, H, W).

    Raises:
        ValueError: as there, or the two differ in shape or device.
    """
    require(
        residual.shape == x.shape,
        NAME,
        f"residual must be as x, {tuple(x.shape)}, got {tuple(residual.shape)}",
    )
    require_together(NAME, x.device, residual=residual)
    alike = x.dtype == residual.dtype and x.dim() == 4 and is_channels_last(x) and is_channels_last(residual)
    if not (alike and use_triton(x)):
        total = x + residual
        return adagn_silu(total, groups, weight, bias, time, z, eps), total
    _require_shapes(x, groups, weight, bias, time, z)
    _require_kernel_takes(x, weight, bias, time, z)
    return _adagn_silu(x, residual, weight, bias, time, z, groups, eps)[:2]


def _require_shapes(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, time: Tensor | None, z: Tensor | None
) -> None:
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


def _require_kernel_takes(
    x: Tensor, weight: Tensor, bias: Tensor, time: Tensor | None, z: Tensor | None
) -> None:
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
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    time: Tensor | None,
    z: Tensor | None,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, x + residual (empty where there is none), and the groups' mean and 1 / standard deviation (B, G) for
    the backward pass.
    """
    from kernels.adagn_silu import kernel

    launch = _Launch(x, groups, time, z)
    channels, adds = x.shape[1], residual is not None
    y, total = _image(x), _image(x, adds)
    partial_mean, partial_m_2 = launch.new(x, launch.chunks, channels), launch.new(x, launch.chunks, channels)
    mean, rstd = launch.new(x, groups), launch.new(x, groups)
    sizes = (launch.pixels, launch.chunks)
    modulations = (weight if time is None else time, weight if z is None else z)  # absent ones are never read
    with tensors.launching_on(x):
        kernel._adagn_stats_kernel[launch.grid](
            x,
            residual if adds else x,
            total if adds else y,
            partial_mean,
            partial_m_2,
            *sizes,
            HAS_RESIDUAL=adds,
            **launch.tile,
        )
        kernel._adagn_merge_kernel[launch.merge_grid](
            partial_mean, partial_m_2, mean, rstd, *sizes, CHUNK=launch.chunk, EPS=eps, **launch.merge
        )
        kernel._adagn_apply_kernel[launch.grid](
            total if adds else x,
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
    return y, total, mean, rstd


@torch.library.custom_op("diffsiam::adagn_silu_backward", mutates_args=())
def _adagn_silu_backward(
    dy: Tensor,
    dsum: Tensor | None,
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
    """dx with dsum added (empty unless needed), dweight, dbias, dtime and dz (empty where there is none)."""
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
    dx = _image(x, needs_dx)
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
                dy,
                x,
                *affine,
                mean,
                rstd,
                mean_1,
                mean_2,
                dy if dsum is None else dsum,
                dx,
                *sizes,
                HAS_DSUM=dsum is not None,
                **tile,
            )
    return dx, dweight.sum(0).to(weight.dtype), dbias.sum(0).to(bias.dtype), dtime, dz


def _image(x: Tensor, there: bool = True) -> Tensor:
    """Memory for an image as x, or for nothing."""
    return tensors.new(tuple(x.shape) if there else (0,), x.dtype, x.device, channels_last=there)


def _fake_image(x: Tensor, there: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last) if there else x.new_empty(0)


@_adagn_silu.register_fake
def _(x, residual, weight, bias, time, z, groups, eps):
    statistics = x.new_empty(
        (len(x), groups), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32
    )
    images = (_fake_image(x, there) for there in (True, residual is not None))
    return *images, statistics, torch.empty_like(statistics)


@_adagn_silu_backward.register_fake
def _(dy, dsum, x, weight, bias, time, z, mean, rstd, groups, needs_dx):
    dtime, dz = (x.new_empty(0) if m is None else torch.empty_like(m) for m in (time, z))
    return _fake_image(x, needs_dx), torch.empty_like(weight), torch.empty_like(bias), dtime, dz


def _keep_for_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, residual, weight, bias, time, z, ctx.groups, _ = inputs
    _, total, mean, rstd = output
    ctx.adds = residual is not None
    ctx.save_for_backward(total if ctx.adds else x, weight, bias, time, z, mean, rstd)
    ctx.set_materialize_grads(False)  # of y or of the sum there may be none, which is not an image of zeros


def _backward(ctx: Any, dy: Tensor | None, dsum: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
    needed, nothing = ctx.needs_input_grad[:6], (None, None)
    if dy is None:
        return (*(dsum if need else None for need in needed[:2]), *(None,) * 4, *nothing)
    x, *parameters, mean, rstd = ctx.saved_tensors
    dy = dy.contiguous(memory_format=torch.channels_last)
    dsum = dsum.contiguous(memory_format=torch.channels_last) if ctx.adds and dsum is not None else None
    needs_dx = needed[0] or needed[1]
    dx, *others = _adagn_silu_backward(dy, dsum, x, *parameters, mean, rstd, ctx.groups, needs_dx)
    gradients = (dx, dx, *others)  # a sum hands its gradient to both
    return *(g if need else None for g, need in zip(gradients, needed, strict=True)), *nothing


_adagn_silu.register_autograd(_backward, setup_context=_keep_for_backward)
