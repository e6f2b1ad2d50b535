"""The operations are ones that torch knows: schema, fake and autograd agree, and compiled graphs hold them
unbroken."""

import pytest
import torch
from kernel_cases import ALPHA_BAR, FAR, SHIFT, WEIGHT, photos
from torch.library import opcheck

from kernels.adagn_silu.op import _adagn_silu, _adagn_silu_backward, adagn_silu, add_adagn_silu
from kernels.noise_jump.op import _noise_jump, noise_jump
from kernels.recon_loss.op import _recon_loss, recon_loss
from kernels.subset_mask.op import _subset_mask, subset_mask

IMAGE = (3, 2, 3)
SPLIT = [1, 1, 2, 3]
LEVEL, TIME, K = [5, 900], [3, 850], [2, 3]


@pytest.fixture
def guarded_memory():
    """None here: opcheck also compares storage offsets, which the guards shift."""


def images(dtype, device, grad=True):
    x = (
        torch.randn(2, *IMAGE, dtype=torch.float32)
        .to(device, dtype)
        .contiguous(memory_format=torch.channels_last)
    )
    return x.requires_grad_(grad)


def indices(values, device):
    return torch.tensor(values[:2], device=device)


def tables(device):
    return [table.to(device) for table in (ALPHA_BAR, SHIFT, WEIGHT)]


def norm_parts(dtype, device):
    """x (B, 4, 2, 3), weight, bias, time and z, all trained."""
    x = torch.randn(2, 4, 2, 3).to(device, dtype).contiguous(memory_format=torch.channels_last)
    shapes = ((4,), (4,), (2, 8), (2, 8))
    return [
        part.requires_grad_() for part in (x, *(torch.randn(shape).to(device, dtype) for shape in shapes))
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
class TestOpcheck:
    @pytest.mark.parametrize("return_eps", [False, True])
    def test_noise_jump(self, dtype, return_eps, device):
        names = (
            indices(LEVEL, device),
            ALPHA_BAR.to(device),
            torch.tensor(7, device=device),
            indices(FAR, device),
        )
        for channels_last in (False, True):
            opcheck(_noise_jump, (photos(2, IMAGE).to(device), *names, dtype, channels_last, return_eps))

    @pytest.mark.parametrize("mode", ["hierarchical", "sequential"])
    def test_subset_mask(self, dtype, mode, device):
        z = torch.randn(2, 4).to(device, dtype).requires_grad_()
        opcheck(_subset_mask, (z, indices(K, device), torch.tensor(SPLIT, device=device), mode, True))

    @pytest.mark.parametrize("with_gradient", [False, True])
    def test_recon_loss(self, dtype, with_gradient, device):
        seed, positions = torch.tensor(7, device=device), indices(FAR, device)
        predictions = images(dtype, device, grad=False), images(dtype, device, grad=with_gradient)
        names = (indices(LEVEL, device), indices(TIME, device), *tables(device), seed, positions)
        opcheck(_recon_loss, (photos(2, IMAGE).to(device), *predictions, *names, with_gradient))

    def test_adagn_silu(self, dtype, device):
        x, *parameters = norm_parts(dtype, device)
        opcheck(_adagn_silu, (x, None, *parameters, 2, 1e-5))

    def test_adagn_silu_without_modulations(self, dtype, device):
        x, weight, bias, *_ = norm_parts(dtype, device)
        opcheck(_adagn_silu, (x, None, weight, bias, None, None, 2, 1e-5))

    def test_adagn_silu_of_a_sum(self, dtype, device):
        (x, *parameters), residual = norm_parts(dtype, device), norm_parts(dtype, device)[0]
        opcheck(_adagn_silu, (x, residual, *parameters, 2, 1e-5))

    @pytest.mark.parametrize(("needs_dx", "adds"), [(False, False), (True, False), (True, True)])
    def test_adagn_silu_backward(self, dtype, needs_dx, adds, device):
        parts = [part.detach() for part in norm_parts(dtype, device)]
        mean, rstd = torch.randn(2, 2, device=device), torch.rand(2, 2, device=device)
        dy = torch.ones_like(parts[0])
        opcheck(_adagn_silu_backward, (dy, dy if adds else None, *parts, mean, rstd, 2, needs_dx))


def a_little_step(x_0, level, time, positions, seed, k, split, z, g, weight, bias, *constants):
    """All four operations in a row, as a training step chains them."""
    x_level, _ = noise_jump(x_0, level, constants[0], seed, positions)
    z_bar = subset_mask(z, k, split, "hierarchical", True)
    modulation = z_bar.repeat(1, 2)[:, :6].contiguous()
    h = adagn_silu(x_level, 1, weight, bias, z=modulation)
    h, total = add_adagn_silu(h, g, 1, weight, bias, modulation)
    last, _ = add_adagn_silu(h, total, 1, weight, bias)  # of which only the norm is used
    losses = recon_loss(x_0, x_level.detach(), g * last, level, time, *constants, seed, positions)
    return losses.loss.mean(), losses.frozen


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_a_compiled_step_is_one_graph_and_gives_the_same(compiler, device):
    x_0, g = photos(2, IMAGE).to(device), images(torch.float32, device)
    z = torch.randn(2, 4, device=device, requires_grad=True)
    weight, bias = (torch.randn(3, device=device, requires_grad=True) for _ in range(2))
    places = (
        indices(LEVEL, device),
        indices(TIME, device),
        indices(FAR, device),
        torch.tensor(7, device=device),
    )
    arguments = (
        x_0,
        *places,
        indices(K, device),
        torch.tensor(SPLIT, device=device),
        z,
        g,
        weight,
        bias,
        *tables(device),
    )
    results = []
    for function in (a_little_step, torch.compile(a_little_step, fullgraph=True, backend=compiler)):
        loss, frozen = function(*arguments)
        results.append((loss, frozen, *torch.autograd.grad(loss, (z, g, weight, bias))))
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(eager, compiled, rtol=1e-5, atol=1e-7)
    torch.compiler.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_captured_graph_draws_the_noise_of_the_positions_it_finds():
    device = torch.device("cuda")
    x_0, level = photos(2, IMAGE).to(device), indices(LEVEL, device)
    alpha_bar, seed, positions = ALPHA_BAR.to(device), torch.tensor(7, device=device), indices(FAR, device)
    noise_jump(x_0, level, alpha_bar, seed, positions)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured, _ = noise_jump(x_0, level, alpha_bar, seed, positions)
    for _ in range(2):
        positions += 2
        graph.replay()
        assert torch.equal(captured, noise_jump(x_0, level, alpha_bar, seed, positions)[0])
