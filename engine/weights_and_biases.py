"""Metrics to Weights & Biases, beside metrics.jsonl and TensorBoard: the extra ``wandb``, asked for by
``log.wandb=PROJECT``.

Nothing goes over the network under ``WANDB_MODE=offline``; ``wandb sync RUN/wandb/offline-*`` sends it later.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.metrics import Value


class WeightsAndBiases:
    """One run of a project; the bins of one name become ``name/00``, ``name/01``, ...

    A training that goes on continues the same run. ``step`` is a value of its own and the x axis of all
    others, since the counter of W&B takes no step twice.

    Args:
        project: its name.
        run_dir: of the training; what W&B keeps lies in its ``wandb/``.
        config: all effective values.

    Raises:
        UsageError: wandb is not installed, or refuses to start (no login, no network).
    """

    def __init__(self, project: str, run_dir: Path, config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise UsageError(
                f"log.wandb={project}: wandb cannot be imported ({error}); pip install 'diffsiam[wandb]'"
            ) from error
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            self._run = wandb.init(
                project=project,
                dir=run_dir,
                name=run_dir.name,
                id=_identity(run_dir),
                resume="allow",
                config=dict(config),
            )
        except Exception as error:  # its own classes, which differ from version to version
            raise UsageError(
                f"log.wandb={project}: {str(error).splitlines()[0]}; `wandb login`, or WANDB_MODE=offline"
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, record: Mapping[str, Value]) -> None:
        """Keep the values of one step."""
        flat: dict[str, float] = {}
        for name, value in record.items():
            if isinstance(value, list):
                flat |= {f"{name}/{i:02d}": part for i, part in enumerate(value) if part is not None}
            else:
                flat[name] = value
        self._run.log({"step": step, **flat})

    def close(self) -> None:
        """Write out what is still held."""
        self._run.finish()


def _identity(run_dir: Path) -> str:
    """The same for a run that goes on, another for every directory."""
    return hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
