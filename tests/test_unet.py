"""The frozen U-Net has the published tensors and computes what guided diffusion's U-Net computes."""

import math
from dataclasses import replace
from functools import cache

import plain_unet
import pytest
import torch

from bench.rivals import attention
from diffsiam.attention import AttentionBlock, head_count, set_attention
from diffsiam.attention_routines import attend_products, attend_sdpa
from diffsiam.layers import ResBlock, group_norm, timestep_embedding
from diffsiam.unet import UNet, UNetConfig

DIFFAE_128 = UNetConfig(128, (1, 1, 2, 3, 4), blocks=2, attention=(8,))
CANDIDATE_64 = UNetConfig(64, (1, 2, 4, 8), blocks=2, attention=(4,))
SHIFTDDPM_CIFAR = UNetConfig(128, (1, 2, 2, 2), blocks=2, attention=(2,), heads=4)
TINY = UNetConfig(8, (1, 2, 3), blocks=2, attention=(2, 4), heads=4)
TIMES = torch.tensor([5, 70])

# Channels of every residual block of the 128-px model's way up; * with attention, ^ with upsampling.
WAY_UP_128 = (
    "1024>512 1024>512 896>512^ 896>384* 768>384* 640>384*^ 640>256 512>256 384>256^ "
    "384>128 256>128 256>128^ 256>128 256>128 256>128"
)


@cache
def on_meta(config: UNetConfig) -> UNet:
    with torch.device("meta"):
        return UNet(config)


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return (found.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [
        (DIFFAE_128, 98_618_499, 432),
        (CANDIDATE_64, 63_958_019, 356),
        (replace(CANDIDATE_64, embedding=512), 67_841_539, 356),
        (SHIFTDDPM_CIFAR, 42_855_427, 352),
    ],
    ids=["diffae-128", "pdae-64", "diffae-64", "shiftddpms-cifar"],
)
def test_the_published_architectures_have_their_published_sizes(config, parameters, tensors):
    unet = on_meta(config)
    assert size(unet) == parameters
    assert len(unet.state_dict()) == tensors


def test_each_part_of_the_128_px_model_has_its_size():
    sizes = {name: size(part) for name, part in on_meta(DIFFAE_128).named_children()}
    assert sizes == {
        "time_embed": 328_704,
        "input_blocks": 26_727_808,
        "middle_block": 11_545_600,
        "output_blocks": 60_012_672,
        "out": 3_715,
    }


def test_the_way_up_of_the_128_px_model_is_the_published_one():
    state = on_meta(DIFFAE_128).state_dict()
    blocks = []
    for index in range(15):
        name = f"output_blocks.{index}"
        c_out, c_in = state[f"{name}.0.in_layers.2.weight"].shape[:2]
        attention = f"{name}.1.qkv.weight" in state
        upsampling = f"{name}.{1 + attention}.in_layers.2.weight" in state
        blocks.append(f"{c_in}>{c_out}" + "*" * attention + "^" * upsampling)
    assert " ".join(blocks) == WAY_UP_128


def test_a_block_has_the_published_keys_and_shapes():
    with torch.device("meta"):
        state = ResBlock(8, 16, embedding=32, conditioned=True).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "in_layers.0.weight": (8,),
        "in_layers.0.bias": (8,),
        "in_layers.2.weight": (16, 8, 3, 3),
        "in_layers.2.bias": (16,),
        "emb_layers.1.weight": (32, 32),
        "emb_layers.1.bias": (32,),
        "emb_z_layers.1.weight": (32, 32),
        "emb_z_layers.1.bias": (32,),
        "out_layers.0.weight": (16,),
        "out_layers.0.bias": (16,),
        "out_layers.3.weight": (16, 16, 3, 3),
        "out_layers.3.bias": (16,),
        "skip_connection.weight": (16, 8, 1, 1),
        "skip_connection.bias": (16,),
    }


def test_only_a_change_of_width_needs_a_skip_convolution():
    assert not any("skip" in key for key in ResBlock(8, 8, embedding=32).state_dict())


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (24, 6), (64, 32), (128, 32), (384, 32)])
def test_norms_have_32_groups_unless_the_model_is_small(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_the_time_embedding_is_cosines_then_sines_of_the_integer_time():
    t = torch.tensor([0, 1, 10, 999])
    frequency = [math.exp(-math.log(10000) * i / 8) for i in range(8)]
    expected = torch.tensor([[f(int(s) * w) for f in (math.cos, math.sin) for w in frequency] for s in t])
    assert timestep_embedding(t, 16).dtype == torch.float32
    assert torch.allclose(timestep_embedding(t, 16), expected, atol=1e-4)


@pytest.mark.parametrize("resample", [None, "down", "up"])
@pytest.mark.parametrize("c_out", [8, 12])
@pytest.mark.parametrize("conditioned", [False, True])
def test_a_residual_block_is_its_formula(awaken, resample, c_out, conditioned):
    block = awaken(ResBlock(8, c_out, 16, dropout=0.5, resample=resample, conditioned=conditioned)).eval()
    x, time, z = torch.randn(2, 8, 4, 6), torch.randn(2, 16), torch.randn(2, 16)
    z = z if conditioned else None
    state = {f"block.{key}": value for key, value in block.state_dict().items()}
    plain = {None: None, "down": plain_unet.halve, "up": plain_unet.double}[resample]
    expected = plain_unet.res_block(
        state, "block", x.double(), time.double(), z.double() if conditioned else None, plain
    )
    assert close(block(x, time, z), expected)


def test_new_blocks_change_nothing():
    x, time = torch.randn(2, 8, 4, 6), torch.randn(2, 16)
    assert torch.equal(ResBlock(8, 8, 16)(x, time), x)
    assert torch.equal(AttentionBlock(8)(x), x)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("new_order", [False, True])
def test_attention_is_a_loop_over_heads_in_both_channel_orders(awaken, heads, new_order):
    block = awaken(AttentionBlock(16, heads, new_order))
    x = torch.randn(2, 16, 3, 4)
    state = {f"block.{key}": value for key, value in block.state_dict().items()}
    assert close(block(x), plain_unet.attention(state, "block", x.double(), heads, new_order))


def test_the_channel_orders_differ_with_several_heads_and_coincide_with_one(awaken):
    x = torch.randn(2, 16, 3, 4)

    def orders(heads):
        blocks = [awaken(AttentionBlock(16, heads, new_order)) for new_order in (False, True)]
        return [block(x) for block in blocks]

    assert torch.equal(*orders(1))
    assert not torch.allclose(*orders(4), atol=1e-2)


@pytest.mark.parametrize(("heads", "head_channels", "expected"), [(4, -1, 4), (1, 64, 8), (4, 64, 8)])
def test_a_fixed_head_width_overrides_the_number_of_heads(heads, head_channels, expected):
    assert head_count(512, heads, head_channels) == expected


def test_the_attention_routine_can_be_replaced(awaken):
    unet = awaken(UNet(TINY)).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        before = unet(x, TIMES)
        set_attention(unet, lambda q, k, v: torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v)
        assert torch.allclose(unet(x, TIMES), before, atol=1e-5)
        set_attention(unet, lambda q, k, v: torch.zeros_like(v))
        assert not torch.allclose(unet(x, TIMES), before, atol=1e-2)


@pytest.mark.parametrize(
    "config",
    [TINY, replace(TINY, blocks=1, attention=(), embedding=20), replace(TINY, base_channels=64, blocks=1)],
)
def test_the_whole_network_is_its_formula(awaken, config):
    unet = awaken(UNet(config)).eval()
    x, state = torch.randn(2, 3, 8, 8), unet.state_dict()
    skips, time = plain_unet.encode(state, 3, config.blocks, 4, x, TIMES)
    expected = plain_unet.decode(state, 3, config.blocks, 4, skips, time)
    with torch.no_grad():
        features = unet.encode(x, TIMES)
        assert close(features.time, time)
        assert all(close(a, b) for a, b in zip(features.skips, skips, strict=True))
        assert close(unet.decode(features), expected)
        assert torch.equal(unet(x, TIMES), unet.decode(features))


def test_a_new_network_predicts_exactly_nothing():
    assert (UNet(TINY)(torch.randn(2, 3, 8, 8), TIMES) == 0).all()


def test_the_variance_channels_of_a_learned_sigma_are_dropped(awaken):
    unet = awaken(UNet(replace(TINY, learn_sigma=True))).eval()
    plain = UNet(TINY).eval()
    state = unet.state_dict()
    assert state["out.2.weight"].shape[0] == 6
    plain.load_state_dict(
        {key: value[:3] if key.startswith("out.2.") else value for key, value in state.items()}
    )
    x = torch.randn(2, 3, 8, 8)
    assert unet(x, TIMES).shape == x.shape
    assert torch.allclose(unet(x, TIMES), plain(x, TIMES), atol=1e-6)


def test_half_precision_weights_take_single_precision_images(awaken):
    unet = awaken(UNet(TINY)).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        full = unet(x, TIMES)
        half = unet.bfloat16()(x, TIMES)
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float().flatten(), full.flatten(), dim=0) > 0.999


def test_dropout_works_in_every_block_in_training_only(awaken):
    unet = awaken(UNet(replace(TINY, dropout=0.5)))
    assert {m.p for m in unet.modules() if isinstance(m, torch.nn.Dropout)} == {0.5}
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert not torch.equal(unet.train()(x, TIMES), unet(x, TIMES))
        assert torch.equal(unet.eval()(x, TIMES), unet(x, TIMES))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrix_products_are_attention_with_its_gradients(dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 10, 8).to(dtype).requires_grad_() for _ in range(3))
    upstream = torch.randn(2, 3, 10, 8)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    reference = attend_sdpa(*exact)
    expected = (reference, *torch.autograd.grad(reference, exact, upstream.double()))
    h = attend_products(q, k, v)
    found = (h, *torch.autograd.grad(h, (q, k, v), upstream.to(dtype)))
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < tolerance * theirs.norm()


@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("heads", [1, 4])
def test_attention_on_tokens_is_that_on_rows_of_pixels(heads, new_order):
    """Guided diffusion's own form: 1x1 convolutions over (B, C, tokens)."""
    torch.manual_seed(0)
    block = AttentionBlock(32, heads, new_order)
    torch.nn.init.normal_(block.proj_out.weight, std=0.1)
    x = torch.randn(2, 32, 3, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    upstream = torch.randn(x.shape)
    inputs = (x, *block.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(block(x), inputs, upstream),
        torch.autograd.grad(attention(block, x), inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert block(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(block(x.contiguous()), attention(block, x), rtol=1e-5, atol=1e-5)
