"""DiffSiam: image representations, fine to coarse, from what a frozen diffusion model loses.

import diffsiam
model = diffsiam.load("exported_folder")
z = model.encode(images)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffsiam.model import Model


def load(path: str | Path, frozen: str | Path | None = None, device: str = "cpu") -> Model:
    """A trained model; see :func:`diffsiam.model.load_model`. Torch is imported by the first call."""
    from diffsiam.model import load_model

    return load_model(Path(path), None if frozen is None else Path(frozen), device)
