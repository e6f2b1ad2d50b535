"""The operation on a CPU, for channels_last: few vectorised passes over memory that stays in the cache.

PyTorch's group norm takes a channels_last image of fewer than 1,024 pixels one group at a time, many times
slower than memory allows, and its backward does so at any size. Here sums run along the pixels, all channels
at once, and are combined per group afterwards; both modulations are folded into one gain and one shift a
channel:

    y = SiLU(k xhat + b),  k = weight (1 + s) (1 + s_z),  b = (bias (1 + s) + b_t) (1 + s_z) + b_z
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.adagn_silu import ref

CACHED = 1 << 19  # elements worked on at once: 2 MiB in float32
SMALL_IMAGE = 1024  # pixels from which PyTorch's own forward is fast


def adagn_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    time: Tensor | None = None,
    z: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """As :func:`kernels.adagn_silu.ref.adagn_silu`, in the dtype of x (B, C, H, W), which is channels_last.

    Everything between x and y is float32, or float64 where x is.
    """
    plain = time is None and z is None
    if plain and x[0, 0].numel() >= SMALL_IMAGE and not _needs_grad(x, weight, bias):
        return ref.adagn_silu(x, groups, weight, bias, eps=eps).to(x.dtype)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    gain, shift = (vector.to(dtype).expand(len(x), -1) for vector in (weight, bias))
    for modulation in (time, z):
        if modulation is not None:
            scale, offset = modulation.to(dtype).chunk(2, dim=1)
            gain, shift = gain * (1 + scale), shift * (1 + scale) + offset
    return _Norm.apply(x, gain, shift, groups, eps, True)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """``F.group_norm`` in the dtype of x (B, C, H, W), which is channels_last."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    gain, shift = (vector.to(dtype).expand(len(x), -1) for vector in (weight, bias))
    return _Norm.apply(x, gain, shift, groups, eps, False)


def _needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class _Norm(torch.autograd.Function):
    """gain xhat + shift for gain and shift (B, C), or SiLU of it; xhat is x normalised over its group."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        y = torch.empty_like(x, memory_format=torch.channels_last)
        mean, rstd = torch.empty_like(gain), torch.empty_like(gain)
        rows = (_pixels(x), gain, shift, _pixels(y), mean, rstd)
        for piece in _pieces(x):
            _forward(groups, eps, silu, *(t[piece] for t in rows))
        ctx.save_for_backward(x, gain, shift, mean, rstd)
        ctx.groups, ctx.silu = groups, silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *vectors = ctx.saved_tensors
        d_x = torch.empty_like(x, memory_format=torch.channels_last)
        d_gain, d_shift = torch.empty_like(vectors[0]), torch.empty_like(vectors[0])
        rows = (_pixels(grad), _pixels(x), *vectors, _pixels(d_x), d_gain, d_shift)
        for piece in _pieces(x):
            _backward(ctx.groups, ctx.silu, *(t[piece] for t in rows))
        return d_x, d_gain, d_shift, None, None, None


def _pieces(x: Tensor) -> list[slice]:
    """The batch in pieces that stay in the cache."""
    size = max(1, CACHED // x[0].numel())
    return [slice(start, start + size) for start in range(0, len(x), size)]


def _forward(
    groups: int,
    eps: float,
    silu: bool,
    x: Tensor,
    gain: Tensor,
    shift: Tensor,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    """Write y (B, pixels, C), and mean and reciprocal deviation of each channel's group (B, C)."""
    work = torch.empty(x.shape, dtype=gain.dtype).copy_(x)
    mean.copy_(_over_group(work.mean(dim=1), groups))
    centred = work.sub_(mean[:, None])
    torch.rsqrt(_over_group(centred.square().mean(dim=1), groups) + eps, out=rstd)
    h = _affine(centred, gain * rstd, shift, out=work)
    y.copy_(F.silu(h, inplace=True) if silu else h)


def _backward(
    groups: int,
    silu: bool,
    grad: Tensor,
    x: Tensor,
    gain: Tensor,
    shift: Tensor,
    mean: Tensor,
    rstd: Tensor,
    d_x: Tensor,
    d_gain: Tensor,
    d_shift: Tensor,
) -> None:
    """Write the gradients of x, gain and shift."""
    slope = gain * rstd
    centred = torch.empty(x.shape, dtype=gain.dtype).copy_(x).sub_(mean[:, None])
    d_pre = grad if grad.dtype == gain.dtype else torch.empty_like(centred).copy_(grad)
    if silu:
        work = _affine(centred, slope, shift)
        d_pre = torch.ops.aten.silu_backward.grad_input(d_pre, work, grad_input=work)
    torch.sum(d_pre, dim=1, out=d_shift)
    d_gain.copy_((d_pre * centred).sum(dim=1)).mul_(rstd)
    # A shift or a stretch of the whole group leaves xhat as it is: x gets no gradient along those two.
    pixels = centred.shape[1]
    along_one, along_x = (_over_group(gain * total, groups) / -pixels for total in (d_shift, d_gain))
    whole = _affine(centred, along_x * rstd.square(), along_one * rstd, out=centred)
    d_x.copy_(whole.addcmul_(d_pre, slope[:, None]))


def _pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C), a view where x is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _over_group(values: Tensor, groups: int) -> Tensor:
    """(B, C) -> (B, C): each channel's value replaced by the mean over its group."""
    grouped = values.unflatten(1, (groups, -1))
    return grouped.mean(dim=2, keepdim=True).expand_as(grouped).flatten(1)


def _affine(rows: Tensor, slope: Tensor, offset: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.addcmul(offset[:, None], rows, slope[:, None], out=out)
