"""Measure one model of the experiment and write its result: run by :mod:`bench.claims`, one process each."""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from bench.claims.causal import causal
from bench.claims.experiment import Experiment
from bench.claims.representation import representation
from bench.claims.transfer import EPISODES, Encode, transfer
from diffsiam.encoder import encode_images
from diffsiam.subsets import balanced_ends
from engine import screen
from engine.build import untrained_encoder
from engine.config import Config
from engine.config_file import config_hash
from engine.data.rooms import VERSION, Rooms
from engine.errors import CheckpointError, UsageError
from engine.plain_json import write_json
from engine.trained import open_run
from kernels.noise_jump.ref import to_unit_range

CURVE_POINTS = 30
TRAINING_ROOMS = 4000  # from which untrained features take their axes and scales


def measure(experiment: Experiment, name: str, seed: int, episodes: int = EPISODES) -> dict[str, Any]:
    """Everything that is asked of a model, as it goes into its file."""
    begun, config = time.monotonic(), experiment.load(name, seed)
    trained = (
        open_run(experiment.run(name, seed), torch.device("cpu")) if experiment.is_trained(name) else None
    )
    if trained is not None:
        encode = _encoder(trained.model.encoder)
    else:
        raw = _principal_components(config) if name == "pca" else _encoder(untrained_encoder(config))
        encode = _normalised(raw, config)
    px, ends = config.data.px, balanced_ends(config.encoder.dim, config.subsets.n)
    known = representation(encode, px, ends)
    record: dict[str, Any] = {
        "model": name,
        "seed": seed,
        "config_hash": config_hash(config),
        "config": config.to_dict(),
        "rooms": VERSION,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "representation": known,
        "transfer": transfer(encode, px, episodes),
    }
    if trained is not None:
        record["curve"] = curve(trained.run_dir / "metrics.jsonl")
        if trained.model.decoder is not None:
            record["boundaries"] = trained.model.subsets.boundaries
            record["causal"] = causal(trained.model, px, known["group_information"])
    return record | {"seconds_measuring": time.monotonic() - begun}


def curve(metrics: Path, points: int = CURVE_POINTS) -> dict[str, Any]:
    """The losses of a training, each averaged over equal stretches of its steps."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    found: dict[str, Any] = {}
    stretches = np.array_split(np.arange(len(lines)), min(points, len(lines)))
    found["step"] = [lines[part[-1]]["step"] for part in stretches]
    for key in ("loss_with_g", "loss_frozen", "simsiam", "grad_diffusion", "grad_simsiam"):
        values = [[lines[i][key] for i in part if key in lines[i]] for part in stretches]
        if any(values):
            found[key] = [float(np.mean(part)) if part else None for part in values]
    return found


def _encoder(encoder: torch.nn.Module) -> Encode:
    return lambda images: encode_images(encoder, to_unit_range(images))


def _normalised(encode: Encode, config: Config) -> Encode:
    """Entries of mean 0 and variance 1, as a trained model's have: a head by SGD hears scale."""
    z = encode(_training_rooms(config))
    mean, std = z.mean(dim=0), z.std(dim=0).clamp_min(1e-12)
    return lambda images: (encode(images) - mean) / std


def _training_rooms(config: Config) -> torch.Tensor:
    rooms = Rooms(config.data.px, config.seed, config.data.count)
    return torch.from_numpy(rooms.images(np.arange(min(TRAINING_ROOMS, len(rooms)))))


def _principal_components(config: Config) -> Encode:
    """The d first principal components of the training rooms' pixels."""
    pixels = to_unit_range(_training_rooms(config)).flatten(1)
    mean = pixels.mean(dim=0)
    _, _, axes = torch.pca_lowrank(pixels - mean, q=config.encoder.dim, center=False, niter=4)
    return lambda images: (to_unit_range(images).flatten(1) - mean) @ axes


def main(
    config: Annotated[Path, typer.Option()],
    model: Annotated[str, typer.Option()],
    seed: Annotated[int, typer.Option()],
    results: Annotated[Path, typer.Option()],
    runs: Annotated[Path, typer.Option()],
    simsiam_weight: Annotated[float, typer.Option()],
    episodes: Annotated[int, typer.Option()] = EPISODES,
    overrides: Annotated[list[str] | None, typer.Argument()] = None,
) -> None:
    """Measure a model and write its file."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    experiment = Experiment(config, tuple(overrides or ()), results, runs, simsiam_weight)
    try:
        record = measure(experiment, model, seed, episodes)
    except (UsageError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    path = experiment.result(model, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    screen.line(f"measured in {record['seconds_measuring']:.0f} s: {path}")


if __name__ == "__main__":
    typer.run(main)
