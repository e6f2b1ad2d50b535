"""From a config to networks: the frozen U-Net, the trainable part, the schedule and the subsets."""

from __future__ import annotations

import torch
from torch import nn

from diffsiam.decoder import Decoder
from diffsiam.encoder import build_encoder
from diffsiam.objective import DiffSiam, Diffusion
from diffsiam.schedule import Schedule
from diffsiam.simsiam import SimSiam
from diffsiam.subsets import Subsets, balanced_ends, staged_ends
from diffsiam.unet import UNet, UNetConfig
from diffsiam.weights import Parts, build_unet
from engine.config import Config
from engine.errors import UsageError
from engine.published import ARCHITECTURE, read_frozen, start_from


def build_schedule(config: Config) -> Schedule:
    """The noise schedule with the loss' gamma."""
    s = config.schedule
    return Schedule(s.steps, s.beta_start, s.beta_end, config.loss.gamma)


def unet_config(config: Config) -> UNetConfig:
    """The architecture fields of ``frozen``; those left null take :class:`UNetConfig`'s defaults."""
    given = {
        name: getattr(config.frozen, name) for name in (*ARCHITECTURE, "heads", "head_channels", "dropout")
    }
    return UNetConfig(**{name: value for name, value in given.items() if value is not None})


def build_frozen(config: Config, parts: Parts | None = None) -> UNet | None:
    """u_theta in eval mode without gradients, or None when the run has no diffusion loss.

    Args:
        parts: what :func:`engine.published.read_frozen` gave, if the file was read already.

    Raises:
        UsageError: the file cannot be read as a U-Net, or is not the model that the config states.
    """
    if not config.needs_frozen:
        return None
    if config.frozen.weights == "random":
        torch.manual_seed(config.seed)
        unet = UNet(unet_config(config))
    else:
        parts = parts or read_frozen(config)
        assert parts is not None, "checked when the config was read"
        unet = build_unet(parts)
    return unet.eval().requires_grad_(False)


def build_subsets(config: Config, boundaries: list[int] | None = None) -> Subsets:
    """The split of z and its rule; ``boundaries`` are those measured for choice "profile"."""
    s = config.subsets
    if s.split == "staged":
        assert s.stages, "checked when the config was read"
        assert s.dims_per_stage, "checked when the config was read"
        try:
            ends = staged_ends(s.n, config.schedule.steps, list(s.stages), list(s.dims_per_stage))
        except ValueError as error:
            raise UsageError(f"subsets.dims_per_stage: {error}") from error
    else:
        ends = balanced_ends(config.encoder.dim, s.n)
    return Subsets(
        ends=ends,
        choice=s.choice,
        mask=s.mask,
        detach=s.detach,
        jump=config.jump.steps == "k",
        steps=config.schedule.steps,
        boundaries=boundaries or [],
    )


def untrained_encoder(config: Config) -> nn.Module:
    """The encoder that a run begins with: the first module drawn from ``seed``."""
    torch.manual_seed(config.seed)
    e = config.encoder
    return build_encoder(e.arch, config.data.px, e.width, e.dim, norm=e.norm)


def build_model(
    config: Config,
    frozen: UNet | None,
    schedule: Schedule,
    subsets: Subsets,
    parts: Parts | None = None,
    start: UNet | None = None,
) -> DiffSiam:
    """The trainable part, initialised from ``seed``, or from ``parts`` where ``init`` is "weights".

    Args:
        parts: what the file of ``frozen.weights`` holds.
        start: what ``decoder.init = frozen`` copies: the frozen model before its weights were rounded to a
            smaller dtype. None: ``frozen`` itself.
    """
    encoder = untrained_encoder(config)
    simsiam = None
    if config.simsiam.weight > 0:
        simsiam = SimSiam(
            config.encoder.dim, config.simsiam.projector, config.simsiam.dim, config.simsiam.hidden
        )
    decoder = None
    if frozen is not None:
        decoder = Decoder(frozen.config, config.encoder.dim, config.decoder.dropout)
        if config.decoder.init == "frozen":
            decoder.start_from(start or frozen)
    start_from(parts, config, encoder, decoder)
    return DiffSiam(
        encoder,
        decoder,
        simsiam,
        frozen,
        schedule,
        subsets,
        loss_weight=config.loss.weight,
        simsiam_weight=config.simsiam.weight,
        time_told=config.jump.time,
    )


def build_diffusion(config: Config, schedule: Schedule) -> Diffusion:
    """The U-Net to pretrain, initialised from ``seed``, with its loss."""
    torch.manual_seed(config.seed)
    return Diffusion(UNet(unet_config(config)), schedule)
