"""Which group norms a training step of a preset runs, read off its networks without any data."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffsiam.decoder import Decoder
from diffsiam.layers import ResBlock, Sum, group_count
from diffsiam.unet import OutputHead, UNet, UNetConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PRESETS = ("bedroom", "celeba64", "cifar10")
ARCHITECTURE = ("base_channels", "channel_mult", "blocks", "attention")


@dataclass(frozen=True, order=True)
class Norm:
    """One adaptive group norm with SiLU.

    Attributes:
        channels, px: C, and the side of its images.
        time, z: whether the two modulations are there.
        trained: whether it has a backward pass (trained decoder) or not (frozen U-Net).
        adds: whether it adds the residual sum that it normalises.
        used: whether others use that sum too, so that a gradient comes from them.
    """

    channels: int
    px: int
    time: bool
    z: bool
    trained: bool
    adds: bool = False
    used: bool = False

    @property
    def groups(self) -> int:
        return group_count(self.channels)

    @property
    def title(self) -> str:
        conditions = (
            "+".join(name for name in ("time", "z", "adds", "used") if getattr(self, name)) or "plain"
        )
        return f"{self.channels} x {self.px}² {conditions} {'trained' if self.trained else 'frozen'}"


@dataclass(frozen=True)
class Preset:
    """What a benchmark of the kernels needs to know of a config file.

    Attributes:
        px: side of the images.
        dim, subsets: d and n of z.
        norms: group norms of one step, with how often each runs.
    """

    name: str
    px: int
    dim: int
    subsets: int
    norms: Counter[Norm]


def load_preset(name: str) -> Preset:
    """Read ``configs/NAME.json``, which must state its frozen architecture, without validating the rest.

    Raises:
        KeyError: it does not state it.
    """
    values = json.loads((CONFIGS / f"{name}.json").read_text())
    base, mult, blocks, attention = (values["frozen"][key] for key in ARCHITECTURE)
    architecture = UNetConfig(base, tuple(mult), blocks, tuple(attention))
    px, dim = values["data"]["px"], values["encoder"]["dim"]
    return Preset(name, px, dim, values["subsets"]["n"], count_norms(architecture, px, dim))


def count_norms(architecture: UNetConfig, px: int, dim: int) -> Counter[Norm]:
    """The norms of one step: the frozen U-Net once, the trained decoder once."""
    found: Counter[Norm] = Counter()

    def watch(network: nn.Module, trained: bool) -> None:
        def entry(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            adds, used = isinstance(inputs[0], Sum), trained and isinstance(block, ResBlock)
            _, channels, px, _ = inputs[0].shape
            found[Norm(channels, px, False, False, trained, adds, adds and used)] += 1

        def last(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(block, ResBlock)
            conditioned = hasattr(block, "emb_z_layers")
            found[Norm(output.shape[1], output.shape[2], True, conditioned, trained)] += 1

        for module in network.modules():
            if isinstance(module, ResBlock | OutputHead):
                module.register_forward_pre_hook(entry)
            if isinstance(module, ResBlock):
                module.register_forward_hook(last)

    with torch.device("meta"):
        frozen, decoder = UNet(architecture), Decoder(architecture, dim)
        watch(frozen, trained=False)
        watch(decoder, trained=True)
        features = frozen.encode(torch.empty(1, 3, px, px), torch.zeros(1, dtype=torch.int64))
        frozen.decode(features)
        decoder(features, torch.empty(1, dim))
    return found
