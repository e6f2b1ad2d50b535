"""A finished training, opened again: its config and its averaged model as the objective's module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from diffsiam.objective import DiffSiam
from engine import checkpoint
from engine.build import build_frozen
from engine.config import Config
from engine.config_file import from_dict
from engine.errors import UsageError
from engine.published import demand_same_file, read_frozen, record
from engine.resume import load_model
from engine.step import choose_policy, prepare_frozen
from engine.tasks import Representation


@dataclass(frozen=True)
class Trained:
    """A training of the representation.

    Attributes:
        model: averaged weights, in eval mode and without gradients, with the frozen model it was trained on.
        config_hash: of the config that wrote the checkpoint.
    """

    run_dir: Path
    config: Config
    model: DiffSiam
    step: int
    config_hash: str


def open_run(run_dir: Path, device: torch.device | None = None) -> Trained:
    """The newest checkpoint's averages.

    Raises:
        UsageError: there is no checkpoint, it is of another task, or the frozen model is not where it was.
        CheckpointError: no checkpoint is valid.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = checkpoint.latest(run_dir)
    if found is None:
        raise UsageError(f"{run_dir}: no checkpoint there; give the directory of a run")
    config = from_dict(found.stated("config"))
    if config.task != "diffsiam":
        raise UsageError(f"{run_dir}: trained a diffusion model, which has no representation to evaluate")
    parts = read_frozen(config)
    demand_same_file(found.state.get("weights"), None if parts is None else record(parts))
    policy = choose_policy(config, device)
    original = build_frozen(config, parts)
    frozen = None if original is None else prepare_frozen(original, policy)
    with torch.random.fork_rng(devices=[]):
        task = Representation(config, policy, frozen, found.stated("boundaries"), parts, start=original)
        model = task.build()
    load_model(model, found.load("ema"), found.path)
    model = model.to(device).eval().requires_grad_(False)
    return Trained(run_dir, config, model, found.step, found.config_hash)
