"""The noise jump in one pass over the image; see ``op.py`` for arguments and layouts."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.images_triton import image_offset, to_unit_range
from kernels.philox_triton import normals


@triton.jit
def _noise_jump_kernel(
    x_0_ptr,  # (B, H, W, C) uint8, or (B, C, H, W) float
    level_ptr,  # (B,) int64
    alpha_bar_ptr,  # (T,) float32 or float64
    seed_ptr,  # () int64
    position_ptr,  # (B,) int64
    out_ptr,  # (B, C, H, W)
    eps_ptr,  # (B, C, H, W) float32, laid out as out; untouched unless RETURN_EPS
    n,  # elements of a sample, C H W
    pixels,  # H W
    blocks,  # programs of a sample, ceil(n / BLOCK)
    CHANNELS: tl.constexpr,
    FROM_BYTES: tl.constexpr,
    X_PACKED: tl.constexpr,
    OUT_PACKED: tl.constexpr,
    RETURN_EPS: tl.constexpr,
    STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = sqrt(abar_l) x_0 + sqrt(1 - abar_l) eps, eps = Philox normals of (seed, position, STREAM)."""
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    first = (program % blocks) * BLOCK
    e = first + tl.arange(0, BLOCK)
    m_e = e < n

    # In float64: near abar = 1 the float32 difference 1 - abar keeps three digits.
    alpha_bar = tl.load(alpha_bar_ptr + tl.load(level_ptr + sample)).to(tl.float64)
    signal, sigma = tl.sqrt(alpha_bar).to(tl.float32), tl.sqrt(1.0 - alpha_bar).to(tl.float32)

    o_x = image_offset(e, pixels, 1, CHANNELS, X_PACKED)
    x_0 = to_unit_range(tl.load(x_0_ptr + sample * n + o_x, mask=m_e, other=0), FROM_BYTES, tl.float32)
    eps = normals(tl.load(seed_ptr), tl.load(position_ptr + sample), first, STREAM, BLOCK)

    o_out = sample * n + image_offset(e, pixels, 1, CHANNELS, OUT_PACKED)
    # An explicit fma, with contraction switched off at the launch: the same bits whatever the block size.
    x_level = tl.fma(tl.zeros_like(eps) + sigma, eps, signal * x_0)
    tl.store(out_ptr + o_out, x_level.to(out_ptr.dtype.element_ty), mask=m_e)
    if RETURN_EPS:
        tl.store(eps_ptr + o_out, eps, mask=m_e)
