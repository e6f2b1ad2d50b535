"""Blocks shared by the frozen U-Net and the trainable decoder; parameter names follow guided diffusion, so
its files load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsiam.convolution import Conv2d
from diffsiam.upsampling import upsample, upsample_convolve
from kernels.adagn_silu.op import adagn_silu, add_adagn_silu
from kernels.adagn_silu.op import group_norm as group_norm_alone

M = TypeVar("M", bound=nn.Module)
Norm = Callable[[int], nn.GroupNorm]  # channels -> their norm


def group_count(channels: int) -> int:
    """Groups of a GroupNorm: 32 as in every published model, groups of 4 channels where 32 does not fit
    (small models).
    """
    return 32 if channels >= 64 and channels % 32 == 0 else max(1, channels // 4)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with :func:`group_count` groups."""
    return nn.GroupNorm(group_count(channels), channels)


class Sum(NamedTuple):
    """x + residual, (B, C, H, W) each, left to the next group norm, which adds them in the pass that takes
    its statistics (:func:`kernels.adagn_silu.op.add_adagn_silu`).
    """

    x: Tensor
    residual: Tensor
    added: list[Tensor]  # the sum, once it is there

    @property
    def shape(self) -> torch.Size:
        return self.x.shape


def whole(x: Tensor | Sum) -> Tensor:
    """The image itself, added here if no group norm has."""
    if not isinstance(x, Sum):
        return x
    if not x.added:
        x.added.append(x.x + x.residual)
    return x.added[0]


def norm_silu(
    x: Tensor | Sum, norm: Tensor | nn.Module, time: Tensor | None = None, z: Tensor | None = None
) -> Tensor:
    """SiLU of a group norm and its modulations, in one operation (:mod:`kernels.adagn_silu.op`) that also
    adds what is still to be added.
    """
    assert isinstance(norm, nn.GroupNorm)
    affine = (norm.num_groups, norm.weight, norm.bias, time, z, norm.eps)
    if not isinstance(x, Sum) or x.added:
        return adagn_silu(whole(x), *affine)
    y, total = add_adagn_silu(x.x, x.residual, *affine)
    x.added.append(total)
    return y


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    """A group norm alone (:func:`kernels.adagn_silu.op.group_norm`)."""
    assert isinstance(norm, nn.GroupNorm)
    return group_norm_alone(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def zeroed(module: M) -> M:
    """The module with all parameters set to 0: a residual branch that starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def timestep_embedding(t: Tensor, channels: int, shift: int = 0, sines_first: bool = False) -> Tensor:
    """Sinusoids of the integer time t (B,), (B, channels) float32: [cos, sin] of t exp(-ln(10000) i / (half -
    shift)), i = 0 .. half - 1.

    Guided diffusion has shift 0 and cosines first; DDPM's own code has shift 1 and sines first.
    """
    half = channels // 2
    rate = -math.log(10000) / (half - shift)
    frequency = torch.exp(rate * torch.arange(half, dtype=torch.float32, device=t.device))
    angle = t[:, None].float() * frequency
    return torch.cat((angle.sin(), angle.cos()) if sines_first else (angle.cos(), angle.sin()), dim=1)


class Projected(NamedTuple):
    """An embedding of which every residual block's projection was computed beforehand.

    A sampler knows all its times, and all its z: one product for all of them takes the place of one per step.
    """

    tables: Mapping[nn.Module, Tensor]  # ``emb_layers`` or ``emb_z_layers`` of a block -> (rows, 2 C)
    row: Tensor  # (B,) int64, the row of each image


Embedding = Tensor | Projected


def projections(module: nn.Module, layers: str, rows: Tensor) -> dict[nn.Module, Tensor]:
    """Tables of :class:`Projected`: what each block's ``layers`` make of embeddings ``rows`` (rows, E)."""
    blocks = (block for block in module.modules() if isinstance(block, ResBlock))
    found = [getattr(block, layers) for block in blocks if hasattr(block, layers)]
    return {project: project(rows) for project in found}


def _project(layers: nn.Module, embedding: Embedding) -> Tensor:
    if isinstance(embedding, Projected):
        return embedding.tables[layers][embedding.row]
    return layers(embedding)


class ResBlock(nn.Module):
    """x -> skip(x) + conv(dropout(SiLU(AdaGN(conv(resample(SiLU(GN(x)))), time, z)))), the last conv zero-
    initialised.

    Args:
        c_in, c_out: channels.
        embedding: channels of the time (and z) embedding.
        dropout: probability before the last conv.
        resample: None, "down" (2x2 mean) or "up" (nearest), applied to both branches.
        conditioned: the block also takes a z embedding, as (1 + s_z) h + b_z after the time modulation
            (PDAE's shift block).
        additive: time is added before the second norm (DDPM) instead of scaling and shifting after it.
        norm: makes the two group norms.

    Attributes:
        defers: whether the block returns a :class:`Sum` (:func:`diffsiam.unet.defer_sums`).
    """

    defers = False

    def __init__(
        self,
        c_in: int,
        c_out: int,
        embedding: int,
        dropout: float = 0.0,
        resample: str | None = None,
        conditioned: bool = False,
        additive: bool = False,
        norm: Norm = group_norm,
    ):
        super().__init__()
        self.resample, self.additive = resample, additive
        self.in_layers = nn.Sequential(norm(c_in), nn.SiLU(), Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, c_out if additive else 2 * c_out))
        if conditioned:
            self.emb_z_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * c_out))
        self.out_layers = nn.Sequential(
            norm(c_out), nn.SiLU(), nn.Dropout(dropout), zeroed(Conv2d(c_out, c_out, 3, padding=1))
        )
        self.skip_connection = nn.Identity() if c_in == c_out else Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor | Sum, time: Embedding, z: Embedding | None = None) -> Tensor | Sum:
        """x (B, c_in, H, W), embeddings (B, embedding); returns (B, c_out, H', W')."""
        h, x = norm_silu(x, self.in_layers[0]), whole(x)
        if self.resample == "up":
            h, x = upsample_convolve(h, self.in_layers[2]), upsample(x)
        else:
            if self.resample == "down":
                h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
            h = self.in_layers[2](h)
        modulation: Tensor | None = _project(self.emb_layers, time)
        modulation_z = None if z is None else _project(self.emb_z_layers, z)
        if self.additive:
            assert modulation is not None
            h, modulation = h + modulation[:, :, None, None], None
        h = norm_silu(h, self.out_layers[0], modulation, modulation_z)
        h = self.out_layers[3](self.out_layers[2](h))
        skip = self.skip_connection(x)
        return Sum(skip, h, []) if self.defers else skip + h


class ConvDown(nn.Module):
    """Half the size by a 3x3 convolution of stride 2 (``UNetConfig.resampling`` "conv").

    Args:
        channels: in and out.
        padding: 1 on all sides, or 0: one row below and one column to the right only, as DDPM's own code.
    """

    def __init__(self, channels: int, padding: int = 1):
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x if self.op.padding[0] else F.pad(x, (0, 1, 0, 1)))


class ConvUp(nn.Module):
    """Twice the size: nearest neighbour, then a 3x3 convolution (``UNetConfig.resampling`` "conv")."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return upsample_convolve(x, self.conv)


class Stage(nn.Sequential):
    """A sequence whose residual blocks also receive the embeddings."""

    def forward(  # type: ignore[override]
        self, x: Tensor | Sum, time: Embedding, z: Embedding | None = None
    ) -> Tensor | Sum:
        """The last layer's output: a sum where that is a residual block which defers it."""
        for layer in self:
            x = layer(x, time, z) if isinstance(layer, ResBlock) else layer(x)
        return x
