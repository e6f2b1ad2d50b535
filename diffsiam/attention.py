"""Self-attention over the pixels of a feature map, and the choice of the routine that computes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsiam.layers import Norm, group_norm, zeroed

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v (B, heads, tokens, channels) -> same


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(c)) v by torch's scaled_dot_product_attention (flash or cuDNN on CUDA, math on
    CPU).
    """
    return F.scaled_dot_product_attention(q, k, v)


def attend_xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by xformers' memory-efficient attention, whose layout is (B, tokens, heads, channels)."""
    from xformers.ops import memory_efficient_attention

    swapped = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    return memory_efficient_attention(*swapped).transpose(1, 2)


def choose_attention(device: torch.device, dtype: torch.dtype) -> tuple[Attend, str]:
    """xformers on CUDA where a trial call works there, torch's SDPA otherwise; returns the routine and the
    reason.
    """
    if device.type != "cuda":
        return attend_sdpa, f"torch SDPA (xformers has no {device.type} operator)"
    try:
        trial = torch.randn(1, 1, 64, 64, device=device, dtype=dtype)
        attend_xformers(trial, trial, trial)
    except Exception as error:  # whatever an optional wheel raises is a reason to print, not to stop
        return attend_sdpa, f"torch SDPA (xformers does not work here: {str(error).splitlines()[0][:80]})"
    return attend_xformers, "xformers"


def set_attention(model: nn.Module, attend: Attend) -> None:
    """Let every attention block of ``model`` use ``attend``."""
    for module in model.modules():
        if isinstance(module, AttentionBlock):
            module.attend = attend


class AttentionBlock(nn.Module):
    """x + proj(attention(qkv(GN(x)))), with zero-initialised projection (guided diffusion).

    Args:
        channels: C.
        heads: number of heads, divides C.
        new_order: channel order of ``qkv``: False = [q, k, v] within each head, True = heads within each of
            q, k, v. One head: the same.
        norm: makes the group norm.
    """

    def __init__(self, channels: int, heads: int = 1, new_order: bool = False, norm: Norm = group_norm):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))
        self.attend: Attend = attend_sdpa

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x).flatten(2))  # (B, 3 C, tokens)
        lead = (3, self.heads) if self.new_order else (self.heads, 3)
        qkv = qkv.view(batch, *lead, channels // self.heads, height * width)
        q, k, v = (part.transpose(-1, -2) for part in qkv.unbind(1 if self.new_order else 2))
        h = self.attend(q, k, v).transpose(-1, -2).reshape(batch, channels, height * width)
        return x + self.proj_out(h).view(batch, channels, height, width)


def head_count(channels: int, heads: int, head_channels: int) -> int:
    """Number of heads: ``heads`` unless ``head_channels`` > 0 fixes the width of each.

    Raises:
        ValueError: the channels do not divide evenly.
    """
    size = head_channels if head_channels > 0 else heads
    if channels % size:
        raise ValueError(f"{channels} channels do not divide into heads: {size} does not fit")
    return channels // size if head_channels > 0 else heads
