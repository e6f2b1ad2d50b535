"""The noise schedule and the algebra between its epsilon and x_0 forms.

Indices are 0-based: index ``t`` in 0..T-1 is the papers' t + 1, and abar_{-1} := 1. Everything is computed in
float64 once; ``at`` casts to float32 and gathers on the device of ``t``, so no Python number enters a step.

Epsilon and x_0 forms of the compensated prediction are one thing (PDAE, arXiv 2212.12990, Eq. 8-12), for x
noised to time t:

    eps_hat = eps_theta + s_t G             s_t = -sqrt(alpha_t) (1 - abar_{t-1}) / sqrt(1 - abar_t)
    x_0_hat = u_theta + w_t G               w_t = -s_t sqrt(1 - abar_t) / sqrt(abar_t)
                                                = (1 - abar_{t-1}) / sqrt(abar_{t-1})
    |x_0 - x_0_hat|^2 = |eps - eps_hat|^2 / SNR_t,  hence  lambda^{x0}_t = SNR_t lambda^{eps}_t

The epsilon form is the safe one in finite precision (w_999 = 155.8, lambda^{x0}_999 = 1.5e-5): losses are
computed there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Schedule(nn.Module):
    """Linear betas ``beta_start .. beta_end`` over ``steps`` steps (DDPM), with PDAE's weights.

    Args:
        steps: T, number of noise levels.
        beta_start, beta_end: first and last beta, inclusive.
        gamma: exponent of lambda_t = SNR_t^gamma / (1 + SNR_t) (PDAE uses 0.1).

    Float64 attributes, each (T,): ``alpha_bar``, ``alpha_bar_prev``, ``snr``, ``shift`` (s_t), ``shift_ddim``
    (-sqrt(1 - abar_t), the score form used by DDIM sampling), ``strength`` (w_t), ``weight`` (lambda_t,
    epsilon form), ``weight_x0``.
    """

    alpha_bar: Tensor
    alpha_bar_prev: Tensor
    snr: Tensor
    shift: Tensor
    shift_ddim: Tensor
    strength: Tensor
    weight: Tensor
    weight_x0: Tensor

    def __init__(
        self, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, gamma: float = 0.1
    ):
        super().__init__()
        self.steps = steps
        beta = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - beta, dim=0)
        alpha_bar_prev = torch.cat((torch.ones(1, dtype=torch.float64), alpha_bar[:-1]))
        snr = alpha_bar / (1 - alpha_bar)
        weight = snr**gamma / (1 + snr)
        self._keep("alpha_bar", alpha_bar)
        self._keep("alpha_bar_prev", alpha_bar_prev)
        self._keep("snr", snr)
        self._keep("shift", -(1 - beta).sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar).sqrt())
        self._keep("shift_ddim", -(1 - alpha_bar).sqrt())
        self._keep("strength", (1 - alpha_bar_prev) / alpha_bar_prev.sqrt())
        self._keep("weight", weight)
        self._keep("weight_x0", snr * weight)

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def at(self, name: str, t: Tensor) -> Tensor:
        """The float32 value of a table at each ``t`` (B,) int64, shaped (B, 1, 1, 1) to broadcast over
        images.
        """
        table: Tensor = getattr(self, name)
        return table[t].float()[:, None, None, None]

    def x_0_from_eps(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t), for images (B, 3, H, W) at times (B,)."""
        alpha_bar = self.at("alpha_bar", t)
        return (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()

    def eps_from_x_0(self, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t), the inverse of :meth:`x_0_from_eps`."""
        alpha_bar = self.at("alpha_bar", t)
        return (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
