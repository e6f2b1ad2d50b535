"""``diffsiam lost-attributes`` and ``inspect-model``: what noise takes from images (thesis Fig. 1.1)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsiam.evaluation.profile import accuracy, lost_at, noised_and_predicted, relative_error
from diffsiam.model import schedule_of
from diffsiam.sampling import to_uint8
from diffsiam.schedule import Schedule
from diffsiam.unet import UNet
from diffsiam.weights import WeightsError, build_unet, read_parts
from engine import screen
from engine.config import DataConfig
from engine.config_file import BUILTIN, from_dict
from engine.data.fetching import fetch
from engine.data.rooms import FACTORS, LEVELS
from engine.data.sources import RoomsSource
from engine.edit.chart import chart
from engine.edit.choices import slug
from engine.edit.opening import TrainingImages, open_model, training_images
from engine.edit.output import Output
from engine.edit.pictures import labelled_images, pictures
from engine.errors import UsageError
from engine.json_files import read_json
from engine.oracle import Oracle, load_oracle
from engine.published import weights_path
from engine.sheet import sheet
from kernels.noise_jump.ref import to_unit_range

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)  # of T, on the sheet
CURVE = 20  # points of the curve, beside t = 0


@dataclass(frozen=True)
class Diffusion:
    """A diffusion model, of whatever file or run: what :class:`engine.edit.opening.Trained` needs, and it."""

    path: Path
    name: str
    unet: UNet
    schedule: Schedule
    images: TrainingImages | None
    px: int
    autocast: torch.dtype | None = None

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def origin(self) -> dict[str, Any]:
        return {"file": str(self.path)}


def open_diffusion(named: str, px: int | None) -> Diffusion:
    """The frozen model of a run, a run that trained one, a published file, or "builtin:NAME".

    Args:
        px: side of its images, where the file does not say.

    Raises:
        UsageError: there is none, or nothing says how large its images are.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = weights_path(named)
    if (path / "checkpoints").is_dir() and not (path / "unet.safetensors").is_file():
        opened = open_model(path, "fp32", device)
        assert opened.model.frozen is not None, "checked when it was opened"
        return Diffusion(
            path, opened.name, opened.model.frozen, opened.model.schedule, opened.images, opened.px
        )
    images, file = None, path
    if path.is_dir() and (path / "unet.safetensors").is_file():
        file = path / "unet.safetensors"
    if not file.exists():
        raise UsageError(f"{named}: no such run or file")
    try:
        parts = read_parts(file)
        unet = build_unet(parts).eval().requires_grad_(False)
    except WeightsError as error:
        raise UsageError(str(error)) from error
    shipped = re.search(r"\d+$", named) if named.startswith(BUILTIN) else None
    size = int(shipped[0]) if shipped else parts.contract.px or px
    if size is None:
        raise UsageError(f"{named}: does not say how large its images are; give --px")
    if named.startswith(BUILTIN):
        images = TrainingImages(DataConfig(source="rooms", px=size), seed=0)
    elif file != path and (path / "config.json").is_file():
        config = from_dict(read_json(path / "config.json"))
        images = TrainingImages(config.data, config.seed)
    return Diffusion(path, named, unet.to(device), schedule_of(parts).to(device), images, size)


def lost_attributes(
    named: str,
    asked: list[str],
    data: Path | None,
    count: int,
    times: str | None,
    px: int | None,
    seed: int,
    out: Path | None,
) -> Path:
    """Fig. 1.1: for every image a row of x_t and under it one of x_0_hat; returns the folder.

    Args:
        times: separated by commas; None: seven between 5 % and 80 % of T.

    Raises:
        UsageError, DataError: see :mod:`engine.errors`.
    """
    model = open_diffusion(named, px)
    chosen = _times(times, model.schedule.steps)
    shown = pictures(model, asked, data, count)
    result = Output("lost-attributes", out, [model], None, {"seed": seed, "times": chosen})
    x_0 = to_unit_range(shown.images.to(model.device))
    noised, predicted = [shown.images], [shown.images]
    parts = noised_and_predicted(model.unet, model.schedule, x_0, seed, chosen)
    for time, (x_t, x_0_hat) in zip(chosen, parts, strict=True):
        noised.append(to_uint8(x_t).cpu())
        predicted.append(to_uint8(x_0_hat).cpu())
        for i, name in enumerate(shown.names):
            what = {"image": name, "t": time}
            error = float((x_0_hat[i] - x_0[i]).square().mean()) / 4
            result.add(slug(f"image{i}", f"x_{time}"), noised[-1][i].numpy(), **what, kind="x_t")
            result.add(
                slug(f"image{i}", f"x_0_hat_{time}"),
                predicted[-1][i].numpy(),
                **what,
                kind="x_0_hat",
                mse=error,
            )
    both = torch.stack(
        (torch.stack(noised, dim=1), torch.stack(predicted, dim=1)), dim=1
    )  # (N, 2, times, ...)
    rows = both.flatten(0, 1).numpy()
    figure = sheet(
        rows,
        ["x_t", "x_0_hat"] * len(shown),
        ["x_0", *(f"t = {t}" for t in chosen)],
        "What the noise takes: x_t, and what the frozen model makes of it",
        framed=[(row, 0) for row in range(len(rows))],
        groups=(2, 0),
    )
    return result.finish(figure, originals=shown.names)


@dataclass(frozen=True)
class Curve:
    """What a model loses by time.

    Attributes:
        mse: (M,) mean squared error of x_0_hat, pixels in [0, 1].
        relative: (M,) of the images' variance.
        lost: (K,) time at which each factor of Rooms is half lost, or None.
    """

    mse: list[float]
    relative: list[float]
    lost: np.ndarray | None


def inspect_model(
    named: str, data: Path | None, count: int, px: int | None, seed: int, out: Path | None
) -> Path:
    """The error of x_0_hat by time, and of Rooms which factor is lost when; returns the folder.

    Raises:
        UsageError, DataError: see :mod:`engine.errors`.
    """
    model = open_diffusion(named, px)
    source = training_images(model, data)
    indices = labelled_images(source, count)
    if len(indices) < 2:
        raise UsageError(f"--count {count}: an error relative to the images' variance needs two or more")
    images = torch.from_numpy(fetch(source, model.px, indices))
    levels = source.rooms.factors(indices) if isinstance(source, RoomsSource) else None
    times = [0, *(model.schedule.steps * i // CURVE - 1 for i in range(1, CURVE + 1))]
    settings = {"seed": seed, "count": len(images), "times": times}
    result = Output("inspect-model", out, [model], None, settings)
    curve = measure(model, images, levels, times, seed)
    rows = [
        [t, _round(a), _round(error), _round(-10 * math.log10(max(error, 1e-10))), _round(share)]
        for t, a, error, share in zip(
            times, model.schedule.alpha_bar[times].tolist(), curve.mse, curve.relative, strict=True
        )
    ]
    columns = ["t", "abar", "MSE (pixels in [0, 1])", "PSNR, dB", "of the images' variance"]
    screen.table(columns, rows, f"{named}: error of x_0_hat on {len(images)} images")
    if curve.lost is not None:
        told = [f"{t:.0f}" if np.isfinite(t) else "never" for t in curve.lost]
        names = [factor.name for factor in FACTORS]
        title = "When a factor can no longer be read from x_0_hat"
        screen.table(["factor", "half lost at t"], list(zip(names, told, strict=True)), title)
    title = "Error of x_0_hat as a share of the images' variance: 1 is what the mean image has"
    figure = chart(times, model.schedule.steps, {named: curve.relative}, title, "t")
    return result.finish(figure, mse=curve.mse, relative_error=curve.relative, lost_at=curve.lost)


def measure(
    model: Diffusion, images: Tensor, levels: np.ndarray | None, times: list[int], seed: int
) -> Curve:
    """The curve of uint8 images (N, px, px, 3) at ``times`` (M,); of Rooms with their ``levels`` (N, K)."""
    x_0 = to_unit_range(images.to(model.device))
    oracle = None if levels is None else _oracle(model.px)
    mse, relative, read = [], [], []
    with screen.counting(len(times), "times") as tell:
        for _, x_0_hat in noised_and_predicted(model.unet, model.schedule, x_0, seed, times):
            mse.append(float((x_0_hat - x_0).square().mean()) / 4)
            relative.append(relative_error(x_0_hat, x_0))
            if oracle is not None and levels is not None:
                read.append(accuracy(x_0_hat.cpu(), torch.from_numpy(levels), oracle.read))
            tell(1)
    lost = None
    if oracle is not None and levels is not None:
        clean = accuracy(x_0.cpu(), torch.from_numpy(levels), oracle.read)
        lost = lost_at(times, np.stack(read), clean, 1 / LEVELS)
    return Curve(mse, relative, lost)


def _oracle(px: int) -> Oracle | None:
    try:
        return load_oracle(px)
    except UsageError as error:
        screen.line(f"factors are not read: {error}")
        return None


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _times(text: str | None, steps: int) -> list[int]:
    if text is None:
        return [int(share * steps) for share in SHARES]
    try:
        times = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--times {text}: expected whole numbers, separated by commas") from None
    if any(not 0 <= t < steps for t in times):
        raise UsageError(f"--times {text}: times are 0 to {steps - 1}")
    return times
