"""Weighted reconstruction loss of thesis Eq. 3.11, in epsilon form.

The image carries the noise of level l (= t + k), the networks are told time t, and the weights are taken at t. Then

    eps*  = [(sqrt(abar_l) - sqrt(abar_t)) x_0 + sqrt(1 - abar_l) eps] / sqrt(1 - abar_t)
    x_0 - x_0_hat = sqrt(1 / SNR_t) (eps_hat - eps*),     eps_hat = eps_theta + s_t G

so lambda_t |eps* - eps_hat|^2 is Eq. 3.11 exactly; with l = t it is PDAE's loss (eps* = eps).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ReconLoss(NamedTuple):
    """Per-sample means over pixels, each (B,) float32; only ``loss`` carries a gradient (to g)."""

    loss: Tensor  # lambda_t mean |eps* - eps_hat|^2
    frozen: Tensor  # the same without g: the frozen model's own loss
    x_0_error: Tensor  # mean |x_0 - x_0_hat|^2 with g
    x_0_error_frozen: Tensor


def recon_target(x_0: Tensor, eps: Tensor, alpha_bar_level: Tensor, alpha_bar_time: Tensor) -> Tensor:
    """eps* of the module's formula; images (B, 3, H, W), the abar's (B, 1, 1, 1). Equals ``eps`` where level == time."""
    drift = (alpha_bar_level.sqrt() - alpha_bar_time.sqrt()) / (1 - alpha_bar_time).sqrt()
    gain = ((1 - alpha_bar_level) / (1 - alpha_bar_time)).sqrt()
    return drift * x_0 + gain * eps


def recon_loss(eps_theta: Tensor, g: Tensor, target: Tensor, shift: Tensor, weight: Tensor, snr: Tensor) -> ReconLoss:
    """Eq. 3.11 per sample.

    Args:
        eps_theta: frozen prediction (B, 3, H, W), any float dtype.
        g: decoder's gradient estimate G (B, 3, H, W).
        target: eps* (B, 3, H, W) float32.
        shift, weight, snr: s_t, lambda_t, SNR_t, each (B, 1, 1, 1) float32.
    """
    miss = target - eps_theta.float()
    residual = (miss - shift * g.float()).square().mean(dim=(1, 2, 3))
    frozen = miss.square().mean(dim=(1, 2, 3))
    lambda_t, per_snr = weight.flatten(), 1 / snr.flatten()
    return ReconLoss(lambda_t * residual, lambda_t * frozen, (per_snr * residual).detach(), per_snr * frozen)
