"""What a checkpoint of a run holds, and the way back."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from diffsiam.weights import first_mismatch
from engine import screen
from engine.checkpoint import Checkpoint
from engine.config import Config
from engine.config_file import compatible
from engine.ema import Ema
from engine.errors import CheckpointError, UsageError
from engine.parallel import Trainer


def check_resumable(checkpoint: Checkpoint, config: Config) -> None:
    """Compare the config that wrote a checkpoint with the one that is to go on.

    Raises:
        UsageError: something differs that shapes tensors or draws; changes that a run may make are announced.
    """
    differences = compatible(checkpoint.stated("config"), config)
    if differences.refused:
        raise UsageError(
            f"{checkpoint.path} was trained with another config: {'; '.join(differences.refused)}; "
            "restore these values, or choose another run.dir to start anew"
        )
    for change in differences.allowed:
        screen.line(f"changed since the checkpoint: {change}")


def snapshot(trainer: Trainer, ema: Ema) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint, full on every rank (collective)."""
    return {
        "model": trainer.full_model(),
        "ema": trainer.full_like_parameters(ema.state_dict()),
        "optimizer": trainer.full_optimizer(),
    }


def load_model(module: nn.Module, state: dict[str, Tensor], where: Any) -> None:
    """Load a full state into a module, strictly.

    Raises:
        CheckpointError: naming the first key that differs.
    """
    mismatch = first_mismatch(module.state_dict(), state)
    if mismatch:
        raise CheckpointError(f"{where}: {mismatch}")
    module.load_state_dict(state)


def restore(checkpoint: Checkpoint, trainer: Trainer, ema: Ema) -> None:
    """Optimizer and average of a checkpoint; its model was loaded before the optimizer took hold of it
    (collective).
    """
    trainer.load_optimizer(checkpoint.load("optimizer"), checkpoint.step - checkpoint.state.get("skipped", 0))
    ema.load_state_dict(trainer.local_like_parameters(checkpoint.load("ema")))
