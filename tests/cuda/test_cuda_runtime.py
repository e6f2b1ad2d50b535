"""How the operations run: captured and replayed, compiled in one graph, without waiting, on their device."""

import pytest
import torch
from cuda_cases import ALPHA_BAR, levels, photos

from diffsiam.schedule import Schedule
from kernels.adagn_silu.op import adagn_silu
from kernels.noise_jump.op import noise_jump
from kernels.recon_loss.op import recon_loss
from kernels.subset_mask.op import subset_mask

BATCH, PX, CHANNELS, DIM, N = 8, 32, 64, 512, 64


class LittleStep:
    """All four operations in a row, forward and backward, with seed and positions in device tensors."""

    def __init__(self, device: str = "cuda"):
        schedule = Schedule()
        self.tables = [t.to(device) for t in (ALPHA_BAR, schedule.shift, schedule.weight)]
        self.x_0, self.level = photos(BATCH, PX).to(device), levels(BATCH).to(device)
        self.seed, self.positions = torch.tensor(5, device=device), torch.arange(BATCH, device=device)
        self.k = torch.arange(BATCH, device=device) * 7 % N + 1
        self.subset_of = torch.arange(DIM, device=device) * N // DIM + 1
        self.conv = torch.nn.Conv2d(3, CHANNELS, 3, padding=1, device=device)
        self.back = torch.nn.Conv2d(CHANNELS, 3, 3, padding=1, device=device)
        self.weight, self.bias = (torch.randn(CHANNELS, device=device).requires_grad_() for _ in range(2))
        self.z = torch.randn(BATCH, DIM, device=device).requires_grad_()
        self.leaves = [self.z, self.weight, self.bias, *self.conv.parameters(), *self.back.parameters()]

    def losses(self):
        x_level, _ = noise_jump(self.x_0, self.level, self.tables[0], self.seed, self.positions)
        z_bar = subset_mask(self.z, self.k, self.subset_of, "hierarchical", True)
        modulation = z_bar[:, : 2 * CHANNELS].contiguous()
        h = adagn_silu(self.conv(x_level), 32, self.weight, self.bias, modulation, modulation)
        rest = (self.level, self.level, *self.tables, self.seed, self.positions)
        return recon_loss(self.x_0, x_level.detach(), self.back(h), *rest)

    def step(self):
        losses = self.losses()
        return [*losses, *torch.autograd.grad(losses.loss.mean(), self.leaves)]


def warmed_up(little: LittleStep) -> LittleStep:
    """Compiled, and run on a side stream as captures demand."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            little.step()
    torch.cuda.current_stream().wait_stream(stream)
    return little


@pytest.fixture
def reproducible_convolutions():
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False


def test_a_replayed_step_is_the_step_of_the_seed_and_positions_it_finds(reproducible_convolutions):
    little = warmed_up(LittleStep())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = little.step()
    seen = []
    for _ in range(3):
        little.positions += BATCH
        little.seed += 1
        graph.replay()
        for replayed, eager in zip(captured, little.step(), strict=True):
            assert torch.allclose(replayed, eager, rtol=1e-4, atol=1e-6)
        seen.append(captured[1].clone())
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_replayed_noise_jump_gives_the_bits_of_an_eager_one():
    little = LittleStep()

    def jump():
        return noise_jump(little.x_0, little.level, little.tables[0], little.seed, little.positions)[0]

    jump()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = jump()
    for _ in range(3):
        little.positions += BATCH
        little.seed -= 2
        graph.replay()
        assert torch.equal(captured, jump())


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_step_is_one_graph_and_gives_the_same(mode):
    little = LittleStep()
    expected = little.step()
    torch.compiler.reset()
    compiled = torch.compile(little.losses, fullgraph=True, mode=mode)
    for _ in range(3):  # reduce-overhead captures at the second call
        torch.compiler.cudagraph_mark_step_begin()
        losses = compiled()
        gradients = torch.autograd.grad(losses.loss.mean(), little.leaves)
        for found, wanted in zip([*losses, *gradients], expected, strict=True):
            assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-5)
    torch.compiler.reset()


def test_no_operation_waits_for_the_gpu(no_waiting):
    little = warmed_up(LittleStep())
    with no_waiting:
        for _ in range(2):
            little.step()


def test_a_number_as_seed_makes_no_operation_wait(no_waiting):
    little = LittleStep()
    arguments = (little.x_0, little.level, little.tables[0], 2**63 + 5, little.positions)
    noise_jump(*arguments)
    with no_waiting:
        noise_jump(*arguments)


def test_operations_run_on_the_device_of_their_tensors_whichever_is_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    torch.manual_seed(0)
    here = LittleStep("cuda:0")
    torch.manual_seed(0)
    there = LittleStep("cuda:1")
    for a, b in zip(here.leaves, there.leaves, strict=True):
        b.data.copy_(a.data)
    there.x_0.copy_(here.x_0)
    with torch.cuda.device(0):
        for a, b in zip(here.step(), there.step(), strict=True):
            assert b.device.index == 1
            assert torch.allclose(a.cpu(), b.cpu(), rtol=1e-4, atol=1e-6)


def test_a_captured_step_keeps_no_pointer_to_memory_that_is_gone(reproducible_convolutions):
    little = warmed_up(LittleStep())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = little.step()
    graph.replay()
    first = [value.clone() for value in captured]
    torch.cuda.empty_cache()
    torch.full((64, 2**20), float("nan"), device="cuda")  # whoever reads memory it has given back reads this
    graph.replay()
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(captured, first, strict=True))
