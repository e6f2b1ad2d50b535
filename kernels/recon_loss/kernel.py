"""The reconstruction loss and its gradient in one pass; see ``op.py`` for arguments and layouts."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.images_triton import image_offset, to_unit_range
from kernels.philox_triton import normals


@triton.jit
def _recon_loss_kernel(
    x_0_ptr,  # (B, H, W, C) uint8, or (B, C, H, W) float
    eps_theta_ptr,  # (B, C, H, W), strides given
    g_ptr,  # (B, C, H, W)
    gradient_ptr,  # (B, C, H, W), dtype and layout of g; untouched unless WITH_GRADIENT
    partial_ptr,  # (B, blocks, 2) ACC
    level_ptr,  # (B,) int64
    time_ptr,  # (B,) int64
    alpha_bar_ptr,  # (T,) tables, float32 or float64
    shift_ptr,
    weight_ptr,
    seed_ptr,  # () int64
    position_ptr,  # (B,) int64
    n,  # elements of a sample, C H W
    pixels,  # H W
    blocks,  # programs of a sample, ceil(n / BLOCK)
    eps_theta_batch,  # strides of eps_theta
    eps_theta_channel,
    eps_theta_pixel,
    CHANNELS: tl.constexpr,
    FROM_BYTES: tl.constexpr,
    X_PACKED: tl.constexpr,
    EPS_THETA_PACKED: tl.constexpr,
    G_PACKED: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Partial sums of (eps* - eps_theta - s g)^2 and (eps* - eps_theta)^2, and d loss / d g = -2 lambda s / n
    (eps* - eps_theta - s g)."""
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    block = program % blocks
    first = block * BLOCK
    e = first + tl.arange(0, BLOCK)
    m_e = e < n

    # In float64: the two square roots of the drift agree in all but the last digits where t is small.
    time = tl.load(time_ptr + sample)
    a_level = tl.load(alpha_bar_ptr + tl.load(level_ptr + sample)).to(tl.float64)
    a_time = tl.load(alpha_bar_ptr + time).to(tl.float64)
    shift = tl.load(shift_ptr + time).to(ACC)
    drift = ((tl.sqrt(a_level) - tl.sqrt(a_time)) / tl.sqrt(1.0 - a_time)).to(ACC)
    gain = tl.sqrt((1.0 - a_level) / (1.0 - a_time)).to(ACC)

    o_x = image_offset(e, pixels, 1, CHANNELS, X_PACKED)
    o_eps_theta = image_offset(e, eps_theta_channel, eps_theta_pixel, CHANNELS, EPS_THETA_PACKED)
    o_g = sample * n + image_offset(e, pixels, 1, CHANNELS, G_PACKED)
    x_0 = to_unit_range(tl.load(x_0_ptr + sample * n + o_x, mask=m_e, other=0), FROM_BYTES, ACC)
    eps_theta = tl.load(eps_theta_ptr + sample * eps_theta_batch + o_eps_theta, mask=m_e, other=0.0).to(ACC)
    g = tl.load(g_ptr + o_g, mask=m_e, other=0.0).to(ACC)
    eps = normals(tl.load(seed_ptr), tl.load(position_ptr + sample), first, STREAM, BLOCK).to(ACC)

    # eps* - eps_theta; past the end noise is drawn all the same.
    miss = tl.where(m_e, drift * x_0 + gain * eps - eps_theta, 0.0)
    residual = miss - shift * g
    o_partial = (sample * blocks + block) * 2
    tl.store(partial_ptr + o_partial, tl.sum(residual * residual, axis=0))
    tl.store(partial_ptr + o_partial + 1, tl.sum(miss * miss, axis=0))
    if WITH_GRADIENT:
        slope = -2.0 * tl.load(weight_ptr + time).to(ACC) * shift / n
        tl.store(gradient_ptr + o_g, (slope * residual).to(gradient_ptr.dtype.element_ty), mask=m_e)


@triton.jit
def _recon_loss_sum_kernel(
    partial_ptr,  # (B, blocks, 2) ACC
    loss_ptr,  # four (B,) outputs in ACC
    frozen_ptr,
    x_0_error_ptr,
    x_0_error_frozen_ptr,
    time_ptr,
    alpha_bar_ptr,
    weight_ptr,
    n,
    blocks,
    STEPS: tl.constexpr,  # ceil(blocks / BLOCK)
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Second stage, one program a sample: partial sums in a fixed order, then the two weights."""
    sample = tl.program_id(0).to(tl.int64)
    o_i = tl.arange(0, BLOCK)
    with_g, without = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    for step in range(STEPS):
        i = step * BLOCK + o_i
        o_partial, m_i = (sample * blocks + i) * 2, i < blocks
        with_g += tl.load(partial_ptr + o_partial, mask=m_i, other=0.0)
        without += tl.load(partial_ptr + o_partial + 1, mask=m_i, other=0.0)
    error, error_frozen = tl.sum(with_g, axis=0) / n, tl.sum(without, axis=0) / n

    time = tl.load(time_ptr + sample)
    weight = tl.load(weight_ptr + time).to(ACC)
    a_time = tl.load(alpha_bar_ptr + time).to(tl.float64)
    per_snr = ((1.0 - a_time) / a_time).to(ACC)
    tl.store(loss_ptr + sample, weight * error)
    tl.store(frozen_ptr + sample, weight * error_frozen)
    tl.store(x_0_error_ptr + sample, per_snr * error)
    tl.store(x_0_error_frozen_ptr + sample, per_snr * error_frozen)
