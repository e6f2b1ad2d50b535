"""Runs to edit with that nobody trained: a checkpoint of random networks on the shipped diffusion model."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffsiam.objective import DiffSiam
from engine import checkpoint
from engine.build import build_frozen, build_model, build_schedule, build_subsets
from engine.config_file import config_hash, from_dict
from engine.published import read_frozen, record

VALUES = {
    "method": "diffsiam",
    "data": {"source": "rooms", "px": 16, "count": 60, "flip": False},
    "frozen": {"weights": "builtin:rooms16"},
    "decoder": {"init": "frozen"},
    "encoder": {"arch": "resnet10", "width": 8, "dim": 8},
    "subsets": {"n": 4},
    "simsiam": {"weight": 0},
}


def make_run(folder: Path, awaken, **changes) -> Path:
    """A run's directory with one checkpoint; ``changes`` are sections of the config."""
    config = from_dict(VALUES | changes)
    parts = read_frozen(config)
    frozen = build_frozen(config, parts)
    model = build_model(config, frozen, build_schedule(config), build_subsets(config))
    assert isinstance(model, DiffSiam)
    awaken(model.decoder.shift_out, seed=1)  # g is 0 at the start
    state = {"config": config.model_dump(mode="json"), "boundaries": None, "data": "none"}
    state["weights"] = record(parts)
    checkpoint.save(folder, 3, {"ema": model.state_dict()}, state, config_hash(config))
    return folder


def write_images(folder: Path, count: int, px: int = 20) -> list[Path]:
    """``count`` pictures of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        paths.append(folder / f"{i:03}.png")
        Image.fromarray(rng.integers(0, 256, (px, px, 3), dtype=np.uint8)).save(paths[-1])
    return paths
