"""The whole objective on the kernels is that on their references: eager, compiled, and over ten steps."""

import copy

import pytest
import torch
from cuda_cases import photos

from diffsiam.decoder import Decoder
from diffsiam.encoder import build_encoder
from diffsiam.objective import DiffSiam
from diffsiam.schedule import Schedule
from diffsiam.simsiam import SimSiam
from diffsiam.subsets import Subsets, balanced_ends
from diffsiam.unet import UNet, UNetConfig
from kernels import backend

SMALL = UNetConfig(32, (1, 2, 2), blocks=1, attention=(2,))
PX, DIM, N, BATCH, STEPS = 32, 64, 8, 16, 10


@pytest.fixture
def model(awaken) -> DiffSiam:
    frozen = awaken(UNet(SMALL)).eval().requires_grad_(False).to("cuda", memory_format=torch.channels_last)
    subsets = Subsets(balanced_ends(DIM, N), choice="time_tied", detach=True)
    simsiam = SimSiam(DIM, "mlp2", 32, 16)
    # Batch norms multiply rounding errors of a batch that they have never seen: their statistics rest.
    encoder = build_encoder("resnet10", PX, 16, DIM).eval()
    decoder = awaken(Decoder(SMALL, DIM), seed=1)
    schedule = Schedule().cuda()
    return DiffSiam(encoder, decoder, simsiam, frozen, schedule, subsets, simsiam_weight=0.1).cuda()


def batch(step: int = 0) -> tuple:
    """x_0, positions, seed and two views."""
    positions = torch.arange(step * BATCH, (step + 1) * BATCH, device="cuda")
    return photos(BATCH, PX), positions, 3, photos(BATCH, PX), photos(BATCH, PX)


def loss_and_gradients(model, arguments, name):
    backend.set_backend(name)
    losses = model(*arguments)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(losses.total, list(parameters.values()), allow_unused=True)
    return losses, {n: g for n, g in zip(parameters, gradients, strict=True) if g is not None}


def assert_same_gradients(found, expected, tolerance):
    assert found.keys() == expected.keys()
    total = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / max(gradient.norm(), 1e-2 * total)
        assert error <= tolerance, f"{name}: {error:.1e}"


def test_loss_and_gradients_are_the_same(model):
    arguments = batch()
    expected, gradients = loss_and_gradients(model, arguments, "reference")
    found, our_gradients = loss_and_gradients(model, arguments, "triton")
    assert torch.allclose(found.total, expected.total, rtol=1e-5)
    for ours, theirs in zip(found.recon, expected.recon, strict=True):
        assert torch.allclose(ours, theirs, rtol=2e-5)
    assert_same_gradients(our_gradients, gradients, 1e-4)


def test_half_precision_differs_from_full_by_its_rounding(model):
    arguments = batch()
    exact, gradients = loss_and_gradients(model, arguments, "reference")
    cosines, losses = {}, {}
    for name in ("reference", "triton"):
        with torch.autocast("cuda", torch.bfloat16):
            found, rounded = loss_and_gradients(model, arguments, name)
        losses[name] = ((found.total - exact.total) / exact.total).abs().item()
        flat = (torch.cat([g[n].flatten().double() for n in gradients]) for g in (rounded, gradients))
        cosines[name] = torch.cosine_similarity(*flat, dim=0).item()
    assert losses["triton"] <= max(5e-3, 2 * losses["reference"])
    assert 1 - cosines["triton"] <= max(1e-3, 2 * (1 - cosines["reference"]))


def test_compiled_networks_with_kernels_inside_give_the_same(model):
    arguments = batch()
    expected, gradients = loss_and_gradients(model, arguments, "triton")
    torch.compiler.reset()
    model.frozen.encode, model.frozen.decode = map(torch.compile, (model.frozen.encode, model.frozen.decode))
    model.encoder.compile()
    model.decoder.compile()
    found, our_gradients = loss_and_gradients(model, arguments, "triton")
    assert torch.allclose(found.total, expected.total, rtol=1e-5)
    assert_same_gradients(our_gradients, gradients, 1e-3)
    torch.compiler.reset()


def test_ten_steps_cost_the_same(model):
    def train(name):
        backend.set_backend(name)
        torch.manual_seed(0)
        ours = copy.deepcopy(model)
        optimizer = torch.optim.Adam(ours.parameters(), lr=1e-4)
        losses = []
        for step in range(STEPS):
            loss = ours(*batch(step)).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).tolist()

    reference, triton = train("reference"), train("triton")
    assert len(set(triton)) == STEPS
    for step, (a, b) in enumerate(zip(reference, triton, strict=True)):
        assert abs(a - b) <= 1e-5 * abs(a), f"step {step}: {a} and {b}"


def test_a_step_of_the_objective_never_waits_for_the_gpu(model, no_waiting):
    arguments = batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step():
        model(*arguments).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    backend.set_backend("triton")
    step()
    with no_waiting:
        step()
