"""Training on the kernels is training on their references."""

import copy

import torch
from kernel_cases import assert_close
from torch import nn

from diffsiam.decoder import Decoder
from diffsiam.layers import ResBlock
from diffsiam.objective import DiffSiam
from diffsiam.schedule import Schedule
from diffsiam.subsets import Subsets
from diffsiam.unet import UNet, UNetConfig
from kernels import backend
from kernels.adagn_silu import op

SMALLEST = UNetConfig(4, (1,), blocks=1, attention=())
PX, DIM, BATCH, STEPS = 4, 6, 1, 10


class Encoder(nn.Module):
    """A linear f."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * PX * PX, DIM)

    def forward(self, x):
        return self.linear(x.flatten(1))


def losses_of_ten_steps(model: nn.Module, name: str, photos: torch.Tensor) -> list[float]:
    backend.set_backend(name)
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for step in range(STEPS):
        positions = torch.arange(step * BATCH, (step + 1) * BATCH, device=photos.device)
        loss = model(photos[positions % len(photos)], positions, 3).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_networks_whose_norms_add_sums_give_what_their_references_give(awaken, device, monkeypatch):
    config = UNetConfig(4, (1, 1), blocks=2, attention=())
    frozen, decoder = awaken(UNet(config)).to(device), awaken(Decoder(config, DIM), seed=1).to(device)
    x = torch.randn(1, 3, PX, PX).contiguous(memory_format=torch.channels_last).to(device)
    time, z_bar = torch.tensor([70], device=device), torch.randn(1, DIM, device=device)
    sums = []
    kernel = op._adagn_silu
    monkeypatch.setattr(op, "_adagn_silu", lambda *a: sums.append(a[1] is not None) or kernel(*a))

    def run(name):
        backend.set_backend(name)
        features = frozen.encode(x, time)
        results = (frozen.decode(features), decoder(features, z_bar), *features.skips)
        weights = [*frozen.parameters(), *decoder.parameters()]
        upstream = [torch.linspace(-1, 1, r.numel(), device=device).view_as(r) for r in results]
        return *results, *torch.autograd.grad(results, weights, upstream)

    for found, expected in zip(run("triton"), run("reference"), strict=True):
        assert_close(found, expected, 1e-4, 1e-4)
    blocks = [m for network in (frozen, decoder) for m in network.modules() if isinstance(m, ResBlock)]
    assert sum(sums) == sum(block.defers for block in blocks) == 8


def test_ten_steps_cost_the_same(awaken, device):
    frozen = awaken(UNet(SMALLEST)).eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    decoder = awaken(Decoder(SMALLEST, DIM), seed=1)
    subsets = Subsets([2, 4, 6], detach=True)
    model = DiffSiam(Encoder(), decoder, None, frozen, Schedule(), subsets).to(device)
    model._outside[1].to(device)
    photos = torch.randint(0, 256, (6, PX, PX, 3), dtype=torch.uint8).to(device)
    reference, ours = (losses_of_ten_steps(model, name, photos) for name in ("reference", "triton"))
    assert all(abs(a - b) <= 1e-5 * abs(a) for a, b in zip(reference, ours, strict=True))
    assert len(set(ours)) == STEPS
