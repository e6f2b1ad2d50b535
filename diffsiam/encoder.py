"""Encoders f: clean image in [-1, 1] -> z (B, d).

ResNets are trained with the CIFAR stem (3x3, stride 1, no max-pool) at every resolution; published SimSiam
encoders have ImageNet's. The other encoder is PDAE's convolutional one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsiam.attention import AttentionBlock
from diffsiam.convolution import Conv2d

RESNETS = {
    "resnet10": ("basic", (1, 1, 1, 1)),
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
}


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> Conv2d:
    return Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (He et al., 2016)."""

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(c_in, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        nn.init.zeros_(self.bn2.weight)
        self.downsample = _shortcut(c_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, output four times as wide."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(c_in, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        nn.init.zeros_(self.bn3.weight)
        self.downsample = _shortcut(c_in, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        return F.relu(self.bn3(self.conv3(h)) + self.downsample(x))


def _shortcut(c_in: int, c_out: int, stride: int) -> nn.Module:
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    return nn.Sequential(_conv(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out))


class ResNet(nn.Module):
    """CIFAR-style ResNet with four stages of widths w, 2w, 4w, 8w and strides 1, 2, 2, 2, then global average
    pooling.

    Args:
        arch: "resnet10", "resnet18" or "resnet50".
        width: w of the stem (64 in the papers).
        dim: d; a linear layer follows only where the pooled width (8 w, or 32 w for resnet50) differs from d.
        stem: "cifar" (3x3, stride 1) or "imagenet" (7x7, stride 2, and a max-pool of stride 2).
        norm: of z, see :func:`feature_norm`.
    """

    def __init__(self, arch: str, width: int = 64, dim: int = 512, stem: str = "cifar", norm: str = "none"):
        super().__init__()
        kind, depths = RESNETS[arch]
        block = BasicBlock if kind == "basic" else Bottleneck
        self.pools = stem == "imagenet"
        self.conv1 = _conv(3, width, 7, 2) if self.pools else _conv(3, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage, depth in enumerate(depths):
            layers = []
            for i in range(depth):
                layers.append(block(channels, width << stage, 2 if stage and i == 0 else 1))
                channels = (width << stage) * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Identity() if channels == dim else nn.Linear(channels, dim)
        self.norm = feature_norm(norm, dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) in [-1, 1] -> z (B, d)."""
        h = F.relu(self.bn1(self.conv1(x)))
        if self.pools:
            h = F.max_pool2d(h, 3, 2, 1)
        for stage in range(1, 5):
            h = self.get_submodule(f"layer{stage}")(h)
        return self.norm(self.fc(h.mean(dim=(2, 3))))


class PDAEEncoder(nn.Sequential):
    """PDAE's semantic encoder: stride-2 convolutions down to 4 px with one attention block, then a linear
    layer; no batch norm.

    Args:
        px: 64 or 128.
        dim: d.
        norm: of z, see :func:`feature_norm`.

    Raises:
        ValueError: for another resolution, for which no such encoder is published.
    """

    WIDTHS = {64: (64, 128, 128, 128), 128: (64, 128, 256, 256, 256)}
    ATTENTION_PX = 16

    def __init__(self, px: int, dim: int = 512, norm: str = "none"):
        if px not in self.WIDTHS:
            raise ValueError(f"the PDAE encoder exists for 64 and 128 px, not {px}")
        layers: list[nn.Module] = []
        channels, size = 3, px
        for width in self.WIDTHS[px]:
            if channels != 3:
                layers += [nn.GroupNorm(32, channels), nn.SiLU()]
            layers.append(Conv2d(channels, width, 3, 2, 1))
            channels, size = width, size // 2
            if size == self.ATTENTION_PX:
                layers.append(AttentionBlock(channels, heads=4))
        layers += [
            nn.GroupNorm(32, channels),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(channels * size * size, dim),
            feature_norm(norm, dim),
        ]
        super().__init__(*layers)


def feature_norm(norm: str, dim: int) -> nn.Module:
    """What follows the last layer of an encoder: nothing ("none"), or "batch", a batch norm without
    parameters.

    Features of a fresh ResNet differ between images by a few hundredths only, which a decoder takes thousands
    of steps to hear. Normalised, every entry of z varies by 1 from the first step on.
    """
    return nn.BatchNorm1d(dim, affine=False) if norm == "batch" else nn.Identity()


def build_encoder(
    arch: str,
    px: int | None,
    width: int = 64,
    dim: int = 512,
    stem: str = "cifar",
    norm: str = "none",
) -> nn.Module:
    """The encoder named by ``encoder.arch``; see :class:`ResNet` and :class:`PDAEEncoder`, which alone needs
    ``px``.
    """
    if arch == "pdae":
        return PDAEEncoder(px or 0, dim, norm)
    return ResNet(arch, width, dim, stem, norm)


@dataclass(frozen=True)
class EncoderConfig:
    """The arguments of :func:`build_encoder`."""

    arch: str
    px: int | None = None
    width: int = 64
    dim: int = 512
    stem: str = "cifar"
    norm: str = "none"

    def build(self) -> nn.Module:
        return build_encoder(self.arch, self.px, self.width, self.dim, self.stem, self.norm)


def encode_images(encoder: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """z of float images (N, 3, H, W), in eval mode and batches, (N, d) float32; the encoder's mode is
    restored.
    """
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        z = torch.cat([encoder(part).float() for part in images.split(batch_size)])
    encoder.train(training)
    return z
