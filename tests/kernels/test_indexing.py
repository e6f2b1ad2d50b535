"""Offsets between samples are 64-bit: kernels reach samples that lie 2^31 elements and more apart.

The memory is a sparse file, of which only the touched pages exist. Kernels are launched as their operations
do it, but for one block of three samples that are 2^30 elements long.
"""

import pytest
import torch
import triton.language as tl
from kernel_cases import ALPHA_BAR, SHIFT, WEIGHT

from kernels.adagn_silu import kernel as adagn
from kernels.noise_jump.kernel import _noise_jump_kernel
from kernels.philox import STREAM_NOISE, normal
from kernels.recon_loss.kernel import _recon_loss_kernel
from kernels.subset_mask.kernel import _subset_mask_kernel

STRIDE = 2**30
SIZES = {torch.uint8: 1, torch.bfloat16: 2, torch.float32: 4}
BLOCK = 64
LEVEL = torch.tensor([10, 500, 900])
POSITIONS = torch.tensor([1, 2, 3])
SEED = torch.tensor(5)


@pytest.fixture
def far_apart(tmp_path, device):
    """Three rows of memory (3, STRIDE), zero where nothing was written."""
    if device.type != "cpu":
        pytest.skip("a GPU has no sparse memory")

    def far_apart(dtype=torch.float32):
        path = tmp_path / f"sparse{len(list(tmp_path.iterdir()))}"
        with path.open("wb") as file:
            file.truncate(3 * STRIDE * SIZES[dtype])
        return torch.from_file(str(path), shared=True, size=3 * STRIDE, dtype=dtype).view(3, STRIDE)

    return far_apart


def test_the_noise_jump(far_apart):
    x_0, out = far_apart(torch.uint8), far_apart()
    x_0[:, :BLOCK] = torch.arange(3 * BLOCK, dtype=torch.uint8).view(3, BLOCK)
    _noise_jump_kernel[(3,)](
        x_0, LEVEL, ALPHA_BAR, SEED, POSITIONS, out, out, STRIDE, STRIDE, 1, CHANNELS=1, FROM_BYTES=True,
        X_PACKED=True, OUT_PACKED=True, RETURN_EPS=False, STREAM=STREAM_NOISE, BLOCK=BLOCK,
    )  # fmt: skip
    a = ALPHA_BAR[LEVEL][:, None]
    clean, eps = x_0[:, :BLOCK].double() / 127.5 - 1, normal(5, POSITIONS, BLOCK, STREAM_NOISE)
    assert torch.allclose(out[:, :BLOCK].double(), a.sqrt() * clean + (1 - a).sqrt() * eps, atol=1e-5)


def test_the_subset_mask(far_apart):
    z, out = far_apart(), far_apart()
    z[:, :BLOCK] = torch.randn(3, BLOCK)
    subset_of, k = torch.arange(BLOCK) // 16 + 1, torch.tensor([1, 2, 3])
    _subset_mask_kernel[(3,)](z, k, subset_of, out, STRIDE, 1, OWN=False, BLOCK=BLOCK)
    assert torch.equal(out[:, :BLOCK], z[:, :BLOCK] * (subset_of <= k[:, None]))


def test_the_reconstruction_loss(far_apart):
    x_0, eps_theta, g, gradient = far_apart(torch.uint8), *(far_apart() for _ in range(3))
    for image in (eps_theta, g):
        image[:, :BLOCK] = torch.randn(3, BLOCK)
    partial = torch.empty(3, 1, 2)
    _recon_loss_kernel[(3,)](
        x_0, eps_theta, g, gradient, partial, LEVEL, LEVEL, ALPHA_BAR, SHIFT, WEIGHT, SEED, POSITIONS,
        STRIDE, STRIDE, 1, STRIDE, 1, 1, CHANNELS=1, FROM_BYTES=True, X_PACKED=True, EPS_THETA_PACKED=False,
        G_PACKED=True, WITH_GRADIENT=True, STREAM=STREAM_NOISE, BLOCK=BLOCK, ACC=tl.float32,
    )  # fmt: skip
    miss = normal(5, POSITIONS, BLOCK, STREAM_NOISE) - eps_theta[:, :BLOCK]
    shift, weight = SHIFT[LEVEL][:, None], WEIGHT[LEVEL][:, None]
    residual = miss - shift * g[:, :BLOCK]
    assert torch.allclose(partial[:, 0, 0].double(), residual.square().sum(1), rtol=1e-5)
    assert torch.allclose(gradient[:, :BLOCK].double(), -2 * weight * shift / STRIDE * residual, atol=1e-15)


def test_the_adaptive_group_norm(far_apart):
    channels, pixels = 8, STRIDE // 8
    x, y, dy, dx, total, dsum = (far_apart() for _ in range(6))
    values, upstream = torch.randn(3, BLOCK // 8, 8), torch.randn(3, BLOCK // 8, 8)
    x[:, :BLOCK], dy[:, :BLOCK] = values.flatten(1), upstream.flatten(1)
    dsum[:, :BLOCK] = torch.randn(3, BLOCK)
    one, zero = torch.ones(8), torch.zeros(8)
    per_group = [
        torch.full((3, 1), value) for value in (0.5, 2.0, 0.0, 0.0)
    ]  # mean, rstd, and no means to take off
    sums = [torch.empty(3, 1, 8) for _ in range(2)]
    tile = {"C": channels, "BLOCK_P": 8, "BLOCK_C": 8, "TILES": 1, "STAGES": 1, "ACC": tl.float32}
    rest = {"WIDTH": 8, "HAS_TIME": False, "HAS_Z": False, **tile}
    affine, sizes = (one, zero, one, one), (pixels, 1)
    adagn._adagn_stats_kernel[(3, 1)](x, x, total, *sums, *sizes, HAS_RESIDUAL=True, **tile)
    assert torch.equal(total[:, :BLOCK], 2 * x[:, :BLOCK])
    assert torch.allclose(sums[0][:, 0], 2 * values.mean(1), atol=1e-6)
    adagn._adagn_stats_kernel[(3, 1)](x, x, x, *sums, *sizes, HAS_RESIDUAL=False, **tile)
    assert torch.allclose(sums[0][:, 0], values.mean(1), atol=1e-6)
    adagn._adagn_apply_kernel[(3, 1)](x, *affine, *per_group[:2], y, *sizes, **rest)
    h = ((values - 0.5) * 2).requires_grad_()
    expected = torch.nn.functional.silu(h)
    (dh,) = torch.autograd.grad(expected, h, upstream)
    assert torch.allclose(y[:, :BLOCK], expected.flatten(1), atol=1e-6)
    adagn._adagn_sums_kernel[(3, 1)](dy, x, *affine, *per_group[:2], *sums, *sizes, **rest)
    assert torch.allclose(sums[0][:, 0], dh.sum(1), atol=1e-5)
    adagn._adagn_dx_kernel[(3, 1)](dy, x, *affine, *per_group, dsum, dx, *sizes, HAS_DSUM=True, **rest)
    assert torch.allclose(dx[:, :BLOCK], 2 * dh.flatten(1) + dsum[:, :BLOCK], atol=1e-5)
