"""The frozen diffusion U-Net u_theta (guided diffusion's architecture), as two halves: an encoder shared by
both decoders, and its own decoder.

Parameter names and shapes are those of guided-diffusion, DiffAE and PDAE checkpoints. DDPM's own architecture
(arXiv 2006.11239; ``UNet2DModel`` of diffusers), which adds the time and resamples by convolutions, is the
same class under other switches of :class:`UNetConfig`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffsiam.attention import AttentionBlock, head_count
from diffsiam.layers import (
    ConvDown,
    ConvUp,
    Embedding,
    Norm,
    ResBlock,
    Stage,
    Sum,
    group_count,
    group_norm,
    norm_silu,
    timestep_embedding,
    whole,
    zeroed,
)


@dataclass(frozen=True)
class UNetConfig:
    """Architecture of a U-Net.

    Attributes:
        base_channels: channels b of the first level; the embedding has ``embedding`` or 4 b channels.
        channel_mult: channels of each level as multiples of b; level i works at px / 2^i.
        blocks: residual blocks per level (one more on the way up).
        attention: downsampling factors (not pixel sizes) at which attention is used.
        heads, head_channels: attention heads; ``head_channels`` > 0 overrides ``heads``.
        new_attention_order: layout of ``qkv`` with several heads, see
            :class:`~diffsiam.attention.AttentionBlock`.
        dropout: in residual blocks, active while pretraining.
        learn_sigma: six output channels, of which the first three are eps.
        embedding: channels of the time embedding; None: 4 b.
        time: "scale_shift" (guided diffusion) or "add": how a residual block takes the time embedding.
        resampling: "block" (residual blocks resample, guided diffusion) or "conv" (convolutions do).
        padding: of the downsampling convolutions, see :class:`~diffsiam.layers.ConvDown`.
        groups: of every group norm; None: the rule of :func:`~diffsiam.layers.group_count`.
        eps: of every group norm.
        frequency_shift, sines_first: of :func:`~diffsiam.layers.timestep_embedding`.

    Raises:
        ValueError: a switch has another value.
    """

    base_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 3, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (8,)
    heads: int = 1
    head_channels: int = -1
    new_attention_order: bool = False
    dropout: float = 0.0
    learn_sigma: bool = False
    embedding: int | None = None
    time: str = "scale_shift"
    resampling: str = "block"
    padding: int = 1
    groups: int | None = None
    eps: float = 1e-5
    frequency_shift: int = 0
    sines_first: bool = False

    def __post_init__(self) -> None:
        for name, choices in (
            ("time", ("scale_shift", "add")),
            ("resampling", ("block", "conv")),
            ("padding", (0, 1)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} = {getattr(self, name)!r} is none of {choices}")

    @property
    def embedding_channels(self) -> int:
        return self.embedding or 4 * self.base_channels

    def widths(self) -> list[int]:
        return [self.base_channels * m for m in self.channel_mult]

    def attentions(self, px: int) -> list[tuple[int, int, int]]:
        """(heads, tokens, channels of a head) of every attention block for images of ``px``, encoder first,
        of one decoder.
        """
        found, widths = [], self.widths()

        def add(level: int, count: int) -> None:
            heads = head_count(widths[level], self.heads, self.head_channels)
            found.extend([(heads, (px >> level) ** 2, widths[level] // heads)] * count)

        attended = [level for level in range(len(widths)) if 2**level in self.attention]
        for level in attended:
            add(level, self.blocks)
        add(len(widths) - 1, 1)  # between encoder and decoder
        for level in reversed(attended):
            add(level, self.blocks + 1)
        return found

    def norm(self, channels: int) -> nn.GroupNorm:
        """The group norm of a feature map."""
        return nn.GroupNorm(self.groups or group_count(channels), channels, self.eps)

    def attention_block(self, channels: int) -> AttentionBlock:
        heads = head_count(channels, self.heads, self.head_channels)
        return AttentionBlock(channels, heads, self.new_attention_order, self.norm)

    def residual_block(
        self, c_in: int, c_out: int, dropout: float, resample: str | None = None, conditioned: bool = False
    ) -> ResBlock:
        additive = self.time == "add"
        return ResBlock(
            c_in, c_out, self.embedding_channels, dropout, resample, conditioned, additive, self.norm
        )

    def downsampling(self, channels: int, dropout: float) -> nn.Module:
        if self.resampling == "conv":
            return ConvDown(channels, self.padding)
        return self.residual_block(channels, channels, dropout, "down")

    def upsampling(self, channels: int, dropout: float, conditioned: bool = False) -> nn.Module:
        if self.resampling == "conv":
            return ConvUp(channels)
        return self.residual_block(channels, channels, dropout, "up", conditioned)


class Features(NamedTuple):
    """What the frozen encoder hands to both decoders."""

    skips: list[Tensor]  # outputs of all input blocks, finest first
    time: Embedding  # (B, 4 b) time embedding


def middle_blocks(config: UNetConfig, dropout: float, conditioned: bool = False) -> Stage:
    """ResBlock, attention, ResBlock at the coarsest level."""
    width = config.widths()[-1]
    return Stage(
        config.residual_block(width, width, dropout, conditioned=conditioned),
        config.attention_block(width),
        config.residual_block(width, width, dropout, conditioned=conditioned),
    )


def output_blocks(config: UNetConfig, dropout: float, conditioned: bool = False) -> nn.ModuleList:
    """The way up: at each level ``blocks`` + 1 residual blocks on [h, skip], attention where asked,
    upsampling after the last.
    """
    widths = config.widths()
    skips = [widths[0]]
    for level, width in enumerate(widths):
        skips += [width] * config.blocks + ([width] if level + 1 < len(widths) else [])
    blocks, channels = nn.ModuleList(), widths[-1]
    for level in reversed(range(len(widths))):
        for i in range(config.blocks + 1):
            c_in, channels = channels + skips.pop(), widths[level]
            stage: list[nn.Module] = [config.residual_block(c_in, channels, dropout, conditioned=conditioned)]
            if 2**level in config.attention:
                stage.append(config.attention_block(channels))
            if level and i == config.blocks:
                stage.append(config.upsampling(channels, dropout, conditioned))
            blocks.append(Stage(*stage))
    for finished in blocks:
        defer_sums(finished.children())
    return blocks


def defer_sums(layers: Iterable[nn.Module]) -> None:
    """Let every residual block leave its sum to the group norm and SiLU with which the next of ``layers``
    begins.

    That is the case between the blocks of the encoder, between a block and the upsampling behind it, and
    before the head. Elsewhere the sum has to be there: a concatenation with a skip is normalised as a whole,
    the norm of attention has no SiLU, a convolution has no norm, and the encoder's last sum goes to two
    decoders. Attention adds its own sum, as its two halves lie differently in memory.
    """
    for layer, follower in pairwise(layers):
        if isinstance(layer, ResBlock):
            layer.defers = isinstance(follower, ResBlock | OutputHead)


class OutputHead(nn.Sequential):
    """GroupNorm and SiLU (in one operation), then a zero-initialised 3x3 conv."""

    def __init__(self, channels: int, out_channels: int, norm: Norm = group_norm):
        super().__init__(norm(channels), nn.SiLU(), zeroed(nn.Conv2d(channels, out_channels, 3, padding=1)))

    def forward(self, x: Tensor | Sum) -> Tensor:  # type: ignore[override]
        norm, _, conv = self
        return conv(norm_silu(x, norm))


def run_output_blocks(
    blocks: nn.ModuleList, h: Tensor | Sum, features: Features, z: Embedding | None = None
) -> Tensor | Sum:
    """Apply the way up to ``h`` with the frozen encoder's skips."""
    for block, skip in zip(blocks, reversed(features.skips), strict=True):
        h = block(torch.cat((whole(h), skip), dim=1), features.time, z)
    return h


class UNet(nn.Module):
    """eps_theta(x_t, t). ``encode`` and ``decode`` are its halves; ``forward`` is both."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths, embedding = config.widths(), config.embedding_channels
        self.time_embed = nn.Sequential(
            nn.Linear(config.base_channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(3, widths[0], 3, padding=1))])
        channels = widths[0]
        for level, width in enumerate(widths):
            for _ in range(config.blocks):
                stage: list[nn.Module] = [config.residual_block(channels, width, config.dropout)]
                channels = width
                if 2**level in config.attention:
                    stage.append(config.attention_block(channels))
                self.input_blocks.append(Stage(*stage))
            if level + 1 < len(widths):
                self.input_blocks.append(Stage(config.downsampling(channels, config.dropout)))
        defer_sums(layer for stage in self.input_blocks for layer in stage.children())
        self.middle_block = middle_blocks(config, config.dropout)
        self.output_blocks = output_blocks(config, config.dropout)
        self.out = OutputHead(widths[0], 6 if config.learn_sigma else 3, config.norm)
        defer_sums((*self.output_blocks[-1].children(), self.out))

    def encode(self, x: Tensor, t: Tensor) -> Features:
        """x (B, 3, H, W) in noised [-1, 1] units and integer times (B,) -> skips of every input block and the
        time embedding.
        """
        return self.encode_embedded(x, self.embed(t))

    def embed(self, t: Tensor) -> Tensor:
        """Integer times (B,) -> their embedding (B, 4 b)."""
        c = self.config
        sinusoids = timestep_embedding(t, c.base_channels, c.frequency_shift, c.sines_first)
        return self.time_embed(sinusoids.to(next(self.time_embed.parameters()).dtype))

    def encode_embedded(self, x: Tensor, time: Embedding) -> Features:
        """:meth:`encode` with the times' embedding already there."""
        h: Tensor | Sum = x.to(next(self.time_embed.parameters()).dtype)
        outputs = []
        for block in self.input_blocks:
            h = block(h, time)
            outputs.append(h)
        return Features([whole(h) for h in outputs], time)

    def decode(self, features: Features) -> Tensor:
        """eps (B, 3, H, W) from the encoder's features; the variance channels of a learn_sigma model are
        dropped.
        """
        h = self.middle_block(features.skips[-1], features.time)
        return self.out(run_output_blocks(self.output_blocks, h, features))[:, :3]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.decode(self.encode(x, t))
