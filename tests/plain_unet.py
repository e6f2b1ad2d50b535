"""The U-Net of guided diffusion and PDAE's gradient estimator, restated as functions of a state dict.

An oracle for tests, in float64 and elementary operations: no module, no fused call, one head at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]
Heads = int | Callable[[int], int]  # their number, or a rule from the channels


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].double().T + state[f"{name}.bias"].double()


def conv(state: State, name: str, x: Tensor) -> Tensor:
    weight = state[f"{name}.weight"].double()
    return F.conv2d(x, weight, state[f"{name}.bias"].double(), padding=weight.shape[-1] // 2)


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def norm(state: State, name: str, x: Tensor) -> Tensor:
    """GroupNorm, 32 groups, or groups of 4 channels below 64 channels."""
    channels = x.shape[1]
    groups = 32 if channels >= 64 else channels // 4
    split = x.reshape(len(x), groups, -1)
    centred = split - split.mean(2, keepdim=True)
    normal = (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).view_as(x)
    weight, bias = (state[f"{name}.{part}"].double()[:, None, None] for part in ("weight", "bias"))
    return normal * weight + bias


def halve(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def res_block(
    state: State, name: str, x: Tensor, time: Tensor, z: Tensor | None = None, resample=None
) -> Tensor:
    """h = GN(conv(SiLU(GN(x)))) modulated by t, then by z; SiLU, conv, + skip."""
    h = silu(norm(state, f"{name}.in_layers.0", x))
    if resample is not None:
        h, x = resample(h), resample(x)
    h = norm(state, f"{name}.out_layers.0", conv(state, f"{name}.in_layers.2", h))
    for layers, embedding in (("emb_layers", time), ("emb_z_layers", z)):
        if embedding is not None:
            modulation = linear(state, f"{name}.{layers}.1", silu(embedding))[:, :, None, None]
            channels = h.shape[1]
            h = (1 + modulation[:, :channels]) * h + modulation[:, channels:]
    h = conv(state, f"{name}.out_layers.3", silu(h))
    skip = conv(state, f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in state else x
    return skip + h


def attention(state: State, name: str, x: Tensor, heads: Heads, new_order: bool = False) -> Tensor:
    """Self-attention, one head of one image at a time; ``new_order``: q, k, v of all heads lie together."""
    batch, channels, height, width = x.shape
    heads = heads(channels) if callable(heads) else heads
    flat = norm(state, f"{name}.norm", x).flatten(2)
    qkv = state[f"{name}.qkv.weight"].double()[:, :, 0] @ flat + state[f"{name}.qkv.bias"].double()[:, None]
    size, mixed = channels // heads, torch.empty_like(flat)
    for image in range(batch):
        for head in range(heads):
            starts = (
                [part * channels + head * size for part in range(3)]
                if new_order
                else [(3 * head + part) * size for part in range(3)]
            )
            q, k, v = (qkv[image, start : start + size] for start in starts)
            attend = torch.softmax(q.T @ k / math.sqrt(size), dim=1)
            mixed[image, head * size : (head + 1) * size] = (attend @ v.T).T
    out = (
        state[f"{name}.proj_out.weight"].double()[:, :, 0] @ mixed
        + state[f"{name}.proj_out.bias"].double()[:, None]
    )
    return x + out.view(batch, channels, height, width)


def encode(
    state: State, levels: int, blocks: int, heads: Heads, x: Tensor, t: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Outputs of all input blocks, finest first, and the time embedding."""
    half = state["time_embed.0.weight"].shape[1] // 2
    angle = t[:, None].double() * torch.exp(-math.log(10000) * torch.arange(half).double() / half)
    time = linear(state, "time_embed.0", torch.cat((angle.cos(), angle.sin()), dim=1))
    time = linear(state, "time_embed.2", silu(time))
    skips = [conv(state, "input_blocks.0.0", x.double())]
    for level in range(levels):
        for _ in range(blocks):
            name = f"input_blocks.{len(skips)}"
            h = res_block(state, f"{name}.0", skips[-1], time)
            skips.append(attention(state, f"{name}.1", h, heads) if f"{name}.1.qkv.weight" in state else h)
        if level < levels - 1:
            skips.append(res_block(state, f"input_blocks.{len(skips)}.0", skips[-1], time, resample=halve))
    return skips, time


def decode(
    state: State,
    levels: int,
    blocks: int,
    heads: Heads,
    skips: list[Tensor],
    time: Tensor,
    z: Tensor | None = None,
) -> Tensor:
    """eps_theta, or G where the embedding ``z`` of z_bar is given, from the encoder's features."""
    prefix = "" if z is None else "shift_"
    h = res_block(state, f"{prefix}middle_block.0", skips[-1], time, z)
    h = attention(state, f"{prefix}middle_block.1", h, heads)
    h = res_block(state, f"{prefix}middle_block.2", h, time, z)
    waiting = list(skips)
    for index in range(levels * (blocks + 1)):
        name = f"{prefix}output_blocks.{index}"
        h = res_block(state, f"{name}.0", torch.cat((h, waiting.pop()), dim=1), time, z)
        last = 1
        if f"{name}.1.qkv.weight" in state:
            h, last = attention(state, f"{name}.1", h, heads), 2
        if index % (blocks + 1) == blocks and index < levels * (blocks + 1) - 1:
            h = res_block(state, f"{name}.{last}", h, time, z, resample=double)
    return conv(state, f"{prefix}out.2", silu(norm(state, f"{prefix}out.0", h)))
