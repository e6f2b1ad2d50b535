"""The tensors of diffusers' ``UNet2DModel`` under our names and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from diffsiam.attention import head_count
from diffsiam.unet import UNetConfig
from diffsiam.weights.errors import WeightsError

BLOCK = {  # ours -> theirs, in a residual block
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
# Before diffusers 0.13 attention had other names, which published files still have.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def modern(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Attention under today's names, as matrices."""
    renamed = {}
    for key, value in state.items():
        layer, _, leaf = key.rpartition(".")
        outer, _, last = layer.rpartition(".")
        if ".attentions." in f".{outer}." and last in OLD_ATTENTION:
            layer = f"{outer}.{OLD_ATTENTION[last]}"
            value = value.flatten(1) if leaf == "weight" else value
        renamed[f"{layer}.{leaf}"] = value
    return renamed


def layers(config: UNetConfig) -> Iterator[tuple[str, str, str]]:
    """(kind, our prefix, their prefix) of every layer with tensors; kinds: plain, block, attention."""
    yield "plain", "time_embed.0", "time_embedding.linear_1"
    yield "plain", "time_embed.2", "time_embedding.linear_2"
    yield "plain", "input_blocks.0.0", "conv_in"
    levels, place = len(config.channel_mult), 1
    for level in range(levels):
        theirs = f"down_blocks.{level}"
        for i in range(config.blocks):
            yield from _stage(config, level, f"input_blocks.{place}", theirs, i)
            place += 1
        if level + 1 < levels:
            yield _resampler(config, f"input_blocks.{place}.0", f"{theirs}.downsamplers.0", "op")
            place += 1
    for i in (0, 2):
        yield "block", f"middle_block.{i}", f"mid_block.resnets.{i // 2}"
    yield "attention", "middle_block.1", "mid_block.attentions.0"
    for up, level in enumerate(reversed(range(levels))):
        theirs = f"up_blocks.{up}"
        for i in range(config.blocks + 1):
            ours = f"output_blocks.{up * (config.blocks + 1) + i}"
            yield from _stage(config, level, ours, theirs, i)
        if level:
            last = 2 if 2**level in config.attention else 1
            yield _resampler(config, f"{ours}.{last}", f"{theirs}.upsamplers.0", "conv")
    yield "plain", "out.0", "conv_norm_out"
    yield "plain", "out.2", "conv_out"


def _stage(config: UNetConfig, level: int, ours: str, theirs: str, i: int) -> Iterator[tuple[str, str, str]]:
    yield "block", f"{ours}.0", f"{theirs}.resnets.{i}"
    if 2**level in config.attention:
        yield "attention", f"{ours}.1", f"{theirs}.attentions.{i}"


def _resampler(config: UNetConfig, ours: str, theirs: str, convolution: str) -> tuple[str, str, str]:
    if config.resampling == "block":
        return "block", ours, theirs
    return "plain", f"{ours}.{convolution}", f"{theirs}.conv"


def names(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """(ours, theirs) of every layer but the q, k, v of attention."""
    for kind, ours, theirs in layers(config):
        if kind == "plain":
            yield ours, theirs
        elif kind == "block":
            yield from ((f"{ours}.{a}", f"{theirs}.{b}") for a, b in BLOCK.items())
        else:
            yield from ((f"{ours}.norm", f"{theirs}.group_norm"), (f"{ours}.proj_out", f"{theirs}.to_out.0"))


def from_diffusers(state: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Under our names; keys without a counterpart keep theirs, so that a comparison names them."""
    rest, result = dict(state), {}
    for ours, theirs in names(config):
        for leaf in ("weight", "bias"):
            if (value := rest.pop(f"{theirs}.{leaf}", None)) is not None:
                is_matrix = leaf == "weight" and ours.endswith("proj_out")
                result[f"{ours}.{leaf}"] = value[:, :, None] if is_matrix else value
    for kind, ours, theirs in layers(config):
        if kind == "attention":
            for leaf in ("weight", "bias"):
                found = [rest.pop(f"{theirs}.{name}.{leaf}", None) for name in ("to_q", "to_k", "to_v")]
                if any(value is None for value in found):
                    raise WeightsError(f"key {theirs}.to_q.{leaf} or its k or v is missing")
                joined = torch.cat([value for value in found if value is not None])
                result[f"{ours}.qkv.{leaf}"] = joined[:, :, None] if leaf == "weight" else joined
    return result | rest


def to_diffusers(state: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """The inverse of :func:`from_diffusers`."""
    result = {}
    for ours, theirs in names(config):
        for leaf in ("weight", "bias"):
            if (value := state.get(f"{ours}.{leaf}")) is not None:
                is_matrix = leaf == "weight" and ours.endswith("proj_out")
                result[f"{theirs}.{leaf}"] = value.flatten(1) if is_matrix else value
    for kind, ours, theirs in layers(config):
        if kind == "attention":
            for leaf in ("weight", "bias"):
                for name, value in zip(
                    ("to_q", "to_k", "to_v"), _qkv(state[f"{ours}.qkv.{leaf}"], config), strict=True
                ):
                    result[f"{theirs}.{name}.{leaf}"] = value
    return {key: value.contiguous() for key, value in result.items()}


def _qkv(joined: Tensor, config: UNetConfig) -> tuple[Tensor, ...]:
    """q, k and v of all heads, from either channel order."""
    channels = joined.shape[0] // 3
    if config.new_attention_order:
        return joined.flatten(1).chunk(3) if joined.dim() > 1 else joined.chunk(3)
    heads = head_count(channels, config.heads, config.head_channels)
    split = joined.reshape(heads, 3, channels // heads, *joined.shape[1:2])
    return tuple(part.flatten(0, 1) for part in split.unbind(1))
