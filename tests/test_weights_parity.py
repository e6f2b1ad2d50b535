"""Files of guided diffusion's family: their published tensors, written out here, and what they compute.

Keys and shapes come from a list of blocks, not from our network; outputs from the restatement in plain_unet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import plain_unet
import pytest
import torch
from torch import Tensor

from diffsiam.unet import UNet, UNetConfig
from diffsiam.weights import Assumed, build_unet, infer_config, read_parts

Shapes = dict[str, tuple[int, ...]]
TIMES = torch.tensor([5, 700])


@dataclass(frozen=True)
class Published:
    """A model as its project describes it."""

    base: int
    mult: tuple[int, ...]
    attention: tuple[int, ...]  # downsampling factors
    parameters: int
    tensors: int
    sigma: bool = False
    heads: int | None = None
    head_channels: int | None = None
    embedding: int | None = None

    @property
    def config(self) -> UNetConfig:
        return UNetConfig(
            self.base,
            self.mult,
            blocks=2,
            attention=self.attention,
            heads=self.heads or 1,
            head_channels=self.head_channels or -1,
            learn_sigma=self.sigma,
            embedding=self.embedding,
        )

    def narrowed(self, base: int) -> Published:
        """The same blocks with fewer channels, and heads in proportion."""
        channels = self.head_channels and self.head_channels * base // self.base
        return replace(self, base=base, head_channels=channels, embedding=None)


MODELS = {
    "PDAE, CelebA 64 px": Published(64, (1, 2, 4, 8), (4,), 63_958_019, 356),
    "DiffAE, 64 px": Published(64, (1, 2, 4, 8), (4,), 67_841_539, 356, embedding=512),
    "DiffAE and PDAE, 128 px": Published(128, (1, 1, 2, 3, 4), (8,), 98_618_499, 432),
    "128 px with a learned variance": Published(128, (1, 1, 2, 3, 4), (8,), 98_621_958, 432, sigma=True),
    "ShiftDDPMs, CIFAR-10": Published(128, (1, 2, 2, 2), (2,), 42_855_427, 352, heads=4),
    "guided diffusion, 256 px": Published(
        256, (1, 1, 2, 2, 4, 4), (8, 16, 32), 552_814_086, 566, sigma=True, head_channels=64
    ),
}


def res(c_in: int, c_out: int, embedding: int) -> Shapes:
    shapes: Shapes = {
        "in_layers.0.weight": (c_in,),
        "in_layers.0.bias": (c_in,),
        "in_layers.2.weight": (c_out, c_in, 3, 3),
        "in_layers.2.bias": (c_out,),
        "emb_layers.1.weight": (2 * c_out, embedding),
        "emb_layers.1.bias": (2 * c_out,),
        "out_layers.0.weight": (c_out,),
        "out_layers.0.bias": (c_out,),
        "out_layers.3.weight": (c_out, c_out, 3, 3),
        "out_layers.3.bias": (c_out,),
    }
    if c_in != c_out:
        shapes |= {"skip_connection.weight": (c_out, c_in, 1, 1), "skip_connection.bias": (c_out,)}
    return shapes


def attention(c: int) -> Shapes:
    return {
        "norm.weight": (c,),
        "norm.bias": (c,),
        "qkv.weight": (3 * c, c, 1),
        "qkv.bias": (3 * c,),
        "proj_out.weight": (c, c, 1),
        "proj_out.bias": (c,),
    }


def under(name: str, shapes: Shapes) -> Shapes:
    return {f"{name}.{key}": shape for key, shape in shapes.items()}


def published_shapes(m: Published) -> Shapes:
    """Every key of a file with its shape, block by block."""
    e, widths = m.embedding or 4 * m.base, [m.base * k for k in m.mult]
    out = 6 if m.sigma else 3
    shapes: Shapes = {
        "time_embed.0.weight": (e, m.base),
        "time_embed.0.bias": (e,),
        "time_embed.2.weight": (e, e),
        "time_embed.2.bias": (e,),
        "input_blocks.0.0.weight": (widths[0], 3, 3, 3),
        "input_blocks.0.0.bias": (widths[0],),
        "out.0.weight": (widths[0],),
        "out.0.bias": (widths[0],),
        "out.2.weight": (out, widths[0], 3, 3),
        "out.2.bias": (out,),
    }
    c, skips, place = widths[0], [widths[0]], 1
    for level, width in enumerate(widths):
        for _ in range(2):
            shapes |= under(f"input_blocks.{place}.0", res(c, width, e))
            if 2**level in m.attention:
                shapes |= under(f"input_blocks.{place}.1", attention(width))
            c, place = width, place + 1
            skips.append(c)
        if level < len(widths) - 1:
            shapes |= under(f"input_blocks.{place}.0", res(c, c, e))
            place += 1
            skips.append(c)
    shapes |= under("middle_block.0", res(c, c, e)) | under("middle_block.1", attention(c))
    shapes |= under("middle_block.2", res(c, c, e))
    for place in range(3 * len(widths)):
        level = len(widths) - 1 - place // 3
        shapes |= under(f"output_blocks.{place}.0", res(c + skips.pop(), widths[level], e))
        c, attends = widths[level], 2**level in m.attention
        if attends:
            shapes |= under(f"output_blocks.{place}.1", attention(c))
        if place % 3 == 2 and level:
            shapes |= under(f"output_blocks.{place}.{1 + attends}", res(c, c, e))
    return shapes


def drawn(shapes: Shapes) -> dict[str, Tensor]:
    """Fixed values under which every layer matters."""
    generator, state = torch.Generator().manual_seed(1), {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        is_scale = len(shape) == 1 and key.endswith("weight")
        state[key] = (
            1 + 0.2 * noise if is_scale else noise / (noise[0].numel() ** 0.5 if len(shape) > 1 else 5)
        )
    return state


@pytest.mark.parametrize("name", MODELS)
def test_our_network_has_exactly_the_published_tensors(name):
    model = MODELS[name]
    with torch.device("meta"):
        state = UNet(model.config).state_dict()
        listed = {key: torch.empty(shape) for key, shape in published_shapes(model).items()}
    assert {key: tuple(value.shape) for key, value in state.items()} == published_shapes(model)
    assert sum(value.numel() for value in listed.values()) == model.parameters
    assert len(listed) == model.tensors
    given = Assumed(model.heads, model.head_channels).given()
    assert infer_config(listed, **given) == model.config


@pytest.mark.parametrize("name", MODELS)
def test_a_file_computes_what_the_published_network_computes(tmp_path: Path, name: str):
    model = MODELS[name].narrowed(32)
    state = drawn(published_shapes(model))
    torch.save(state, tmp_path / "model.pt")
    unet = build_unet(read_parts(tmp_path / "model.pt", Assumed(model.heads, model.head_channels))).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    width = model.head_channels
    heads = (lambda channels: channels // width) if width else model.heads or 1
    levels = len(model.mult)
    skips, time = plain_unet.encode(state, levels, 2, heads, x, TIMES)
    expected = plain_unet.decode(state, levels, 2, heads, skips, time)[:, :3]
    with torch.no_grad():
        found = unet(x, TIMES)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
