"""Sums that residual blocks leave to the next group norm: where they do, and that it changes no bit."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from diffsiam.decoder import Decoder
from diffsiam.layers import ResBlock, Sum, whole
from diffsiam.unet import UNet, UNetConfig
from kernels import backend

BEDROOM = UNetConfig(128, (1, 1, 2, 3, 4), blocks=2, attention=(8,))
TINY = UNetConfig(8, (1, 2, 3), blocks=2, attention=(2,))
DDPM = replace(TINY, time="add", resampling="conv", eps=1e-6)
DIM, TIMES = 6, torch.tensor([5, 70])


@cache
def on_meta(config: UNetConfig) -> tuple[UNet, Decoder]:
    with torch.device("meta"):
        return UNet(config), Decoder(config, DIM)


def deferring(network: nn.Module) -> list[str]:
    return [name for name, block in network.named_modules() if getattr(block, "defers", False)]


def adding_at_once(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, ResBlock):
            module.defers = False
    return network


class TestWhere:
    def test_in_the_encoder_before_every_block_that_follows_one_without_attention_between(self):
        blocks = [name for name in deferring(on_meta(BEDROOM)[0]) if name.startswith("input_blocks")]
        # 10 and 11 have attention, 14 is the last.
        assert blocks == [f"input_blocks.{i}.0" for i in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13)]

    def test_in_a_decoder_before_upsampling_without_attention_and_before_the_head(self):
        unet, decoder = on_meta(BEDROOM)
        numbers = (2, 8, 11, 14)  # 5 has attention
        blocks = [name for name in deferring(unet) if not name.startswith("input_blocks")]
        assert blocks == [f"output_blocks.{i}.0" for i in numbers]
        assert deferring(decoder) == [f"shift_output_blocks.{i}.0" for i in numbers]

    def test_not_before_a_convolution(self):
        blocks = deferring(on_meta(DDPM)[0])
        assert blocks == ["input_blocks.1.0", "input_blocks.7.0", "output_blocks.8.0"]

    def test_a_block_by_itself_returns_an_image(self):
        assert isinstance(ResBlock(8, 8, 16)(torch.randn(2, 8, 4, 6), torch.randn(2, 16)), torch.Tensor)


def test_a_sum_is_added_once_whoever_asks():
    both = Sum(torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2), [])
    assert torch.equal(whole(both), both.x + both.residual)
    assert whole(both) is whole(both)
    assert whole(both.x) is both.x
    assert both.shape == (1, 4, 2, 2)


def outputs_and_gradients(unet, decoder, x, z_bar):
    """Both predictions, every skip, and the gradients of all weights and inputs of all."""
    x, z_bar = x.clone().requires_grad_(), z_bar.clone().requires_grad_()
    features = unet.encode(x, TIMES)
    results = (unet.decode(features), decoder(features, z_bar), *features.skips)
    upstream = [torch.randn(r.shape, generator=torch.Generator().manual_seed(3)).to(r.dtype) for r in results]
    weights = [*unet.parameters(), *decoder.parameters()]
    return results, torch.autograd.grad(results, [x, z_bar, *weights], upstream)


@pytest.mark.parametrize("config", [TINY, replace(TINY, blocks=1, attention=()), DDPM])
@pytest.mark.parametrize("name", ["auto", "reference"])
@pytest.mark.parametrize("autocast", [False, True])
def test_predictions_skips_and_all_gradients_are_those_of_adding_at_once(
    config, name, autocast, awaken, monkeypatch
):
    monkeypatch.setattr(backend, "_asked", name)
    networks = [awaken(UNet(config)).eval(), awaken(Decoder(config, DIM), seed=1).eval()]
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    z_bar = torch.randn(2, DIM)
    with torch.autocast("cpu", enabled=autocast):
        deferred = outputs_and_gradients(*networks, x, z_bar)
        at_once = outputs_and_gradients(*map(adding_at_once, networks), x, z_bar)
    for found, expected in zip(deferred, at_once, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_they_do_not_break_a_compiled_graph(awaken):
    config = UNetConfig(4, (1, 1), blocks=1, attention=())
    unet, decoder = awaken(UNet(config)).eval(), awaken(Decoder(config, DIM), seed=1).eval()
    assert deferring(unet)
    x, z_bar = torch.randn(2, 3, 8, 8), torch.randn(2, DIM)

    def predict(x, z_bar):
        features = unet.encode(x, TIMES)
        return unet.decode(features), decoder(features, z_bar), *features.skips

    results = []
    for function in (predict, torch.compile(predict, fullgraph=True, backend="aot_eager", dynamic=False)):
        found = function(x, z_bar)
        weights = [*unet.parameters(), *decoder.parameters()]
        results.append((*found, *torch.autograd.grad(sum(part.square().sum() for part in found), weights)))
    torch.compiler.reset()
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(eager, compiled, rtol=1e-4, atol=1e-4 * eager.abs().max().item())
