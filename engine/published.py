"""Published models in a run: what ``frozen.weights`` names, what is checked of it and what is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from diffsiam.decoder import Decoder
from diffsiam.unet import UNetConfig
from diffsiam.weights import (
    Assumed,
    ImageContract,
    Parts,
    WeightsError,
    first_mismatch,
    read_parts,
    sha256_of,
)
from diffsiam.weights.architecture import unet_to_dict
from engine.config import Config
from engine.config_file import ASSETS, BUILTIN
from engine.errors import UsageError

ARCHITECTURE = ("base_channels", "channel_mult", "blocks", "attention", "learn_sigma")


def weights_path(weights: str) -> Path:
    """The file of ``frozen.weights``, which may name a shipped model."""
    if weights.startswith(BUILTIN):
        return ASSETS / f"{weights.removeprefix(BUILTIN)}.safetensors"
    return Path(weights)


def read_frozen(config: Config) -> Parts | None:
    """What the file of ``frozen.weights`` holds; None where the run has no diffusion model or a random one.

    Raises:
        UsageError: it cannot be read, holds no diffusion model, or contradicts the config: another
            architecture, resolution, pixel range or noise schedule.
    """
    weights = config.frozen.weights
    if not config.needs_frozen or weights is None or weights == "random":
        return None
    f = config.frozen
    try:
        parts = read_parts(weights_path(weights), Assumed(f.heads, f.head_channels, dropout=f.dropout))
        found = parts.architecture
    except WeightsError as error:
        raise UsageError(f"frozen.weights: {error}") from error
    _demand_stated_architecture(config, found)
    _demand_contract(config, parts.contract)
    _demand_divisible(config, found)
    return parts


def image_contract(config: Config, framing: str | None) -> ImageContract:
    """What a model trained by ``config`` expects; ``framing``: of its images, where the run recorded it."""
    s, px = config.schedule, config.data.px
    return ImageContract(px, crop=framing, steps=s.steps, beta_start=s.beta_start, beta_end=s.beta_end)


def record(parts: Parts) -> dict[str, Any]:
    """What a run keeps of the file it started from, JSON-able."""
    return {
        "file": str(parts.path),
        "sha256": sha256_of(parts.file),
        "format": parts.format,
        "remark": parts.remark,
        "architecture": unet_to_dict(parts.architecture),
        "contract": parts.contract.to_dict(),
    }


def demand_same_file(recorded: object, found: Mapping[str, Any] | None) -> None:
    """Compare the recorded diffusion model with the one that ``frozen.weights`` names now.

    Raises:
        UsageError: it is another file.
    """
    if not isinstance(recorded, Mapping) or found is None or recorded["sha256"] == found["sha256"]:
        return
    now, then = (f"{r['file']} (sha256 {r['sha256'][:12]})" for r in (found, recorded))
    raise UsageError(
        f"frozen.weights: {now} is not the diffusion model this run was trained with, {then}; "
        "name that one, or choose another run.dir"
    )


def start_from(parts: Parts | None, config: Config, encoder: nn.Module, decoder: Decoder | None) -> None:
    """Give encoder and decoder the weights of a trained pair, where their ``init`` asks for it.

    Raises:
        UsageError: the file holds no pair, or one of another architecture.
    """
    wanted: list[tuple[str, nn.Module | None]] = [("encoder", encoder), ("decoder", decoder)]
    for name, module in wanted:
        if getattr(config, name).init != "weights" or module is None:
            continue
        state = None if parts is None else getattr(parts, name)
        if state is None:
            raise UsageError(
                f'{name}.init = "weights": {config.frozen.weights} holds no {name}; set {name}.init=random'
            )
        if mismatch := first_mismatch(module.state_dict(), state):
            hint = f" (it is {parts.encoder_config})" if parts is not None and name == "encoder" else ""
            raise UsageError(f'{name}.init = "weights": {config.frozen.weights}: {mismatch}{hint}')
        module.load_state_dict(state)


def _demand_stated_architecture(config: Config, found: UNetConfig) -> None:
    for name in ARCHITECTURE:
        stated = getattr(config.frozen, name)
        if stated is not None and stated != getattr(found, name):
            raise UsageError(
                f"frozen.weights: {config.frozen.weights} has {name} = {getattr(found, name)}, "
                f"the config states {stated}; correct frozen.{name} or set it to null to take the file's"
            )


def _demand_contract(config: Config, contract: ImageContract) -> None:
    s = config.schedule
    uses = {"px": config.data.px, "steps": s.steps, "beta_start": s.beta_start, "beta_end": s.beta_end}
    differs = contract.disagreements(**uses)
    if not contract.is_of_diffusion:
        differs.append("pixels are not RGB in [-1, 1]")
    if differs:
        raise UsageError(
            f"frozen.weights: {config.frozen.weights} was trained on other images or noise: "
            f"{', '.join(differs)}; correct data.px and schedule.*, or take other weights"
        )


def _demand_divisible(config: Config, found: UNetConfig) -> None:
    levels, px = len(found.channel_mult), config.data.px
    if px % 2 ** (levels - 1):
        raise UsageError(
            f"data.px = {px} is halved {levels - 1} times by {config.frozen.weights}: "
            f"use a multiple of {2 ** (levels - 1)}"
        )
