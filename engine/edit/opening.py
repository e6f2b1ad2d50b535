"""Open what an edit needs: networks as they run, and the images they were trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from diffsiam.attention import set_attention
from diffsiam.attention_routines import choose_attention
from diffsiam.counterfactual import Inverted
from diffsiam.encoder import encode_images
from diffsiam.model import Model, model_of
from diffsiam.sampler import Sampler
from diffsiam.sampling import Recipe
from diffsiam.weights import WeightsError, read_parts
from diffsiam.weights.exported import is_export
from engine.config import Config, DataConfig
from engine.config_file import from_dict
from engine.data.rooms import Rooms
from engine.data.sources import RoomsSource, Source, open_source
from engine.errors import UsageError
from engine.export import averages
from kernels.noise_jump.ref import to_unit_range

Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class TrainingImages:
    """Where they are or, of rooms, how they are drawn."""

    data: DataConfig
    seed: int


class Trained(Protocol):
    """What is known of a model's images."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def px(self) -> int: ...
    @property
    def images(self) -> TrainingImages | None: ...
    @property
    def origin(self) -> dict[str, Any]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def autocast(self) -> torch.dtype | None: ...


@dataclass(frozen=True)
class Opened:
    """A trained model, ready.

    Attributes:
        name: for titles: the method, or the format of a published file.
        config: of the training; None where a file says nothing about it.
        origin: where it comes from, JSON-able.
        autocast: dtype it computes in, None for float32.
    """

    path: Path
    name: str
    model: Model
    config: Config | None
    origin: dict[str, Any]
    autocast: torch.dtype | None

    @property
    def px(self) -> int:
        px = self.model.contract.px or (self.config.data.px if self.config else None)
        if px is None:
            raise UsageError(f"{self.path}: does not say how large its images are")
        return px

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def images(self) -> TrainingImages | None:
        return TrainingImages(self.config.data, self.config.seed) if self.config else None

    def sampler(self, recipe: Recipe, batch_size: int, tell: Callable[[int], None] | None = None) -> Sampler:
        """A sampler of its networks."""
        m = self.model
        assert m.frozen is not None, "checked when it was opened"
        assert m.decoder is not None, "checked when it was opened"
        try:
            return Sampler(
                m.frozen,
                m.decoder,
                m.schedule,
                m.subsets,
                recipe,
                batch_size,
                self.autocast,
                tell=tell,
            )
        except ValueError as error:
            raise UsageError(f"--moves, --inversion-moves: {error}") from error

    def enter(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (N, px, px, 3) as x_0 (N, 3, px, px) and z (N, d) on its device."""
        x_0 = to_unit_range(images.to(self.model.device))
        return x_0, encode_images(self.model.encoder, x_0)

    def invert(self, images: Tensor, sampler: Sampler, seed: int) -> Inverted:
        """Images with their z and x_T."""
        x_0, z = self.enter(images)
        return Inverted(x_0, z, sampler.start(x_0, z, seed))


def open_model(path: Path, precision: Precision = "auto", device: torch.device | None = None) -> Opened:
    """A run's directory, a folder of ``diffsiam export``, or a published file with encoder and decoder.

    Args:
        precision: "auto" is bfloat16 on CUDA where there is one, float32 elsewhere.

    Raises:
        UsageError: there is nothing of the kind, or it cannot be edited with: no decoder, no diffusion model.
        CheckpointError: no checkpoint of a run is valid.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autocast = _autocast(precision, device)
    config: Config | None
    try:
        if (path / "checkpoints").is_dir():
            found, config, parts = averages(path)
            origin: dict[str, Any] = {"run": str(path), "step": found.step, "config_hash": found.config_hash}
            opened = Opened(path, config.method, model_of(parts), config, origin, autocast)
        elif path.exists():
            parts = read_parts(path)
            provenance = parts.extras.get("provenance") if is_export(path) else None
            config = from_dict(provenance["config"]) if provenance and "config" in provenance else None
            name = config.method if config else parts.format
            opened = Opened(path, name, model_of(parts), config, {"file": str(path)}, autocast)
        else:
            raise UsageError(f"{path}: no such run or file")
    except WeightsError as error:
        raise UsageError(str(error)) from error
    if opened.model.decoder is None or opened.model.frozen is None:
        lacks = "decoder" if opened.model.decoder is None else "diffusion model"
        raise UsageError(f"{path}: has no {lacks}, and without one no image can be made")
    return replace(opened, model=_placed(opened.model, device, autocast))


def open_all(paths: list[Path], precision: Precision) -> list[Opened]:
    """Several models for one figure, whose names tell them apart.

    Raises:
        UsageError: as :func:`open_model`, or their images have different sizes.
    """
    opened = [open_model(path, precision) for path in paths]
    if len({each.px for each in opened}) > 1:
        sizes = ", ".join(f"{each.path} {each.px} px" for each in opened)
        raise UsageError(f"models of different sizes have no figure in common: {sizes}")
    names = [each.name for each in opened]
    if len(set(names)) < len(names):
        names = [each.path.name for each in opened]
    return [replace(each, name=name) for each, name in zip(opened, names, strict=True)]


def training_images(opened: Trained, data: Path | None, least: int = 0) -> Source:
    """The images that a model was trained on, or those of the folder ``data``.

    Rooms have no end: there are ``least`` of them at least, those after the training set never seen.

    Raises:
        UsageError: nothing says which images these are, or they are gone.
    """
    if data is not None:
        return open_source("auto", data, opened.px, 0, 0)
    if opened.images is None:
        raise UsageError(f"{opened.path}: does not say what it was trained on; give --data FOLDER")
    named, seed = opened.images.data, opened.images.seed
    if named.source == "rooms":
        return RoomsSource(Rooms(named.px, seed, max(named.count, least)))
    return open_source(named.source, named.path, named.px, seed, named.count, named.split)


def _autocast(precision: Precision, device: torch.device) -> torch.dtype | None:
    if precision == "bf16":
        return torch.bfloat16
    there = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if precision == "auto" and there else None


def _placed(model: Model, device: torch.device, autocast: torch.dtype | None) -> Model:
    """Where and as it runs fastest; on CUDA the diffusion model's weights are stored in the dtype it uses."""
    model = model.to(device)
    dtype = autocast if autocast is not None and device.type == "cuda" else torch.float32
    assert model.frozen is not None, "checked when it was opened"
    attend, _ = choose_attention(device, dtype, model.frozen.config.attentions(model.contract.px or 128))
    model.frozen.to(dtype=dtype)
    for network in (model.encoder, model.decoder, model.frozen):
        if network is not None:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            set_attention(network, attend)
    return model
