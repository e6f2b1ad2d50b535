"""Sheets drawn while training: what the decoder adds to the frozen model, what a diffusion model samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffsiam.encoder import encode_images
from diffsiam.evaluation.profile import eval_noise
from diffsiam.evaluation.swap import evaluating
from diffsiam.objective import DiffSiam
from diffsiam.sampling import sample, to_uint8, unguided
from diffsiam.schedule import Schedule
from diffsiam.unet import UNet
from engine.sheet import sheet
from kernels.noise_jump.ref import to_unit_range

BATCH = 64


@torch.no_grad()
def reconstruction_grid(model: DiffSiam, x_0: Tensor, times: Sequence[int], seed: int) -> Image.Image:
    """One row an image: x_0 (framed), then for each time t the noised x_{t+k}, u alone, and u + w g.

    k is the subset of time t, or n where k is independent of t; without the noise jump the image is x_t.

    Args:
        x_0: (N, px, px, 3) uint8.
        times: times t, each in 0..``model.subsets.times`` - 1.
        seed: names the noise.
    """
    z = encode_images(model.encoder, to_unit_range(x_0))
    columns, titles = [x_0.cpu()], ["x_0"]
    assert model.decoder is not None, "a model without decoder reconstructs nothing"
    with evaluating(model.decoder):
        for time in times:
            batches = zip(x_0.split(BATCH), z.split(BATCH), strict=True)
            parts = [_at_time(model, *batch, time, seed) for batch in batches]
            columns += [torch.cat(images).cpu() for images in zip(*parts, strict=True)]
            titles += [f"x at {_level(model, time)}", f"u at {time}", "u + w g"]
    images = torch.stack(columns, dim=1).numpy()
    return sheet(images, column_titles=titles, framed=[(row, 0) for row in range(len(images))])


def _subset(model: DiffSiam, time: int) -> int:
    return int(model.subsets.at_time(torch.tensor([time])))


def _level(model: DiffSiam, time: int) -> int:
    return time + _subset(model, time) if model.subsets.jump else time


def _at_time(model: DiffSiam, x_0: Tensor, z: Tensor, time: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """x_{t+k}, u and u + w g at one time, uint8 (B, px, px, 3) each."""

    def full(value: int) -> Tensor:
        return torch.full((len(x_0),), value, dtype=torch.int64, device=x_0.device)

    level = full(_level(model, time))
    told = level if model.time_told == "t_plus_k" else full(time)
    z_bar = model.subsets.mask_at(z, full(_subset(model, time)))
    positions = torch.arange(len(x_0), device=x_0.device)
    out = model.predict(x_0, z_bar, level, told, positions, seed)
    eps_theta = out.eps_theta.float()
    eps_hat = eps_theta + model.schedule.at("shift", told) * out.g.float()
    u, guided = (model.schedule.x_0_from_eps(out.x_level, eps, told) for eps in (eps_theta, eps_hat))
    return to_uint8(out.x_level), to_uint8(u), to_uint8(guided)


@torch.no_grad()
def sample_grid(unet: UNet, schedule: Schedule, px: int, n: int, seed: int, moves: int = 50) -> Image.Image:
    """n images that the model makes of the noise named by ``seed``, by ``moves`` DDIM moves."""
    device = next(unet.parameters()).device
    with evaluating(unet):
        x = torch.cat(
            [
                sample(eval_noise(seed, positions, px, px), unguided(unet), schedule, moves)
                for positions in torch.arange(n, device=device).split(BATCH)
            ]
        )
    images = to_uint8(x).cpu().numpy()
    columns = int(np.ceil(np.sqrt(n)))
    paper = np.full((-n % columns, px, px, 3), 255, dtype=np.uint8)
    return sheet(np.concatenate((images, paper)).reshape(-1, columns, px, px, 3))
