"""DDIM inversion and sampling (arXiv 2010.02502), guided by G (PDAE): whole batches, deterministic."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffsiam.decoder import Decoder
from diffsiam.schedule import Schedule
from diffsiam.subsets import Subsets
from diffsiam.unet import UNet

Predict = Callable[[Tensor, Tensor], Tensor]  # x (B, 3, H, W), t (B,) -> eps_hat (B, 3, H, W)


def ddim_times(steps: int, moves: int) -> list[int]:
    """Kept times of ``moves`` DDIM moves, ascending from 0 to T - 1: the distinct floor(i (T - 1) / moves),
    as PDAE spaces them.
    """
    return sorted({i * (steps - 1) // moves for i in range(moves + 1)})


def unguided(frozen: UNet) -> Predict:
    """The frozen model's own eps_theta."""
    return lambda x, t: frozen(x, t).float()


def guided(
    frozen: UNet, decoder: Decoder, schedule: Schedule, subsets: Subsets, z: Tensor, coefficient: str = "ddim"
) -> Predict:
    """eps_theta + c_t G(x, z_bar, t), with z_bar masked to the subsets that time t was trained with (none
    masked where k is free of t).

    Args:
        z: (B, d), one row per image.
        coefficient: "ddim" = -sqrt(1 - abar_t), the score form of published samplers; "train" = s_t, the
            coefficient of the loss.
    """
    table = {"ddim": "shift_ddim", "train": "shift"}[coefficient]

    def predict(x: Tensor, t: Tensor) -> Tensor:
        features = frozen.encode(x, t)
        z_bar = subsets.mask_at(z, subsets.at_time(t)) if subsets.tied else z
        g = decoder(features, z_bar).float()
        return frozen.decode(features).float() + schedule.at(table, t) * g

    return predict


@torch.no_grad()
def ddim(x: Tensor, predict: Predict, schedule: Schedule, times: list[int], clamp: bool = True) -> Tensor:
    """Move x along ``times`` (Eq. 3.5): ascending inverts an image into x_T, descending samples an image from
    x_T.

    Args:
        x: (B, 3, H, W): the state at times[0].
        predict: eps_hat of a state.
        clamp: clip x_0_hat to [-1, 1] before each move, as published samplers do.

    Returns:
        The state at times[-1]; after a descent this is x_0 up to the noise of t = 0 (abar_0 = 0.9999).
    """
    for now, after in zip(times[:-1], times[1:], strict=True):
        t = torch.full((len(x),), now, dtype=torch.int64, device=x.device)
        x_0 = schedule.x_0_from_eps(x, predict(x, t), t)
        if clamp:
            x_0 = x_0.clamp(-1, 1)
        eps = schedule.eps_from_x_0(x, x_0, t)
        alpha_bar = schedule.alpha_bar[after].float()
        x = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
    return x


def invert(x_0: Tensor, predict: Predict, schedule: Schedule, moves: int) -> Tensor:
    """x_T of clean images (B, 3, H, W) in [-1, 1] by ``moves`` DDIM moves upwards."""
    return ddim(x_0, predict, schedule, ddim_times(schedule.steps, moves))


def sample(x_T: Tensor, predict: Predict, schedule: Schedule, moves: int) -> Tensor:
    """x_0 (B, 3, H, W) in [-1, 1] of x_T by ``moves`` DDIM moves downwards."""
    return ddim(x_T, predict, schedule, ddim_times(schedule.steps, moves)[::-1]).clamp(-1, 1)


def to_uint8(x: Tensor) -> Tensor:
    """float (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3)."""
    return (x.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
