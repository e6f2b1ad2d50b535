"""Addresses and units of images inside a kernel. Imported by kernels alone.

Kernels walk an image in NHWC element order e = pixel * C + channel, whatever its memory layout: that is the
order of the noise.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def image_offset(e, stride_channel, stride_pixel, CHANNELS: tl.constexpr, PACKED: tl.constexpr):
    """Offset within a sample of elements ``e`` in NHWC order; PACKED says that memory has that order too."""
    if PACKED:
        return e
    else:
        return (e % CHANNELS) * stride_channel + (e // CHANNELS) * stride_pixel


@triton.jit
def to_unit_range(x, FROM_BYTES: tl.constexpr, ACC: tl.constexpr):
    """Bytes 0..255 -> [-1, 1] with the reference's rounding of x (1 / 127.5) - 1; floats pass. In ACC."""
    if FROM_BYTES:
        return (x.to(tl.float32) * (1.0 / 127.5) - 1.0).to(ACC)
    else:
        return x.to(ACC)
