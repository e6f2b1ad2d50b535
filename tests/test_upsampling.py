"""Upsampling and convolution as one operation on the small image."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diffsiam.upsampling
from diffsiam.layers import ConvUp, ResBlock
from diffsiam.upsampling import sum_kernel_gradients, sum_kernels, upsample, upsample_convolve
from kernels.backend import set_backend

torch.set_num_threads(1)


def image(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.fixture(params=[(1, 128, 16, 16), (2, 128, 13, 10), (3, 160, 11, 12)])
def x(request):
    torch.manual_seed(0)
    return image(*request.param)


def with_gradients(function, x, conv):
    y = function(x, conv)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    gradients = torch.autograd.grad(y, (x, *conv.parameters()), upstream)
    return y, *gradients


def apart(x, conv):
    return conv(upsample(x))


def small(x: torch.Tensor, conv: nn.Conv2d) -> bool:
    return "UpsampleConvolve" in type(upsample_convolve(x, conv).grad_fn).__name__


def test_the_large_convolution_and_all_its_gradients_come_from_the_small_image(x):
    conv = nn.Conv2d(x.shape[1], 24, 3, padding=1)
    assert small(x, conv)
    for ours, plain in zip(
        with_gradients(upsample_convolve, x, conv), with_gradients(apart, x, conv), strict=True
    ):
        assert ours.shape == plain.shape
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=2e-5 * float(plain.detach().abs().max()))


def test_in_bfloat16_it_errs_no_more_than_the_large_convolution_does():
    torch.manual_seed(0)
    x, conv = image(2, 128, 16, 16, dtype=torch.bfloat16), nn.Conv2d(128, 128, 3, padding=1)
    exact = with_gradients(apart, x.detach().double().requires_grad_(), copy.deepcopy(conv).double())
    with torch.autocast("cpu", torch.bfloat16):
        assert small(x, conv)
        ours, plain = with_gradients(upsample_convolve, x, conv), with_gradients(apart, x, conv)
    assert ours[0].dtype == plain[0].dtype == torch.bfloat16
    for o, p, e in zip(ours, plain, exact, strict=True):
        assert (o - e).norm() <= 1.5 * (p - e).norm() + 1e-6 * e.norm()
        assert (o - e).norm() < 1e-2 * e.norm()


def test_kernels_are_summed_in_pairs_and_their_gradients_by_the_transpose():
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    kernels = sum_kernels(weight)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    large = F.conv2d(upsample(x), weight, padding=1)
    for i, (row, column) in enumerate(diffsiam.upsampling.PARITIES):
        padded = F.pad(x, (1 - column, column, 1 - row, row))
        torch.testing.assert_close(
            large[:, :, row::2, column::2], F.conv2d(padded, kernels[5 * i : 5 * (i + 1)])
        )
    other = torch.randn_like(kernels)
    torch.testing.assert_close((kernels * other).sum(), (weight * sum_kernel_gradients(other)).sum())


def test_frozen_weights_need_no_gradient_and_the_image_still_gets_its_own():
    x, conv = image(1, 128, 16, 16), nn.Conv2d(128, 8, 3, padding=1).requires_grad_(False)
    (ours,) = torch.autograd.grad(upsample_convolve(x, conv).square().sum(), x)
    (plain,) = torch.autograd.grad(apart(x, conv).square().sum(), x)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "x",
    [
        image(1, 64, 32, 32),  # narrow: what the products save is spent on the rest
        image(1, 256, 16, 16),  # few pixels: kernels are summed for nothing
        image(1, 128, 16, 16, dtype=torch.float64),
        torch.randn(1, 128, 16, 16).requires_grad_(),  # contiguous
    ],
)
def test_elsewhere_the_large_image_is_made(x):
    conv = nn.Conv2d(x.shape[1], 8, 3, padding=1).to(x.dtype)
    assert not small(x, conv)
    assert torch.equal(upsample_convolve(x, conv), apart(x, conv))


def test_the_reference_backend_makes_the_large_image():
    x, conv = image(1, 128, 16, 16), nn.Conv2d(128, 8, 3, padding=1)
    set_backend("reference")
    try:
        assert not small(x, conv)
    finally:
        set_backend("auto")


def test_blocks_and_convolutions_that_upsample_use_it(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "diffsiam.layers.upsample_convolve", lambda x, conv: calls.append(x.shape) or apart(x, conv)
    )
    time = torch.randn(1, 16)
    ResBlock(32, 32, 16, resample="up")(image(1, 32, 4, 4), time)
    ConvUp(32)(image(1, 32, 6, 6))
    ResBlock(32, 32, 16, resample="down")(image(1, 32, 8, 8), time)
    ResBlock(32, 32, 16)(image(1, 32, 10, 10), time)
    assert calls == [(1, 32, 4, 4), (1, 32, 6, 6)]
