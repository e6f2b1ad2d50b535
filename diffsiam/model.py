"""A trained model in use: encode images, look at the subsets of z, reconstruct (``diffsiam.load``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffsiam.decoder import Decoder
from diffsiam.encoder import encode_images
from diffsiam.sampler import Guide, Sampler
from diffsiam.sampling import Recipe, to_uint8
from diffsiam.schedule import Schedule
from diffsiam.subsets import Subsets
from diffsiam.unet import UNet
from diffsiam.weights import ImageContract, Parts, WeightsError, build_unet, read_parts, sha256_of
from diffsiam.weights.states import filled

Images = Tensor | np.ndarray


@dataclass
class Model:
    """Networks of one training, in eval mode and without gradients.

    Attributes:
        encoder: f.
        decoder, frozen: g and u_theta, None where the files do not hold them: then only :meth:`encode` works.
        subsets: how z is cut, and which times a subset belongs to.
        schedule: of the noise.
        contract: what images must be.
        description: model.json, or what is known of another format.
    """

    encoder: nn.Module
    decoder: Decoder | None
    frozen: UNet | None
    subsets: Subsets
    schedule: Schedule
    contract: ImageContract
    description: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def to(self, device: torch.device | str) -> Model:
        """Itself, moved."""
        for part in (self.encoder, self.decoder, self.frozen, self.schedule):
            if part is not None:
                part.to(device)
        return self

    def encode(self, images: Images, batch_size: int = 256) -> Tensor:
        """z of uint8 images (N, px, px, 3), RGB: (N, d) float32 on the model's device.

        Raises:
            ValueError: images of another type or size than the contract says.
        """
        return encode_images(self.encoder, self._enter(images), batch_size)

    def subset(self, z: Tensor, i: int) -> Tensor:
        """z_i for i in 1..n: a view of z (N, d)."""
        return z[:, self.subsets.dims(i)]

    @torch.no_grad()
    def reconstruct(self, images: Images, z: Tensor | None = None, moves: int = 50) -> Tensor:
        """Images back from their own x_T and z: guided DDIM inversion, then guided sampling (PDAE).

        Args:
            images: uint8 (N, px, px, 3).
            z: (N, d) that guides the sampling in place of the images' own: an edit.
            moves: of DDIM, each way.

        Returns:
            uint8 (N, px, px, 3).

        Raises:
            ValueError: see :meth:`encode`, or the model has no decoder or no frozen diffusion model.
        """
        if self.decoder is None or self.frozen is None:
            lacks = (
                "decoder"
                if self.decoder is None
                else "frozen diffusion model: diffsiam.load(path, frozen=FILE)"
            )
            raise ValueError(f"reconstruction needs more than an encoder; this model has no {lacks}")
        x_0 = self._enter(images)
        own = encode_images(self.encoder, x_0)
        sampler = Sampler(self.frozen, self.decoder, self.schedule, self.subsets, Recipe(moves, moves))
        x_T = sampler.invert(x_0, own)
        return to_uint8(sampler.sample(x_T, Guide(own if z is None else z)))

    def _enter(self, images: Images) -> Tensor:
        """uint8 images as the networks take them, (N, 3, px, px) float32."""
        x = torch.as_tensor(images)
        if x.dtype != torch.uint8 or x.dim() != 4 or x.shape[3] != 3:
            raise ValueError(f"images must be uint8 (N, px, px, 3), got {x.dtype} {tuple(x.shape)}")
        px = self.contract.px
        if px is not None and x.shape[1:3] != (px, px):
            raise ValueError(f"images must be {px} x {px} pixels, got {x.shape[1]} x {x.shape[2]}")
        if self.contract.channels != "RGB":
            raise ValueError(f"this model takes {self.contract.channels} images, which is not supported")
        mean, std = (
            torch.tensor(v, device=self.device)[:, None, None]
            for v in (self.contract.mean, self.contract.std)
        )
        return (x.to(self.device).permute(0, 3, 1, 2).float() / 255 - mean) / std


def load_model(path: Path, frozen: Path | None = None, device: str = "cpu") -> Model:
    """A folder of ``diffsiam export``, or any published file with an encoder.

    Args:
        path: folder or file.
        frozen: the diffusion model, for a folder exported without it.
        device: where to put it.

    Raises:
        WeightsError: unreadable, without an encoder, or ``frozen`` is not the model it was trained with.
    """
    return model_of(read_parts(path), frozen, device)


def model_of(parts: Parts, frozen: Path | None = None, device: torch.device | str = "cpu") -> Model:
    """The networks of a file that was read, see :func:`load_model`."""
    if parts.encoder is None or parts.encoder_config is None:
        raise WeightsError(f"{parts.path}: holds no encoder ({parts.describe()})")
    config, decoder = parts.encoder_config, None
    if parts.decoder is not None:
        decoder = filled(lambda: Decoder(parts.architecture, config.dim), parts.decoder)
    model = Model(
        filled(config.build, parts.encoder),
        decoder,
        _frozen(parts, frozen),
        subsets_of(parts.extras.get("subsets"), config.dim),
        schedule_of(parts),
        parts.contract,
        {"format": parts.format, **parts.extras},
    )
    for network in (model.encoder, model.decoder, model.frozen):
        if network is not None:
            network.eval().requires_grad_(False)
    return model.to(device)


def _frozen(parts: Parts, given: Path | None) -> UNet | None:
    """The diffusion model of the file itself, or the one that is given for it."""
    if given is None:
        return None if parts.unet is None else build_unet(parts)
    other, recorded = read_parts(given), parts.extras.get("frozen") or {}
    expected = recorded.get("sha256")
    if expected not in (None, sha256_of(other.file)):
        raise WeightsError(
            f"{given}: is not the diffusion model that {parts.path} was trained with ({recorded['file']})"
        )
    if other.config != parts.config:
        raise WeightsError(f"{given}: has another architecture than the decoder of {parts.path}")
    return build_unet(other)


def subsets_of(described: Mapping[str, Any] | None, dim: int) -> Subsets:
    """The split of an exported model; the whole of z where a file records none (PDAE has none)."""
    if described is None:
        return Subsets([dim], choice="full", jump=False)
    return Subsets(**described)


def subsets_to_dict(subsets: Subsets) -> dict[str, Any]:
    """What :func:`subsets_of` reads."""
    return {f.name: getattr(subsets, f.name) for f in fields(subsets) if f.init}


def schedule_of(parts: Parts) -> Schedule:
    """The noise schedule that a file records; DDPM's linear one where it records none."""
    if (described := parts.extras.get("schedule")) is not None:
        return Schedule(**described)
    c = parts.contract
    if c.steps is None or c.beta_start is None or c.beta_end is None:
        return Schedule()
    return Schedule(c.steps, c.beta_start, c.beta_end)
