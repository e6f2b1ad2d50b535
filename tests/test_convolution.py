"""Convolutions for processors with matrix tiles: weight gradients as products, frozen weights packed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from config_files import rooms
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import diffsiam.convolution
from diffsiam.convolution import Conv2d, pack, packed_bytes, weight_gradient
from diffsiam.encoder import build_encoder
from diffsiam.layers import ConvDown, ConvUp, ResBlock
from diffsiam.unet import UNet, UNetConfig
from engine.step import choose_policy, prepare_frozen
from kernels.backend import set_backend

torch.set_num_threads(1)

# batch, channels in and out, size, kernel, stride, padding: one of each kind that occurs, and crooked ones
SHAPES = [
    (3, 8, 12, (4, 4), 3, 1, 1),
    (2, 8, 12, (5, 4), 3, 2, 1),
    (5, 6, 10, (3, 4), 1, 1, 0),
    (2, 6, 10, (8, 6), 1, 2, 0),
    (4, 3, 8, (9, 7), 3, 2, 0),
    (1, 16, 16, (2, 2), 3, 1, 1),
    (2, 4, 6, (4, 6), (1, 3), (2, 1), (0, 1)),
]


@pytest.fixture
def tiles(monkeypatch):
    """As on a processor with matrix tiles and with large weights: elsewhere products are slower, and as
    right.
    """
    monkeypatch.setattr(diffsiam.convolution, "has_tiles", lambda: True)
    monkeypatch.setattr(diffsiam.convolution, "LEAST_WEIGHTS", 1)


@pytest.fixture(params=SHAPES, ids=str)
def case(request):
    batch, channels, out, size, kernel, stride, padding = request.param
    torch.manual_seed(0)
    conv = Conv2d(channels, out, kernel, stride, padding)
    return image(batch, channels, *size), conv


def image(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def with_gradients(conv: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = conv(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return y, *torch.autograd.grad(y, (x, *conv.parameters()), upstream)


def by_product(conv: nn.Module, x: torch.Tensor) -> bool:
    with torch.autocast("cpu", torch.bfloat16):
        return "_Convolve" in type(conv(x).grad_fn).__name__


def plain(conv: nn.Conv2d) -> nn.Conv2d:
    of = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    same = nn.Conv2d(*of, bias=conv.bias is not None)
    same.load_state_dict(conv.state_dict())
    return same


def test_the_product_is_the_gradient_of_the_weight(case):
    x, conv = case[0].detach().double(), case[1]
    x = x.contiguous(memory_format=torch.channels_last)
    weight = conv.weight.detach().double()
    y = F.conv2d(x, weight, None, conv.stride, conv.padding)
    grad = torch.randn_like(y).contiguous(memory_format=torch.channels_last)
    expected = torch.nn.grad.conv2d_weight(x, weight.shape, grad, conv.stride, conv.padding)
    found = weight_gradient(x, grad, conv.kernel_size, conv.stride, conv.padding)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_under_autocast_result_and_gradients_are_those_of_the_plain_convolution(case, tiles):
    x, conv = case
    assert by_product(conv, x)
    exact = with_gradients(plain(conv).double(), x.detach().double().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = with_gradients(conv, x), with_gradients(plain(conv), x)
    assert torch.equal(ours[0], theirs[0])
    for o, t, e in zip(ours, theirs, exact, strict=True):
        assert o.dtype == t.dtype
        assert (o - e).norm() <= 1.5 * (t - e).norm() + 1e-3 * e.norm()
        assert (o - e).norm() < 2e-2 * e.norm()


def test_bfloat16_weights_without_autocast_have_the_same_gradient(tiles):
    torch.manual_seed(0)
    x, conv = image(4, 8, 4, 4, dtype=torch.bfloat16), Conv2d(8, 8, 3, padding=1).bfloat16()
    ours, theirs = with_gradients(conv, x), with_gradients(plain(conv).bfloat16(), x)
    for o, t in zip(ours, theirs, strict=True):
        torch.testing.assert_close(o.float(), t.float(), rtol=2e-2, atol=2e-2)


def test_without_a_bias_there_is_no_gradient_of_one(tiles):
    x, conv = image(2, 4, 4, 4), Conv2d(4, 4, 3, padding=1, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        conv(x).sum().backward()
    assert conv.weight.grad.dtype == torch.float32
    assert x.grad is not None


def test_an_image_that_needs_no_gradient_gets_none(tiles):
    x, conv = image(2, 4, 4, 4).detach(), Conv2d(4, 4, 3, padding=1)
    assert by_product(conv, x)
    with torch.autocast("cpu", torch.bfloat16):
        conv(x).sum().backward()
    assert x.grad is None
    assert conv.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("x", "conv"),
    [
        (image(8, 8, 16, 16), Conv2d(8, 8, 3, padding=1)),  # long rows
        (image(16, 8, 6, 6), Conv2d(8, 8, 3, padding=1)),
        (image(2, 8, 4, 4), Conv2d(8, 8, 3, padding=1).requires_grad_(False)),  # frozen
        (image(2, 8, 4, 4), Conv2d(8, 8, 3, padding=1, groups=2)),
        (image(2, 8, 4, 4), Conv2d(8, 8, 3, padding=2, dilation=2)),
        (image(2, 8, 4, 4), Conv2d(8, 8, 3, padding="same")),
        (image(2, 8, 4, 4), Conv2d(8, 8, 3, padding=1, padding_mode="reflect")),
        (torch.randn(2, 8, 4, 4).requires_grad_(), Conv2d(8, 8, 3, padding=1)),  # contiguous
    ],
    ids=["long", "many", "frozen", "groups", "dilation", "same", "reflect", "contiguous"],
)
def test_elsewhere_it_is_the_plain_convolution(x, conv, tiles):
    assert not by_product(conv, x)


def test_small_weights_are_not_worth_a_call_through_python(tiles, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(diffsiam.convolution, "has_tiles", lambda: True)
    assert not by_product(Conv2d(32, 32, 3, padding=1), image(2, 32, 4, 4))
    assert by_product(Conv2d(64, 64, 3, padding=1), image(2, 64, 4, 4))


def test_so_it_is_in_float32_without_gradients_with_the_reference_and_without_tiles(tiles, monkeypatch):
    x, conv = image(2, 8, 4, 4), Conv2d(8, 8, 3, padding=1)
    assert by_product(conv, x)
    assert "_Convolve" not in type(conv(x).grad_fn).__name__
    with torch.no_grad():
        assert not by_product(conv, x)
    set_backend("reference")
    try:
        assert not by_product(conv, x)
    finally:
        set_backend("auto")
    monkeypatch.setattr(diffsiam.convolution, "has_tiles", lambda: False)
    assert not by_product(conv, x)


@pytest.fixture
def everything_is_large(monkeypatch):
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN does not compute in bfloat16 on this processor")
    monkeypatch.setattr(diffsiam.convolution, "LEAST_PACKED", 1)


def test_packed_weights_give_the_same_bits_where_no_gradient_is_due(case, tiles, everything_is_large):
    x, conv = case[0].detach(), case[1].requires_grad_(False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = conv(x)
        pack(conv)
        assert conv.packed is not None
        conv.weight.zero_()  # is not looked at any more
        assert torch.equal(conv(x), expected)


def test_a_packed_convolution_is_the_plain_one_in_float32_with_gradients_and_for_the_reference(
    tiles, everything_is_large
):
    x, conv = image(2, 8, 6, 6), Conv2d(8, 8, 3, padding=1).requires_grad_(False)
    pack(conv)
    with torch.no_grad():
        assert torch.equal(conv(x), plain(conv)(x))  # float32: not to 8 bits
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.autograd.grad(conv(x).float().sum(), x)[0].abs().sum() > 0
        conv.packed = None, None  # whatever looks at it now fails
        set_backend("reference")
        try:
            with torch.no_grad():
                assert torch.equal(conv(x), plain(conv)(x))
        finally:
            set_backend("auto")


def test_only_large_weights_are_packed_and_only_where_there_are_tiles(monkeypatch):
    small, large = Conv2d(8, 8, 3), Conv2d(256, 256, 3)
    for there, packed in ((False, [False, False]), (True, [False, True])):
        monkeypatch.setattr(diffsiam.convolution, "has_tiles", lambda there=there: there)
        pack(nn.Sequential(small, large))
        assert [conv.packed is not None for conv in (small, large)] == packed
        assert packed_bytes(nn.Sequential(small, large)) == 2 * large.weight.numel() * packed[1]


def test_operations_of_packed_convolutions_are_counted(tiles, everything_is_large):
    x, conv = image(2, 8, 6, 6).detach(), Conv2d(8, 12, 3, padding=1).bfloat16()
    counts = []
    for _ in range(2):
        with (
            FlopCounterMode(display=False) as counter,
            torch.no_grad(),
            torch.autocast("cpu", torch.bfloat16),
        ):
            conv(x)
        counts.append(counter.get_total_flops())
        pack(conv)
    assert counts == [2 * 2 * 12 * 36 * 8 * 9] * 2


def test_the_frozen_model_of_a_run_is_packed(tiles, everything_is_large, tmp_path):
    config = rooms(tmp_path, "train.precision=bf16")
    unet = UNet(UNetConfig(8, (1, 2), blocks=1, attention=())).eval().requires_grad_(False)
    packed = prepare_frozen(unet, choose_policy(config, torch.device("cpu")))
    exact = prepare_frozen(unet, choose_policy(rooms(tmp_path, "train.precision=fp32"), torch.device("cpu")))
    convs = [[m.packed for m in u.modules() if isinstance(m, Conv2d)] for u in (packed, exact)]
    assert None not in convs[0]
    assert set(convs[1]) == {None}
    x, t = image(2, 3, 8, 8).detach(), torch.tensor([3, 500])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed(x, t), exact(x, t))


@pytest.mark.filterwarnings("error")
def test_a_compiler_sees_the_plain_convolution(tiles):
    x, conv = image(2, 8, 4, 4), Conv2d(8, 8, 3, padding=1)
    compiled = torch.compile(conv, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        assert by_product(conv, x)
        assert torch.equal(compiled(x), conv(x))
        compiled(x).sum().backward()
    assert conv.weight.grad is not None


def test_networks_are_made_of_them(tiles):
    torch.manual_seed(0)
    time = torch.randn(2, 16)
    for network in (ResBlock(8, 16, 16), ResBlock(8, 8, 16, resample="down"), ConvDown(8), ConvUp(8)):
        assert {type(m) for m in network.modules() if isinstance(m, nn.Conv2d)} == {Conv2d}
    encoder = build_encoder("resnet10", 16, width=8, dim=16)
    assert {type(m) for m in encoder.modules() if isinstance(m, nn.Conv2d)} == {Conv2d}
    block, x = ResBlock(8, 16, 16), image(2, 8, 4, 4)
    same = copy.deepcopy(block)
    for module in (block, same):
        nn.init.normal_(module.out_layers[3].weight)
    same.load_state_dict(block.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        block(x, time).square().mean().backward()
        set_backend("reference")
        try:
            same(x, time).square().mean().backward()
        finally:
            set_backend("auto")
    for ours, theirs in zip(block.parameters(), same.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() < 2e-2 * theirs.grad.norm() + 1e-3
