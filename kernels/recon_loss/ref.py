"""Weighted reconstruction loss of thesis Eq. 3.11, in epsilon form.

The image carries the noise of level l (= t + k), networks are told time t, and weights are taken at t. Then

    eps*  = [(sqrt(abar_l) - sqrt(abar_t)) x_0 + sqrt(1 - abar_l) eps] / sqrt(1 - abar_t)
    x_0 - x_0_hat = sqrt(1 / SNR_t) (eps_hat - eps*),     eps_hat = eps_theta + s_t G

so lambda_t |eps* - eps_hat|^2 is Eq. 3.11 exactly; with l = t it is PDAE's loss (eps* = eps).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.noise_jump.ref import noise_for, to_unit_range
from kernels.philox import Seed


class ReconLoss(NamedTuple):
    """Per-sample means over pixels, each (B,) float32; only ``loss`` carries a gradient (to g)."""

    loss: Tensor  # lambda_t mean |eps* - eps_hat|^2
    frozen: Tensor  # the same without g: the frozen model's own loss
    x_0_error: Tensor  # mean |x_0 - x_0_hat|^2 with g
    x_0_error_frozen: Tensor


def recon_target(x_0: Tensor, eps: Tensor, alpha_bar_level: Tensor, alpha_bar_time: Tensor) -> Tensor:
    """eps* of the module's formula; images (B, C, H, W), the abar's (B, 1, 1, 1). Equals ``eps`` where level
    == time.

    The factors are computed in the dtype of the abar's (float64 keeps the drift exact where the roots nearly
    cancel).
    """
    drift = (alpha_bar_level.sqrt() - alpha_bar_time.sqrt()) / (1 - alpha_bar_time).sqrt()
    gain = ((1 - alpha_bar_level) / (1 - alpha_bar_time)).sqrt()
    return drift.to(x_0.dtype) * x_0 + gain.to(x_0.dtype) * eps


def weighted_error(
    eps_theta: Tensor, g: Tensor, target: Tensor, shift: Tensor, weight: Tensor, snr: Tensor
) -> ReconLoss:
    """Eq. 3.11 per sample, in the dtype of ``target``.

    Args:
        eps_theta: frozen prediction (B, C, H, W), any float dtype.
        g: decoder's gradient estimate G (B, C, H, W).
        target: eps* (B, C, H, W), float32 or float64.
        shift, weight, snr: s_t, lambda_t, SNR_t, each (B, 1, 1, 1) in the dtype of ``target``.
    """
    miss = target - eps_theta.to(target.dtype)
    residual = (miss - shift * g.to(target.dtype)).square().mean(dim=(1, 2, 3))
    frozen = miss.square().mean(dim=(1, 2, 3))
    lambda_t, per_snr = weight.flatten(), 1 / snr.flatten()
    return ReconLoss(lambda_t * residual, lambda_t * frozen, (per_snr * residual).detach(), per_snr * frozen)


def recon_loss(
    x_0: Tensor,
    eps_theta: Tensor,
    g: Tensor,
    level: Tensor,
    time: Tensor,
    alpha_bar: Tensor,
    shift: Tensor,
    weight: Tensor,
    seed: Seed,
    positions: Tensor,
    eps: Tensor | None = None,
) -> ReconLoss:
    """Eq. 3.11 per sample from what a step holds, in float32, or in float64 where g is.

    Args:
        x_0: uint8 (B, H, W, C) or float (B, C, H, W) in [-1, 1].
        eps_theta, g: predictions (B, C, H, W).
        level, time: (B,) int64, noise level of the image and time told to the networks.
        alpha_bar, shift, weight: (T,) tables of abar, s_t and lambda_t.
        seed, positions: names of the noise that the image carries.
        eps: that noise (B, C, H, W) where it is at hand; drawn again otherwise.
    """
    compute = torch.float64 if g.dtype == torch.float64 else torch.float32

    def at(table: Tensor, index: Tensor) -> Tensor:
        return table[index].double()[:, None, None, None]

    if eps is None:
        eps = noise_for(seed, positions, (g.shape[1], g.shape[2], g.shape[3]))
    a_level, a_time = at(alpha_bar, level), at(alpha_bar, time)
    x = x_0 if x_0.dtype == torch.float64 else to_unit_range(x_0)
    target = recon_target(x.to(compute), eps.to(compute), a_level, a_time)
    factors = (at(shift, time), at(weight, time), a_time / (1 - a_time))
    return weighted_error(eps_theta.detach(), g, target, *(factor.to(compute) for factor in factors))
