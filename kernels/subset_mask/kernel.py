"""The subset mask; see ``op.py``. Forward and backward are one kernel with another rule."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _subset_mask_kernel(
    z_ptr,  # (B, d)
    k_ptr,  # (B,) int64 in 1..n
    subset_of_ptr,  # (d,) int64 in 1..n
    out_ptr,  # (B, d), dtype of z
    dim,
    blocks,  # programs of a row, ceil(d / BLOCK)
    OWN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = z where subset_of == k (OWN) or subset_of <= k, else 0: selected, so that NaN stays behind."""
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    o_d = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    m_d = o_d < dim
    k = tl.load(k_ptr + row)
    subset = tl.load(subset_of_ptr + o_d, mask=m_d, other=0)
    if OWN:
        kept = subset == k
    else:
        kept = subset <= k
    z = tl.load(z_ptr + row * dim + o_d, mask=m_d, other=0.0)
    tl.store(out_ptr + row * dim + o_d, tl.where(kept, z, 0.0), mask=m_d)
