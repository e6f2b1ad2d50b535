"""The networks' convolutions: ``nn.Conv2d`` in forms that suit CPUs with matrix tiles (AMX).

Weight gradients: oneDNN sums them row by row of the image, and a row of a few pixels leaves most of a tile
empty: at 4 px and below it reaches a tenth of the forward pass' rate. As one matrix product, over the pixels
of all images at once, it is 2 to 8 times as fast, and slower where rows are long.

Frozen weights: every call rounds them to bfloat16 and turns them into the order that tiles want, which for
512 channels at 8 px takes longer than the convolution; :func:`pack` does it once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from kernels.backend import use_cpu_path
from kernels.tensors import is_channels_last

# Of the result: an image of so many pixels has rows too short for a tile, and so few pixels in all make a
# product whose columns cost nothing to gather (measured on one core).
MOST_PIXELS, MOST_PIXELS_IN_ALL = 16, 512
# Weights of a convolution, below which the calls through Python cost what a product or packing saves.
LEAST_WEIGHTS, LEAST_PACKED = 1 << 15, 1 << 18

Pair = tuple[int, int]


class Conv2d(nn.Conv2d):
    """``nn.Conv2d``: the same parameters, the same result to the bit, and gradients equal to rounding."""

    packed: tuple[Tensor, Tensor | None] | None = None  # weight and bias, see :func:`pack`

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.packed is not None and self._takes_packed(x):
            form = (self.padding, self.stride, (1, 1), 1)
            return torch.ops.mkldnn._convolution_pointwise(x.bfloat16(), *self.packed, *form, "none", [], "")
        if not self._pays(x):
            return super()._conv_forward(x, weight, bias)
        with torch.autocast("cpu", enabled=False):
            given = (part if part is None else part.bfloat16() for part in (x, weight, bias))
            return _Convolve.apply(*given, self.stride, self.padding)

    def _pays(self, x: Tensor) -> bool:
        """Whether a weight gradient is due that is faster as a product."""
        # First what holds under torch.compile too, which then sees nothing of the rest.
        if not use_cpu_path(x, x.dim() == 4 and is_channels_last(x)):
            return False
        due = torch.is_grad_enabled() and self.weight.requires_grad and self.weight.numel() >= LEAST_WEIGHTS
        if not (due and _in_bfloat16(x) and has_tiles() and self._is_plain()):
            return False
        assert not isinstance(self.padding, str)
        height, width = (
            (x.shape[2 + i] + 2 * int(self.padding[i]) - self.kernel_size[i]) // self.stride[i] + 1
            for i in (0, 1)
        )
        return height * width <= MOST_PIXELS or len(x) * height * width <= MOST_PIXELS_IN_ALL

    def _takes_packed(self, x: Tensor) -> bool:
        suits = not torch.is_grad_enabled() and is_channels_last(x) and type(x) is Tensor
        return use_cpu_path(x, suits) and _in_bfloat16(x)

    def _is_plain(self) -> bool:
        """Whether it is the convolution that networks here consist of, without further switches."""
        plain = self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        return plain and not isinstance(self.padding, str)


def pack(network: nn.Module) -> None:
    """Keep large weights of a frozen network ready for calls in bfloat16 without gradients, beside the ones
    that they are made of, which may not change any more. Nothing where the processor has no tiles.
    """
    for module in _to_be_packed(network):
        weight = module.weight.detach().bfloat16()
        bias = None if module.bias is None else module.bias.detach().bfloat16()
        form = (module.padding, module.stride, (1, 1), 1)
        module.packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *form), bias


def packed_bytes(network: nn.Module) -> int:
    """Bytes that :func:`pack` adds to a network here."""
    return torch.bfloat16.itemsize * sum(module.weight.numel() for module in _to_be_packed(network))


def _to_be_packed(network: nn.Module) -> list[Conv2d]:
    if not has_tiles():
        return []
    convolutions = (module for module in network.modules() if isinstance(module, Conv2d))
    return [conv for conv in convolutions if conv.weight.numel() >= LEAST_PACKED and conv._is_plain()]


@register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
def _flops(x_shape: Any, weight_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return conv_flop_count(x_shape, weight_shape, out_shape)


def _in_bfloat16(x: Tensor) -> bool:
    """Whether a convolution of x computes in bfloat16."""
    autocast = torch.is_autocast_enabled("cpu")
    return (torch.get_autocast_dtype("cpu") if autocast else x.dtype) == torch.bfloat16


@cache
def has_tiles() -> bool:
    """Whether this processor multiplies tiles of bfloat16 (AMX)."""
    return bool(torch.cpu._is_amx_tile_supported())


class _Convolve(torch.autograd.Function):
    """PyTorch's convolution and gradients but for that of the weight."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad = grad.contiguous(memory_format=torch.channels_last)
        geometry = (list(ctx.stride), list(ctx.padding), [1, 1], False, [0, 0], 1)
        d_x, _, d_bias = torch.ops.aten.convolution_backward(
            grad, x, weight, [len(weight)] if needs_bias else None, *geometry, [needs_x, False, needs_bias]
        )
        kernel = (weight.shape[2], weight.shape[3])
        d_weight = weight_gradient(x, grad, kernel, ctx.stride, ctx.padding) if needs_weight else None
        return d_x, d_weight, d_bias, None, None


def weight_gradient(x: Tensor, grad: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Gradient of a convolution's weight as one product. Equivalent PyTorch:
    ``torch.nn.grad.conv2d_weight``.

    Args:
        x: input (B, I, H, W), channels_last.
        grad: gradient of the result (B, O, H', W'), channels_last.

    Returns:
        (O, I, *kernel), channels_last, in the dtype of x.
    """
    channels, (height, width) = x.shape[1], grad.shape[2:]
    across, down = (padding[1], padding[1]), (padding[0], padding[0])
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, *across, *down)) if any(padding) else x.permute(0, 2, 3, 1)
    batch, row, column, channel = padded.stride()
    windows = padded.as_strided(
        (len(x), height, width, *kernel, channels),
        (batch, row * stride[0], column * stride[1], row, column, channel),
    )
    columns = windows.reshape(len(x) * height * width, -1)
    rows = grad.permute(0, 2, 3, 1).reshape(len(columns), -1)
    return (rows.t() @ columns).view(-1, *kernel, channels).permute(0, 3, 1, 2)
