"""Algorithm 1 of the thesis: what one batch costs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffsiam.decoder import Decoder
from diffsiam.schedule import Schedule
from diffsiam.simsiam import SimSiam, encode_views
from diffsiam.subsets import Draw, Subsets
from diffsiam.unet import UNet
from kernels.noise_jump.op import noise_jump
from kernels.noise_jump.ref import to_unit_range
from kernels.recon_loss.op import recon_loss
from kernels.recon_loss.ref import ReconLoss


class Losses(NamedTuple):
    """What a batch gives: the scalar to minimise, and per-sample values for the metrics (absent parts are
    None).
    """

    total: Tensor  # 0-d, Eq. 3.12 with its two weights
    draw: Draw | None
    recon: ReconLoss | None  # each (B,)
    simsiam: Tensor | None  # (B,)
    z: Tensor  # (B, d) features, detached: of the clean images, or of view 1 where only SimSiam is trained


class Prediction(NamedTuple):
    """One noised batch and both networks' answers, images (B, 3, H, W)."""

    x_level: Tensor
    eps: Tensor | None  # the noise in x_level, where it exists in memory (the kernels never store it)
    eps_theta: Tensor
    g: Tensor


class DiffSiam(nn.Module):
    """The trainable part (encoder f, decoder g, SimSiam head) and its loss. The frozen U-Net is used, never
    owned.

    Args:
        encoder: f, images in [-1, 1] -> z (B, d).
        decoder: g, or None when only SimSiam is trained.
        simsiam: head, or None when its weight is 0 (then no view is ever encoded).
        frozen: u_theta in eval mode without gradients, or None when only SimSiam is trained.
        schedule, subsets: the constants of the method.
        loss_weight, simsiam_weight: factors of Eq. 3.12's two terms.
        time_told: "t" tells the networks t while the image has level t + k (thesis Eq. 3.11); "t_plus_k"
            tells them the truth, and takes lambda, w and the target there too.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: Decoder | None,
        simsiam: SimSiam | None,
        frozen: UNet | None,
        schedule: Schedule,
        subsets: Subsets,
        loss_weight: float = 1.0,
        simsiam_weight: float = 1.0,
        time_told: str = "t",
    ):
        super().__init__()
        self.encoder, self.decoder, self.simsiam = encoder, decoder, simsiam
        self._outside = (
            frozen,
            schedule,
        )  # a tuple keeps them out of parameters, checkpoints and the optimizer
        self.subsets = subsets
        self.loss_weight, self.simsiam_weight, self.time_told = loss_weight, simsiam_weight, time_told

    @property
    def frozen(self) -> UNet:
        frozen = self._outside[0]
        assert frozen is not None, "this objective has no diffusion loss"
        return frozen

    @property
    def schedule(self) -> Schedule:
        return self._outside[1]

    def forward(
        self,
        x_0: Tensor,
        positions: Tensor,
        seed: int,
        view_1: Tensor | None = None,
        view_2: Tensor | None = None,
    ) -> Losses:
        """Loss of a batch (Algorithm 1, Eq. 3.12).

        Args:
            x_0, view_1, view_2: uint8 (B, H, W, 3); the views only where SimSiam is trained.
            positions: (B,) int64, positions in the global stream: with ``seed`` they name t, k and the noise.

        Raises:
            ValueError: a view is missing though there is a head, or there is neither a decoder nor a head.
        """
        total = torch.zeros((), device=x_0.device)
        z = draw = recon = similarity = None
        if self.decoder is not None:
            z = self.encoder(to_unit_range(x_0))
            draw = self.subsets.draw(seed, positions)
            recon = self.diffusion_loss(x_0, z, draw, positions, seed)
            total = total + self.loss_weight * recon.loss.mean()
        if self.simsiam is not None:
            if view_1 is None or view_2 is None:
                raise ValueError(
                    "SimSiam compares two views: give view_1 and view_2, or build without a head"
                )
            z_1, z_2 = encode_views(self.encoder, to_unit_range(view_1), to_unit_range(view_2))
            similarity = self.simsiam(z_1, z_2)
            total = total + self.simsiam_weight * similarity.mean()
            z = z_1 if z is None else z
        if z is None:
            raise ValueError("nothing to compute: this model has neither a decoder nor a SimSiam head")
        return Losses(total, draw, recon, similarity, z.detach())

    def diffusion_loss(self, x_0: Tensor, z: Tensor, draw: Draw, positions: Tensor, seed: int) -> ReconLoss:
        """Eq. 3.11 for features z (B, d) at the drawn t, level and k."""
        time = draw.level if self.time_told == "t_plus_k" else draw.t
        x = self.predict(x_0, self.subsets.mask_at(z, draw.k), draw.level, time, positions, seed)
        tables = (self.schedule.alpha_bar, self.schedule.shift, self.schedule.weight)
        return recon_loss(x_0, x.eps_theta, x.g, draw.level, time, *tables, seed, positions, x.eps)

    def predict(
        self, x_0: Tensor, z_bar: Tensor, level: Tensor, time: Tensor, positions: Tensor, seed: int
    ) -> Prediction:
        """Noise x_0 to ``level``, run the frozen encoder once, and both decoders on its features told
        ``time``.
        """
        assert self.decoder is not None
        x_level, eps = noise_jump(x_0, level, self.schedule.alpha_bar, seed, positions)
        with torch.no_grad():
            features = self.frozen.encode(x_level, time)
            eps_theta = self.frozen.decode(features)
        return Prediction(x_level, eps, eps_theta, self.decoder(features, z_bar))


class Diffusion(nn.Module):
    """Pretraining of u_theta by Eq. 3.4 in its usual epsilon form, mean |eps - eps_theta(x_t, t)|^2 with t ~
    U{0..T-1} (DDPM, Eq. 14).
    """

    def __init__(self, unet: UNet, schedule: Schedule):
        super().__init__()
        self.unet = unet
        self._outside = (schedule,)

    @property
    def schedule(self) -> Schedule:
        return self._outside[0]

    def forward(self, x_0: Tensor, positions: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """uint8 x_0 (B, H, W, 3) -> per-sample loss (B,) and t (B,)."""
        t = Subsets([1], jump=False, steps=self.schedule.steps).draw(seed, positions).t
        x_t, eps = noise_jump(x_0, t, self.schedule.alpha_bar, seed, positions, return_eps=True)
        assert eps is not None
        return (self.unet(x_t, t).float() - eps).square().mean(dim=(1, 2, 3)), t
