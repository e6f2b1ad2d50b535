"""What the loop trains: the representation (DiffSiam and its baselines) or the diffusion model it needs.

A task says how to build its module, what a batch costs, what to measure and what to draw. The loop is the
same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffsiam.evaluation.held_out import held_out_loss
from diffsiam.evaluation.swap import causal_effect
from diffsiam.objective import DiffSiam, Diffusion, Losses
from diffsiam.unet import UNet
from diffsiam.weights import Parts, save_unet
from engine.build import build_diffusion, build_model, build_schedule, build_subsets
from engine.config import Config
from engine.metrics import Metrics, Record, feature_std
from engine.published import image_contract
from engine.report.grids import reconstruction_grid, sample_grid
from engine.step import Policy
from kernels.noise_jump.ref import to_unit_range

Batch = Mapping[str, Tensor]
BANDS = 10  # of the time axis, for the loss by timestep
SAMPLING_MOVES = 50
CPU_EFFECT_PIXELS = 64 * 32**2  # subsets x pixels up to which a CPU measures the causal effect of each subset


class Task(Protocol):
    """What the loop needs to know.

    Attributes:
        views: whether batches carry two augmented views.
        headline: metrics that the progress bar shows.
    """

    views: bool
    headline: tuple[str, ...]

    def build(self) -> nn.Module:
        """A fresh module on the CPU, the same every time."""

    def loss(self, forward: Callable[..., Any], batch: Batch, metrics: Metrics | None = None) -> Tensor:
        """The 0-d loss of a batch, its parts added to ``metrics`` on the device."""

    def gradient_norms(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Norms to log now and then, 0-d each."""

    def derived(self, record: Record) -> Record:
        """Further values computed from flushed means."""

    def draw(self, average: nn.Module, images: Tensor, path: Path) -> Record:
        """Write the grid of fixed images (N, px, px, 3) uint8 with the averaged weights; returns values
        measured on the way.
        """

    def export(self, average: nn.Module, run_dir: Path) -> None:
        """Write what other runs use, when training is done."""


class Representation:
    """Thesis Algorithm 1 and its baselines.

    Args:
        frozen: the diffusion model as it runs.
        boundaries: of the subsets, measured for choice "profile".
        parts: what the file of ``frozen.weights`` holds.
        start: the diffusion model in float32, see :func:`engine.build.build_model`.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        frozen: UNet | None,
        boundaries: list[int] | None,
        parts: Parts | None = None,
        start: UNet | None = None,
    ):
        self.config, self.policy, self.frozen = config, policy, frozen
        self.parts, self.start = parts, start
        self.schedule = build_schedule(config).to(policy.device)
        self.subsets = build_subsets(config, boundaries)
        self.views = config.simsiam.weight > 0
        self.headline: tuple[str, ...] = ("loss", "reduction", *(("simsiam",) if self.views else ()))

    def build(self) -> DiffSiam:
        return build_model(self.config, self.frozen, self.schedule, self.subsets, self.parts, self.start)

    def loss(self, forward: Callable[..., Losses], batch: Batch, metrics: Metrics | None = None) -> Tensor:
        out = forward(
            batch["x_0"], batch["position"], self.config.seed, batch.get("view_1"), batch.get("view_2")
        )
        if metrics is not None:
            self._record(metrics, out)
        return out.total

    def _record(self, metrics: Metrics, out: Losses) -> None:
        count = len(out.z)
        metrics.add("loss", out.total.detach(), count)
        if count > 1:
            metrics.add("feature_std", feature_std(out.z), count)
        if out.simsiam is not None:
            metrics.add("simsiam", out.simsiam.detach().mean(), count)
        if out.recon is None or out.draw is None:
            return
        band, subset = out.draw.t * BANDS // self.schedule.steps, out.draw.k - 1
        for name, values in (("with_g", out.recon.loss.detach()), ("frozen", out.recon.frozen)):
            metrics.add(f"loss_{name}", values.mean(), count)
            metrics.add_by(f"loss_{name}_by_time", band, values, BANDS)
            metrics.add_by(f"loss_{name}_by_subset", subset, values, self.subsets.n)
        metrics.add("x_0_error", out.recon.x_0_error.mean(), count)
        metrics.add("x_0_error_frozen", out.recon.x_0_error_frozen.mean(), count)

    def derived(self, record: Record) -> Record:
        """Share of the frozen model's own loss that g removes: overall, by time band and by subset."""
        more: Record = {}
        for suffix in ("", "_by_time", "_by_subset"):
            ours, frozen = record.get(f"loss_with_g{suffix}"), record.get(f"loss_frozen{suffix}")
            if isinstance(ours, list) and isinstance(frozen, list):
                more[f"reduction{suffix}"] = [_reduction(a, b) for a, b in zip(ours, frozen, strict=True)]
            elif isinstance(ours, float) and isinstance(frozen, float) and frozen:
                more[f"reduction{suffix}"] = 1 - ours / frozen
        return more

    def gradient_norms(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Norm of each weighted loss' gradient on the encoder: which of the two drives it."""
        assert isinstance(module, DiffSiam)
        with self.policy.autocasting():
            out = module(
                batch["x_0"], batch["position"], self.config.seed, batch.get("view_1"), batch.get("view_2")
            )
        losses = {
            "grad_diffusion": None if out.recon is None else module.loss_weight * out.recon.loss.mean(),
            "grad_simsiam": None if out.simsiam is None else module.simsiam_weight * out.simsiam.mean(),
        }
        parameters = list(module.encoder.parameters())
        norms = {}
        for name, loss in losses.items():
            if loss is not None:
                gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                norms[name] = torch.linalg.vector_norm(
                    torch.stack([g.float().norm() for g in gradients if g is not None])
                )
        return norms

    def draw(self, average: nn.Module, images: Tensor, path: Path) -> Record:
        assert isinstance(average, DiffSiam)
        if average.decoder is None:
            return {}
        times = [self.subsets.times * i // 5 for i in range(1, 5)]
        with self.policy.autocasting():
            reconstruction_grid(average, images, times, self.config.seed).save(path)
            if not self._effect_is_affordable():
                return {}
            return {
                "causal_effect_by_subset": [
                    float(v) for v in causal_effect(average, images, self.config.seed)
                ]
            }

    def _effect_is_affordable(self) -> bool:
        """The effect of n subsets costs 3 n decoder passes an image: seconds on a GPU, half an hour on a CPU
        at 128 px.
        """
        return (
            self.policy.device.type == "cuda" or self.subsets.n * self.config.data.px**2 <= CPU_EFFECT_PIXELS
        )

    def export(self, average: nn.Module, run_dir: Path) -> None:
        """Nothing: checkpoints hold all there is."""


def _reduction(ours: float | None, frozen: float | None) -> float | None:
    return None if ours is None or not frozen else 1 - ours / frozen


class Pretraining:
    """The diffusion model itself (thesis Eq. 3.4)."""

    views = False
    headline: tuple[str, ...] = ("loss",)

    def __init__(
        self,
        config: Config,
        policy: Policy,
        held_out: Tensor | None = None,
        framing: str | None = None,
    ):
        self.config, self.policy, self.held_out, self.framing = config, policy, held_out, framing
        self.schedule = build_schedule(config).to(policy.device)

    def build(self) -> nn.Module:
        return build_diffusion(self.config, self.schedule)

    def loss(self, forward: Callable[..., Any], batch: Batch, metrics: Metrics | None = None) -> Tensor:
        per_sample, t = forward(batch["x_0"], batch["position"], self.config.seed)
        if metrics is not None:
            metrics.add("loss", per_sample.detach().mean(), len(t))
            metrics.add_by("loss_by_time", t * BANDS // self.schedule.steps, per_sample.detach(), BANDS)
        return per_sample.mean()

    def derived(self, record: Record) -> Record:
        return {}

    def gradient_norms(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {}

    def draw(self, average: nn.Module, images: Tensor, path: Path) -> Record:
        """DDIM samples of the averaged model, from the same noise every time; returns its held-out loss."""
        assert isinstance(average, Diffusion)
        with self.policy.autocasting():
            sample_grid(
                average.unet,
                self.schedule,
                self.config.data.px,
                len(images),
                self.config.seed,
                SAMPLING_MOVES,
            ).save(path)
            return self._held_out_loss(average.unet)

    def _held_out_loss(self, unet: UNet) -> Record:
        if self.held_out is None:
            return {}
        images = to_unit_range(self.held_out.to(self.policy.device))
        bands = held_out_loss(unet, self.schedule, images, self.config.seed, BANDS)
        return {"held_out_loss": float(bands.mean()), "held_out_loss_by_time": bands.tolist()}

    def export(self, average: nn.Module, run_dir: Path) -> None:
        """``unet.safetensors``: the averaged weights, ready for ``frozen.weights``."""
        assert isinstance(average, Diffusion)
        save_unet(
            average.unet, run_dir / "unet.safetensors", contract=image_contract(self.config, self.framing)
        )
