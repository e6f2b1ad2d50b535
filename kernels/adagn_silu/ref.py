"""Adaptive group normalisation and SiLU: y = SiLU((1 + s_z) ((1 + s) GN(x) + b) + b_z), the block between any
two convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def adagn_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    time: Tensor | None = None,
    z: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Group norm, then up to two (1 + scale) x + shift modulations, then SiLU.

    Args:
        x: (B, C, H, W).
        groups: number of groups, divides C.
        weight, bias: (C,) affine of the group norm.
        time, z: (B, 2 C), scale in the first half and shift in the second, applied in this order; None skips.

    Returns:
        (B, C, H, W).
    """
    h = F.group_norm(x, groups, weight, bias, eps)
    for modulation in (time, z):
        if modulation is not None:
            scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
    return F.silu(h)


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
    """:func:`adagn_silu` of x + residual, and the sum itself, in its own dtype (B, C, H, W): what is
    normalised is the sum as it was rounded.
    """
    total = x + residual
    return adagn_silu(total, groups, weight, bias, time, z, eps), total
