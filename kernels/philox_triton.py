"""Philox in registers: the numbers of :mod:`kernels.philox`, drawn inside a kernel."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox_words(seed, position, quad, STREAM: tl.constexpr):
    """Four blocks of uint32: the Philox-4x32-10 output of counter (quad, position low, position high, STREAM)
    under key ``seed``.

    ``seed`` and ``position`` are int64 scalars, ``quad`` a block of int32.
    """
    zero = quad * 0
    low = zero + (position & 0xFFFFFFFF).to(tl.uint32).to(tl.int32, bitcast=True)
    high = zero + ((position >> 32) & 0xFFFFFFFF).to(tl.uint32).to(tl.int32, bitcast=True)
    return tl.philox(seed, quad, low, high, zero + STREAM)


@triton.jit
def normals(seed, position, first, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    """(BLOCK,) float32 normals of elements first .. first + BLOCK - 1, where 4 divides ``first``: four from
    each counter."""
    w_0, w_1, w_2, w_3 = philox_words(seed, position, first // 4 + tl.arange(0, BLOCK // 4), STREAM)
    n_0, n_1 = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(w_0), tl.uint_to_uniform_float(w_1))
    n_2, n_3 = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(w_2), tl.uint_to_uniform_float(w_3))
    # Joined in this order a thread's four normals are neighbours, and it stores them in one access.
    return tl.reshape(tl.join(tl.join(n_0, n_2), tl.join(n_1, n_3)), (BLOCK,))
