"""Self-attention over the pixels of a feature map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diffsiam.attention_routines import Attend, attend_sdpa
from diffsiam.layers import Norm, group_norm, normed, zeroed


def set_attention(model: nn.Module, attend: Attend) -> None:
    """Let every attention block of ``model`` use ``attend``."""
    for module in model.modules():
        if isinstance(module, AttentionBlock):
            module.attend = attend


class TokenConv(nn.Conv1d):
    """A 1x1 convolution over tokens that lie channels last. Equivalent PyTorch:
    ``nn.Conv1d(c_in, c_out, 1)(x.transpose(1, 2)).transpose(1, 2)``, whose weights' names and shapes it has.
    """

    def __init__(self, c_in: int, c_out: int):
        super().__init__(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, c_in) -> (B, tokens, c_out)."""
        return F.linear(x, self.weight[:, :, 0], self.bias)


class AttentionBlock(nn.Module):
    """x + proj(attention(qkv(GN(x)))), with zero-initialised projection (guided diffusion).

    A channels_last image is already a list of tokens, so nothing of it is transposed in memory.

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
        self.qkv = TokenConv(channels, 3 * channels)
        self.proj_out = zeroed(TokenConv(channels, channels))
        self.attend: Attend = attend_sdpa

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        lead = (3, self.heads) if self.new_order else (self.heads, 3)
        qkv = self.qkv(_tokens(normed(x, self.norm))).unflatten(-1, (*lead, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2 if self.new_order else 3))
        h = self.proj_out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return x + h.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C), a view where x is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def head_count(channels: int, heads: int, head_channels: int) -> int:
    """Number of heads: ``heads`` unless ``head_channels`` > 0 fixes the width of each.

    Raises:
        ValueError: the channels do not divide evenly.
    """
    size = head_channels if head_channels > 0 else heads
    if channels % size:
        raise ValueError(f"{channels} channels do not divide into heads: {size} does not fit")
    return channels // size if head_channels > 0 else heads
