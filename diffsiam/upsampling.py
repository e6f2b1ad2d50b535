"""Nearest-neighbour upsampling and a 3x3 convolution as one: on a CPU computed on the small image.

Of the three rows that a row of the large convolution reads, two are the same row of the small image. So each
of the four pixels that a small one becomes is a 2x2 convolution of the small image, whose kernel has the
3x3 kernel's rows and columns summed in pairs: 16 products a pixel of the small image in place of 36, and a
gradient that needs no sum over copies.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kernels.backend import use_cpu_path
from kernels.tensors import is_channels_last

# Below, summing kernels and dealing out pixels cost what the products save (measured on one core).
LEAST_CHANNELS, LEAST_PIXELS_PER_CHANNEL = 128, 2
PARITIES = tuple((row, column) for row in (0, 1) for column in (0, 1))


def upsample(x: Tensor) -> Tensor:
    """Twice the size by nearest neighbour, (B, C, H, W) -> (B, C, 2 H, 2 W)."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def upsample_convolve(x: Tensor, conv: nn.Module) -> Tensor:
    """``conv(upsample(x))`` for a 3x3 convolution of padding 1, exact to rounding.

    Args:
        x: (B, C, H, W).
        conv: its ``nn.Conv2d``.

    Returns:
        (B, c_out, 2 H, 2 W).
    """
    assert isinstance(conv, nn.Conv2d)
    if not _pays(x, conv):
        return conv(upsample(x))
    dtype = x.dtype
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    assert conv.bias is not None
    with torch.autocast("cpu", enabled=False):
        return _UpsampleConvolve.apply(x.to(dtype), conv.weight.to(dtype), conv.bias.to(dtype))


def _pays(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether the small image is the faster one, and eager."""
    batch, channels, height, width = x.shape
    suits = is_channels_last(x) and x.dtype in (torch.float32, torch.bfloat16) and conv.bias is not None
    large = channels >= LEAST_CHANNELS and batch * height * width >= LEAST_PIXELS_PER_CHANNEL * channels
    return large and use_cpu_path(x, suits)


class _UpsampleConvolve(torch.autograd.Function):
    """All four convolutions as one with four times the channels, on the image with a border of zeros: of its
    (H + 1) x (W + 1) results each pixel takes the H x W that are its own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        kernels, channels = sum_kernels(weight), len(weight)
        batch, _, height, width = x.shape
        small = F.conv2d(x, kernels, bias.repeat(4), padding=1).permute(0, 2, 3, 1)
        large = small.new_empty(batch, 2 * height, 2 * width, channels)
        for i, (row, column) in enumerate(PARITIES):
            own = small[:, row : row + height, column : column + width]
            large[:, row::2, column::2] = own[..., i * channels : (i + 1) * channels]
        ctx.save_for_backward(x, kernels)
        return large.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, kernels = ctx.saved_tensors
        (batch, channels), (height, width) = grad.shape[:2], x.shape[2:]
        large, small = grad.permute(0, 2, 3, 1), grad.new_zeros(batch, height + 1, width + 1, 4 * channels)
        for i, (row, column) in enumerate(PARITIES):
            own = small[:, row : row + height, column : column + width]
            own[..., i * channels : (i + 1) * channels] = large[:, row::2, column::2]
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        d_x, d_kernels, d_bias = torch.ops.aten.convolution_backward(
            small.permute(0, 3, 1, 2),
            x,
            kernels,
            [4 * channels],
            [1, 1],
            [1, 1],
            [1, 1],
            False,
            [0, 0],
            1,
            [needs_x, needs_weight, needs_bias],
        )
        return (
            d_x,
            sum_kernel_gradients(d_kernels) if needs_weight else None,
            d_bias.view(4, channels).sum(0) if needs_bias else None,
        )


def sum_kernels(weight: Tensor) -> Tensor:
    """3x3 kernels (O, I, 3, 3) -> the 2x2 kernels of the four pixels (4 O, I, 2, 2), channels_last.

    The upper pixel reads its rows as (0, 1 + 2), the lower one as (0 + 1, 2); columns alike.
    """
    w = weight.permute(0, 2, 3, 1)  # O, 3, 3, I
    upper, lower = torch.stack((w[:, 0], w[:, 1] + w[:, 2]), 1), torch.stack((w[:, 0] + w[:, 1], w[:, 2]), 1)
    w = torch.stack((upper, lower))  # row, O, 2, 3, I
    left = torch.stack((w[..., 0, :], w[..., 1, :] + w[..., 2, :]), 3)
    right = torch.stack((w[..., 0, :] + w[..., 1, :], w[..., 2, :]), 3)
    return torch.stack((left, right), 1).flatten(0, 2).permute(0, 3, 1, 2)


def sum_kernel_gradients(d_kernels: Tensor) -> Tensor:
    """The transpose of :func:`sum_kernels`: (4 O, I, 2, 2) -> (O, I, 3, 3), channels_last."""
    d = d_kernels.permute(0, 2, 3, 1).unflatten(0, (2, 2, -1))  # row, column, O, 2, 2, I
    left, right = d[:, 0], d[:, 1]
    columns = (
        left[..., 0, :] + right[..., 0, :],
        left[..., 1, :] + right[..., 0, :],
        left[..., 1, :] + right[..., 1, :],
    )
    upper, lower = torch.stack(columns, -2)  # O, 2, 3, I each
    rows = (upper[:, 0] + lower[:, 0], upper[:, 1] + lower[:, 0], upper[:, 1] + lower[:, 1])
    return torch.stack(rows, 1).permute(0, 3, 1, 2)
