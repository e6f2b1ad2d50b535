"""Adaptive group norm and SiLU in channels_last, forward and backward; see ``op.py`` for arguments.

An image is (pixels, C) in memory. A program takes a column of BLOCK_C neighbouring channels over TILES tiles
of BLOCK_P pixels, so that accesses stay wide although a group is only a few channels; groups form when the
per-channel partial results are merged. With

    x^ = (x - mean) rstd      h = gain x^ + offset      y = h sigmoid(h)
    gain = gamma (1 + s_t) (1 + s_z)      offset = (beta (1 + s_t) + b_t) (1 + s_z) + b_z

every gradient follows from two sums over the pixels of each channel, S_1 = sum dh and S_2 = sum dh x^.

Where x is the sum of two images, the pass that takes its statistics adds them and writes the sum, and the one
that writes dx adds the gradient that came to the sum from elsewhere.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _place(program, chunks, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sample, chunk and channels of a program: neighbours take neighbouring channels of the same pixels, so
    that together they read memory in order.
    """
    columns: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    place = program // columns
    c = (program % columns) * BLOCK_C + tl.arange(0, BLOCK_C)
    return (place // chunks).to(tl.int64), place % chunks, c


@triton.jit
def _modulation(pointer, sample, c, m_c, C: tl.constexpr, PRESENT: tl.constexpr, ACC: tl.constexpr):
    """(1 + scale, shift) of a modulation (B, 2 C), or (1, 0) where there is none."""
    if PRESENT:
        scale = tl.load(pointer + sample * 2 * C + c, mask=m_c, other=0.0).to(ACC)
        shift = tl.load(pointer + sample * 2 * C + C + c, mask=m_c, other=0.0).to(ACC)
    else:
        scale, shift = tl.zeros(c.shape, ACC), tl.zeros(c.shape, ACC)
    return 1.0 + scale, shift


@triton.jit
def _affine(
    weight_ptr,
    bias_ptr,
    time_ptr,
    z_ptr,
    sample,
    c,
    m_c,
    C: tl.constexpr,
    HAS_TIME: tl.constexpr,
    HAS_Z: tl.constexpr,
    ACC: tl.constexpr,
):
    """(gain, offset) of each channel."""
    weight = tl.load(weight_ptr + c, mask=m_c, other=0.0).to(ACC)
    bias = tl.load(bias_ptr + c, mask=m_c, other=0.0).to(ACC)
    scale_t, shift_t = _modulation(time_ptr, sample, c, m_c, C, HAS_TIME, ACC)
    scale_z, shift_z = _modulation(z_ptr, sample, c, m_c, C, HAS_Z, ACC)
    return weight * scale_t * scale_z, (bias * scale_t + shift_t) * scale_z + shift_z


@triton.jit
def _of_group(pointer, sample, c, m_c, C: tl.constexpr, WIDTH: tl.constexpr):
    """A value (B, G) of each channel's group."""
    return tl.load(pointer + sample * (C // WIDTH) + c // WIDTH, mask=m_c, other=0.0)


@triton.jit
def _adagn_stats_kernel(
    x_ptr,  # (B, pixels, C)
    residual_ptr,  # (B, pixels, C), read where HAS_RESIDUAL
    sum_ptr,  # (B, pixels, C), written where HAS_RESIDUAL
    mean_ptr,  # (B, chunks, C) ACC, of the chunk
    m_2_ptr,  # (B, chunks, C) ACC, sum of squared deviations from that mean
    pixels,
    chunks,  # programs along the pixels, ceil(pixels / (TILES BLOCK_P))
    C: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILES: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    """Mean and squared deviations of each channel over a chunk: Welford's recurrence down the tiles for each
    place in a tile, then all places at once (Chan et al.), so that threads meet only at the end."""
    sample, chunk, c = _place(tl.program_id(0), chunks, C, BLOCK_C)
    m_c = c < C
    x_ptr += sample * pixels * C
    residual_ptr += sample * pixels * C
    sum_ptr += sample * pixels * C
    first = chunk * TILES * BLOCK_P
    row = tl.arange(0, BLOCK_P)
    place_mean, place_m_2 = tl.zeros((BLOCK_P, BLOCK_C), ACC), tl.zeros((BLOCK_P, BLOCK_C), ACC)
    seen = tl.full((), 0.0, ACC)
    for tile in tl.range(0, TILES, num_stages=STAGES):
        p = first + tile * BLOCK_P + row
        m_pc = (p < pixels)[:, None] & m_c[None, :]
        o_pc = p[:, None] * C + c[None, :]
        x = tl.load(x_ptr + o_pc, mask=m_pc, other=0.0).to(ACC)
        if HAS_RESIDUAL:
            x += tl.load(residual_ptr + o_pc, mask=m_pc, other=0.0).to(ACC)
            total = x.to(sum_ptr.dtype.element_ty)
            tl.store(sum_ptr + o_pc, total, mask=m_pc)
            x = total.to(ACC)  # what is normalised is the sum as the others see it, rounded
        deviation = tl.where(m_pc, x - place_mean, 0.0)  # past the end mean and squares stay
        seen += 1.0
        place_mean += deviation * (1.0 / seen)
        place_m_2 += deviation * (x - place_mean)
    here = tl.minimum(pixels - first, TILES * BLOCK_P).to(ACC)
    tiles = tl.maximum(tl.minimum((pixels - first - row + BLOCK_P - 1) // BLOCK_P, TILES), 0)
    count = tiles.to(ACC)[:, None]
    mean = tl.sum(count * place_mean, axis=0) / here
    delta = place_mean - mean[None, :]
    m_2 = tl.sum(place_m_2 + count * delta * delta, axis=0)
    o_partial = (sample * chunks + chunk) * C + c
    tl.store(mean_ptr + o_partial, mean, mask=m_c)
    tl.store(m_2_ptr + o_partial, m_2, mask=m_c)


@triton.jit
def _adagn_merge_kernel(
    partial_mean_ptr,  # (B, chunks, C) ACC
    partial_m_2_ptr,
    mean_ptr,  # (B, G) ACC
    rstd_ptr,
    pixels,
    chunks,
    C: tl.constexpr,
    WIDTH: tl.constexpr,  # channels of a group
    CHUNK: tl.constexpr,  # pixels of a chunk
    STEPS: tl.constexpr,  # ceil(chunks / BLOCK_N)
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    EPS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Mean and 1 / sqrt(variance + eps) of a group, from its channels' chunks: one program each."""
    sample = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    o_w = tl.arange(0, BLOCK_W)
    i = tl.arange(0, BLOCK_N)
    elements = pixels * WIDTH

    total = tl.zeros((BLOCK_N, BLOCK_W), ACC)
    for step in range(STEPS):
        start = step * BLOCK_N
        m_i = (start + i < chunks)[:, None] & (o_w < WIDTH)[None, :]
        o_partial = (sample * chunks + start + i)[:, None] * C + group * WIDTH + o_w[None, :]
        count = tl.minimum(pixels - (start + i) * CHUNK, CHUNK).to(ACC)[:, None]
        total += tl.where(m_i, count * tl.load(partial_mean_ptr + o_partial, mask=m_i, other=0.0), 0.0)
    mean = tl.sum(tl.sum(total, axis=1), axis=0) / elements

    squares = tl.zeros((BLOCK_N, BLOCK_W), ACC)
    for step in range(STEPS):
        start = step * BLOCK_N
        m_i = (start + i < chunks)[:, None] & (o_w < WIDTH)[None, :]
        o_partial = (sample * chunks + start + i)[:, None] * C + group * WIDTH + o_w[None, :]
        count = tl.minimum(pixels - (start + i) * CHUNK, CHUNK).to(ACC)[:, None]
        delta = tl.load(partial_mean_ptr + o_partial, mask=m_i, other=0.0) - mean
        m_2 = tl.load(partial_m_2_ptr + o_partial, mask=m_i, other=0.0)
        squares += tl.where(m_i, m_2 + count * delta * delta, 0.0)
    variance = tl.sum(tl.sum(squares, axis=1), axis=0) / elements

    groups: tl.constexpr = C // WIDTH
    tl.store(mean_ptr + sample * groups + group, mean)
    tl.store(rstd_ptr + sample * groups + group, 1.0 / tl.sqrt(variance + EPS))


@triton.jit
def _adagn_apply_kernel(
    x_ptr,  # (B, pixels, C)
    weight_ptr,  # (C,) gamma
    bias_ptr,  # (C,) beta
    time_ptr,  # (B, 2 C), read where HAS_TIME
    z_ptr,  # (B, 2 C), read where HAS_Z
    mean_ptr,  # (B, G) ACC
    rstd_ptr,
    y_ptr,  # (B, pixels, C)
    pixels,
    chunks,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_TIME: tl.constexpr,
    HAS_Z: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILES: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    """y = SiLU(gain x^ + offset)."""
    # Backwards: what the statistics read last is still in the cache.
    sample, chunk, c = _place(tl.num_programs(0) - 1 - tl.program_id(0), chunks, C, BLOCK_C)
    m_c = c < C
    gain, offset = _affine(weight_ptr, bias_ptr, time_ptr, z_ptr, sample, c, m_c, C, HAS_TIME, HAS_Z, ACC)
    mean = _of_group(mean_ptr, sample, c, m_c, C, WIDTH)[None, :]
    slope = (_of_group(rstd_ptr, sample, c, m_c, C, WIDTH) * gain)[None, :]
    x_ptr += sample * pixels * C
    y_ptr += sample * pixels * C
    for tile in tl.range(0, TILES, num_stages=STAGES):
        p = (chunk * TILES + tile) * BLOCK_P + tl.arange(0, BLOCK_P)
        m_pc = (p < pixels)[:, None] & m_c[None, :]
        o_pc = p[:, None] * C + c[None, :]
        x = tl.load(x_ptr + o_pc, mask=m_pc, other=0.0).to(ACC)
        h = (x - mean) * slope + offset[None, :]
        tl.store(y_ptr + o_pc, (h / (1.0 + tl.exp(-h))).to(y_ptr.dtype.element_ty), mask=m_pc)


@triton.jit
def _slope_of_silu(h):
    """d SiLU(h) / dh."""
    sigmoid = 1.0 / (1.0 + tl.exp(-h))
    return sigmoid * (1.0 + h * (1.0 - sigmoid))


@triton.jit
def _adagn_sums_kernel(
    dy_ptr,  # (B, pixels, C)
    x_ptr,
    weight_ptr,
    bias_ptr,
    time_ptr,
    z_ptr,
    mean_ptr,
    rstd_ptr,
    s_1_ptr,  # (B, chunks, C) ACC
    s_2_ptr,
    pixels,
    chunks,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_TIME: tl.constexpr,
    HAS_Z: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILES: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    """S_1 = sum dh and S_2 = sum dh x^ of each channel over a chunk, where dh = dy SiLU'(h)."""
    sample, chunk, c = _place(tl.program_id(0), chunks, C, BLOCK_C)
    m_c = c < C
    gain, offset = _affine(weight_ptr, bias_ptr, time_ptr, z_ptr, sample, c, m_c, C, HAS_TIME, HAS_Z, ACC)
    mean = _of_group(mean_ptr, sample, c, m_c, C, WIDTH)[None, :]
    rstd = _of_group(rstd_ptr, sample, c, m_c, C, WIDTH)
    slope = (rstd * gain)[None, :]
    s_1, s_2 = tl.zeros((BLOCK_P, BLOCK_C), ACC), tl.zeros((BLOCK_P, BLOCK_C), ACC)
    dy_ptr += sample * pixels * C
    x_ptr += sample * pixels * C
    for tile in tl.range(0, TILES, num_stages=STAGES):
        p = (chunk * TILES + tile) * BLOCK_P + tl.arange(0, BLOCK_P)
        m_pc = (p < pixels)[:, None] & m_c[None, :]
        o_pc = p[:, None] * C + c[None, :]
        deviation = tl.load(x_ptr + o_pc, mask=m_pc, other=0.0).to(ACC) - mean
        dy = tl.load(dy_ptr + o_pc, mask=m_pc, other=0.0).to(ACC)
        dh = dy * _slope_of_silu(deviation * slope + offset[None, :])  # 0 past the end, as dy is
        s_1 += dh
        s_2 += dh * deviation
    o_partial = (sample * chunks + chunk) * C + c
    tl.store(s_1_ptr + o_partial, tl.sum(s_1, axis=0), mask=m_c)
    tl.store(s_2_ptr + o_partial, tl.sum(s_2, axis=0) * rstd, mask=m_c)


@triton.jit
def _adagn_reduce_kernel(
    s_1_ptr,  # (B, chunks, C) ACC
    s_2_ptr,
    weight_ptr,
    bias_ptr,
    time_ptr,
    z_ptr,
    dweight_ptr,  # (B, C) ACC, summed over the batch by the caller
    dbias_ptr,
    dtime_ptr,  # (B, 2 C), written where HAS_TIME
    dz_ptr,  # (B, 2 C), written where HAS_Z
    mean_1_ptr,  # (B, G) ACC, means over the group of gain dh and gain dh x^
    mean_2_ptr,
    pixels,
    chunks,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_TIME: tl.constexpr,
    HAS_Z: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ACC: tl.constexpr,
):
    """Second stage of the backward pass, one program a (sample, group): all gradients but that of x."""
    sample = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    o_w = tl.arange(0, BLOCK_W)
    i = tl.arange(0, BLOCK_N)
    m_c = o_w < WIDTH
    c = group * WIDTH + o_w
    s_1, s_2 = tl.zeros((BLOCK_N, BLOCK_W), ACC), tl.zeros((BLOCK_N, BLOCK_W), ACC)
    for step in range(STEPS):
        start = step * BLOCK_N
        m_i = (start + i < chunks)[:, None] & m_c[None, :]
        o_partial = (sample * chunks + start + i)[:, None] * C + c[None, :]
        s_1 += tl.load(s_1_ptr + o_partial, mask=m_i, other=0.0)
        s_2 += tl.load(s_2_ptr + o_partial, mask=m_i, other=0.0)
    s_1, s_2 = tl.sum(s_1, axis=0), tl.sum(s_2, axis=0)

    weight = tl.load(weight_ptr + c, mask=m_c, other=0.0).to(ACC)
    bias = tl.load(bias_ptr + c, mask=m_c, other=0.0).to(ACC)
    scale_t, shift_t = _modulation(time_ptr, sample, c, m_c, C, HAS_TIME, ACC)
    scale_z, shift_z = _modulation(z_ptr, sample, c, m_c, C, HAS_Z, ACC)
    dn_1, dn_2 = scale_t * scale_z * s_1, scale_t * scale_z * s_2
    tl.store(dbias_ptr + sample * C + c, dn_1, mask=m_c)
    tl.store(dweight_ptr + sample * C + c, dn_2, mask=m_c)
    if HAS_TIME:
        dtype: tl.constexpr = dtime_ptr.dtype.element_ty
        o_pair = sample * 2 * C + c
        tl.store(dtime_ptr + o_pair, (scale_z * (weight * s_2 + bias * s_1)).to(dtype), mask=m_c)
        tl.store(dtime_ptr + o_pair + C, (scale_z * s_1).to(dtype), mask=m_c)
    if HAS_Z:
        dtype_z: tl.constexpr = dz_ptr.dtype.element_ty
        o_pair_z = sample * 2 * C + c
        inner = weight * scale_t * s_2 + (bias * scale_t + shift_t) * s_1
        tl.store(dz_ptr + o_pair_z, inner.to(dtype_z), mask=m_c)
        tl.store(dz_ptr + o_pair_z + C, s_1.to(dtype_z), mask=m_c)
    elements = pixels * WIDTH
    o_group = sample * (C // WIDTH) + group
    tl.store(mean_1_ptr + o_group, tl.sum(weight * dn_1, axis=0) / elements)
    tl.store(mean_2_ptr + o_group, tl.sum(weight * dn_2, axis=0) / elements)


@triton.jit
def _adagn_dx_kernel(
    dy_ptr,  # (B, pixels, C)
    x_ptr,
    weight_ptr,
    bias_ptr,
    time_ptr,
    z_ptr,
    mean_ptr,  # (B, G) ACC
    rstd_ptr,
    mean_1_ptr,
    mean_2_ptr,
    dsum_ptr,  # (B, pixels, C), read where HAS_DSUM: the gradient that came to x from elsewhere
    dx_ptr,  # (B, pixels, C)
    pixels,
    chunks,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_TIME: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_DSUM: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILES: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    """dx = rstd (gain dh - mean(gain dh) - x^ mean(gain dh x^)) + dsum, the means over the group."""
    # Backwards, as above.
    sample, chunk, c = _place(tl.num_programs(0) - 1 - tl.program_id(0), chunks, C, BLOCK_C)
    m_c = c < C
    gain, offset = _affine(weight_ptr, bias_ptr, time_ptr, z_ptr, sample, c, m_c, C, HAS_TIME, HAS_Z, ACC)
    mean = _of_group(mean_ptr, sample, c, m_c, C, WIDTH)[None, :]
    rstd = _of_group(rstd_ptr, sample, c, m_c, C, WIDTH)[None, :]
    common = rstd * _of_group(mean_1_ptr, sample, c, m_c, C, WIDTH)[None, :]
    along = rstd * rstd * _of_group(mean_2_ptr, sample, c, m_c, C, WIDTH)[None, :]
    slope = rstd * gain[None, :]
    dy_ptr += sample * pixels * C
    x_ptr += sample * pixels * C
    dsum_ptr += sample * pixels * C
    dx_ptr += sample * pixels * C
    for tile in tl.range(0, TILES, num_stages=STAGES):
        p = (chunk * TILES + tile) * BLOCK_P + tl.arange(0, BLOCK_P)
        m_pc = (p < pixels)[:, None] & m_c[None, :]
        o_pc = p[:, None] * C + c[None, :]
        deviation = tl.load(x_ptr + o_pc, mask=m_pc, other=0.0).to(ACC) - mean
        dy = tl.load(dy_ptr + o_pc, mask=m_pc, other=0.0).to(ACC)
        dx = dy * _slope_of_silu(deviation * slope + offset[None, :]) * slope - common - deviation * along
        if HAS_DSUM:
            dx += tl.load(dsum_ptr + o_pc, mask=m_pc, other=0.0).to(ACC)
        tl.store(dx_ptr + o_pc, dx.to(dx_ptr.dtype.element_ty), mask=m_pc)
