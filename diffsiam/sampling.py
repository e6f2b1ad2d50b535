"""DDIM inversion and sampling (arXiv 2010.02502), guided by G (PDAE): whole batches, deterministic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffsiam.decoder import Decoder
from diffsiam.schedule import Schedule
from diffsiam.subsets import Subsets
from diffsiam.unet import UNet

Predict = Callable[[Tensor, Tensor], Tensor]  # x (B, 3, H, W), t (B,) -> eps_hat (B, 3, H, W)
Spacing = Literal["ends", "strided"]
Coefficient = Literal["ddim", "train"]
SHIFT = {"ddim": "shift_ddim", "train": "shift"}  # tables of the schedule


@dataclass(frozen=True)
class Recipe:
    """How images are inverted and sampled. The thesis leaves all of it open but the step itself.

    Attributes:
        inversion_moves, moves: DDIM moves up to x_T and down again, one pass of the networks each.
        spacing: see :func:`moves_up`.
        coefficient: see :func:`guided`.
        clamp: clip x_0_hat to [-1, 1] before each move, as published samplers do and Algorithms 2, 3 do not.
        mask: which subsets the decoder sees at time t. "auto": those it was trained with at t, or the whole z
            where k was free of t; "bins": those of the time's bin in any case (DiTi's equal bins where k was
            free); "none": the whole z at all times (Algorithms 2 and 3 as printed).
        guided_inversion: z guides the way up too, as in PDAE and DiTi; the thesis inverts "through the
            pre-trained DM", which may mean either.
        x_T: "inverted" from the image, or "random": drawn, so that the image is its z alone.
        scale: guidance scale, a factor of G. 1 is what G was trained for; more weighs z against what x_t
            already shows, as p(z | x_t)^scale would (classifier guidance, arXiv 2105.05233).
    """

    inversion_moves: int = 100
    moves: int = 100
    spacing: Spacing = "ends"
    coefficient: Coefficient = "ddim"
    clamp: bool = True
    mask: Literal["auto", "bins", "none"] = "auto"
    guided_inversion: bool = True
    x_T: Literal["inverted", "random"] = "inverted"
    scale: float = 1.0


class Move(NamedTuple):
    """One DDIM move: the networks are asked once, at t, where the state has ``alpha_bar``."""

    t: int
    alpha_bar: float
    after: float  # alpha_bar of the state it leads to


def ddim_times(steps: int, moves: int) -> list[int]:
    """Kept times of ``moves`` DDIM moves, ascending from 0 to T - 1: the distinct floor(i (T - 1) / moves),
    as PDAE spaces them.
    """
    return sorted({i * (steps - 1) // moves for i in range(moves + 1)})


def strided_times(steps: int, moves: int) -> list[int]:
    """Times asked by ``moves`` moves of equal stride, 0, s, 2 s, ... with s = T // moves; a few more than
    ``moves`` where it does not divide T.
    """
    return list(range(0, steps, max(1, steps // moves)))


def moves_up(schedule: Schedule, moves: int, spacing: Spacing = "ends") -> list[Move]:
    """The way from an image to x_T.

    "ends" keeps the first and the last time (PDAE today): the image counts as the state of t = 0, and x_T is
    the state of T - 1. "strided" (DiTi, DiffAE, PDAE before 2023): the image is asked about at t = 0 all the
    same, but x_T is the last predicted noise (alpha_bar = 0).
    """
    return _path(schedule, moves, spacing, [*_table(schedule), 0.0], up=True)


def moves_down(schedule: Schedule, moves: int, spacing: Spacing = "ends") -> list[Move]:
    """The way from x_T to an image, see :func:`moves_up`: "ends" stops at the state of t = 0 (abar_0 =
    0.9999), "strided" makes one more move, from t = 0 to alpha_bar = 1.
    """
    return _path(schedule, moves, spacing, [*_table(schedule), 1.0], up=False)


def _path(schedule: Schedule, moves: int, spacing: Spacing, alpha_bar: list[float], up: bool) -> list[Move]:
    """``alpha_bar[-1]`` is the end that the strided spacing goes to beyond its times."""
    if not 1 <= moves <= schedule.steps:
        raise ValueError(f"{moves} moves over {schedule.steps} times: choose 1 to {schedule.steps}")
    if spacing == "ends":
        states = ddim_times(schedule.steps, moves)
        states = states if up else states[::-1]
    else:
        times = strided_times(schedule.steps, moves)
        states = [*(times if up else times[::-1]), -1]
    return [
        Move(now, alpha_bar[now], alpha_bar[after])
        for now, after in zip(states[:-1], states[1:], strict=True)
    ]


def _table(schedule: Schedule) -> list[float]:
    return schedule.alpha_bar.tolist()


def unguided(frozen: UNet) -> Predict:
    """The frozen model's own eps_theta."""
    return lambda x, t: frozen(x, t).float()


def guided(
    frozen: UNet,
    decoder: Decoder,
    schedule: Schedule,
    subsets: Subsets,
    z: Tensor,
    coefficient: Coefficient = "ddim",
    scale: float = 1.0,
) -> Predict:
    """eps_theta + scale c_t G(x, z_bar, t), with z_bar masked to the subsets that time t was trained with
    (none masked where k is free of t).

    Args:
        z: (B, d), one row per image.
        coefficient: "ddim" = -sqrt(1 - abar_t), the score form of published samplers; "train" = s_t, the
            coefficient of the loss (w_t of Eq. 3.11 in epsilon form).
        scale: see :class:`Recipe`.
    """

    def predict(x: Tensor, t: Tensor) -> Tensor:
        features = frozen.encode(x, t)
        z_bar = subsets.mask_at(z, subsets.at_time(t)) if subsets.tied else z
        g = decoder(features, z_bar).float()
        return frozen.decode(features).float() + scale * schedule.at(SHIFT[coefficient], t) * g

    return predict


@torch.no_grad()
def ddim(x: Tensor, predict: Predict, path: Sequence[Move], clamp: bool = True) -> Tensor:
    """Move x along ``path``, each time by Eq. 3.5 (Algorithms 2 and 3: from x_{t_i} to x_{t_{i-1}}):

        x_0_hat = (x - sqrt(1 - abar_t) eps_hat) / sqrt(abar_t)
        x       = sqrt(abar') x_0_hat + sqrt(1 - abar') (x - sqrt(abar_t) x_0_hat) / sqrt(1 - abar_t)

    Args:
        x: (B, 3, H, W): the state where the path begins.
        predict: eps_hat of a state.
        clamp: clip x_0_hat to [-1, 1].

    Returns:
        The state where it ends.
    """
    for move in path:
        t = torch.full((len(x),), move.t, dtype=torch.int64, device=x.device)
        eps = predict(x, t)
        x_0 = (x - sqrt(1 - move.alpha_bar) * eps) / sqrt(move.alpha_bar)
        if clamp:
            x_0 = x_0.clamp(-1, 1)
            eps = (x - sqrt(move.alpha_bar) * x_0) / sqrt(1 - move.alpha_bar)
        x = sqrt(move.after) * x_0 + sqrt(1 - move.after) * eps
    return x


def invert(x_0: Tensor, predict: Predict, schedule: Schedule, moves: int) -> Tensor:
    """x_T of clean images (B, 3, H, W) in [-1, 1] by ``moves`` DDIM moves upwards."""
    return ddim(x_0, predict, moves_up(schedule, moves))


def sample(x_T: Tensor, predict: Predict, schedule: Schedule, moves: int) -> Tensor:
    """x_0 (B, 3, H, W) in [-1, 1] of x_T by ``moves`` DDIM moves downwards."""
    return ddim(x_T, predict, moves_down(schedule, moves)).clamp(-1, 1)


def to_uint8(x: Tensor) -> Tensor:
    """float (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3)."""
    return (x.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
