"""The reconstruction loss and the subset mask at the sizes of the presets."""

import itertools

import pytest
import torch
from cuda_cases import (
    ALPHA_BAR,
    BATCH,
    DTYPES,
    LAYOUTS,
    PX,
    SEED,
    assert_close,
    laid,
    levels,
    photos,
    positions,
)

from diffsiam.schedule import Schedule
from kernels.noise_jump.ref import to_unit_range
from kernels.recon_loss import ref
from kernels.recon_loss.op import recon_loss
from kernels.subset_mask import ref as mask_ref
from kernels.subset_mask.op import subset_mask

ROUNDING = {"fp32": (1e-5, 1e-6), "bf16": (2.0**-7, 2.0**-8)}


@pytest.fixture
def tables():
    schedule = Schedule()
    return [table.cuda() for table in (ALPHA_BAR, schedule.shift, schedule.weight)]


def predictions(dtype: str, layout: str) -> list[torch.Tensor]:
    shape = (BATCH, 3, PX, PX)
    return [laid(torch.randn(shape, device="cuda").to(DTYPES[dtype]), layout) for _ in range(2)]


def run(function, x_0, eps_theta, g, rest, dtype=None):
    """Losses, and the gradient of g for an upstream gradient that differs by sample."""
    g = g.detach().to(dtype or g.dtype).requires_grad_()
    losses = function(x_0, eps_theta, g, *rest)
    upstream = torch.linspace(-1.3, 2.1, len(g), device="cuda").to(losses.loss.dtype)
    return losses, torch.autograd.grad(losses.loss, g, upstream)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("source", ["bytes", "channels_last"])
def test_the_loss_and_its_gradient_are_equation_3_11(dtype, layout, source, tables):
    x_0 = photos()
    given = x_0 if source == "bytes" else laid(to_unit_range(x_0), source)
    time = levels().clamp(max=935)
    rest = (time + torch.arange(BATCH, device="cuda") * 2, time, *tables, SEED, positions())
    eps_theta, g = predictions(dtype, layout)
    losses, gradient = run(recon_loss, given, eps_theta, g, rest)
    exact, exact_gradient = run(ref.recon_loss, given, eps_theta, g, rest, torch.float64)
    for name, value in losses._asdict().items():
        assert value.dtype == torch.float32
        assert torch.allclose(value.double(), getattr(exact, name), rtol=1e-5, atol=0), name
    assert gradient.dtype == DTYPES[dtype]
    assert gradient.is_contiguous(memory_format=LAYOUTS[layout])
    for sample in range(BATCH):
        assert_close(f"sample {sample}", gradient[sample], exact_gradient[sample], *ROUNDING[dtype])


def test_five_losses_are_one(tables):
    x_0, (eps_theta, g) = photos(), predictions("bf16", "channels_last")
    rest = (levels(), levels(), *tables, SEED, positions())
    (first, first_gradient), *others = [run(recon_loss, x_0, eps_theta, g, rest) for _ in range(5)]
    for losses, gradient in others:
        assert torch.equal(gradient, first_gradient)
        assert all(torch.equal(a, b) for a, b in zip(losses, first, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("mode", "detach"), itertools.product(("hierarchical", "sequential"), (False, True)))
@pytest.mark.parametrize(("dim", "n"), [(512, 64), (768, 48), (2048, 64)])
def test_the_mask_and_its_gradient_are_the_reference_s_bits(dtype, mode, detach, dim, n):
    subset_of = torch.arange(dim, device="cuda") * n // dim + 1
    k = torch.randint(1, n + 1, (128,), device="cuda")
    z, upstream = (torch.randn(128, dim, device="cuda").to(dtype) for _ in range(2))
    z[3, 5], z[4, dim - 1] = float("nan"), float("inf")
    results = []
    for function in (subset_mask, mask_ref.subset_mask):
        leaf = z.clone().requires_grad_()
        z_bar = function(leaf, k, subset_of, mode, detach)
        results.append((z_bar, *torch.autograd.grad(z_bar, leaf, upstream)))
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
