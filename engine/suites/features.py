"""Features of a run, computed once for every set of images and kept beside the run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffsiam.encoder import encode_images
from engine.suites.labelled import Part
from engine.trained import Trained
from kernels.noise_jump.ref import to_unit_range

PIECE = 4096  # images on the device at a time


class Features:
    """z of images in eval mode; ``run/features`` keeps them by run, step, images and view.

    Attributes:
        computed, found: how many parts were encoded and how many were in the cache.
    """

    def __init__(self, trained: Trained):
        self.trained, self.computed, self.found = trained, 0, 0
        self.device = next(trained.model.encoder.parameters()).device

    def __call__(self, part: Part, view: str = "plain", images: Tensor | None = None) -> Tensor:
        """(N, d) float32 on the CPU.

        Args:
            view: names what was done to the images.
            images: (N, px, px, 3) uint8 in place of the part's own, for a view that is not "plain".
        """
        path = self._path(part, view)
        if path.is_file():
            self.found += 1
            return load_file(path)["z"]
        pixels = torch.from_numpy(part.pixels()) if images is None else images
        z = torch.cat([self.encode(piece) for piece in pixels.split(PIECE)])
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_file({"z": z}, temporary)
        temporary.replace(path)
        self.computed += 1
        return z

    def encode(self, pixels: Tensor) -> Tensor:
        """z of uint8 images, nothing kept."""
        return encode_images(self.trained.model.encoder, to_unit_range(pixels.to(self.device))).cpu()

    def _path(self, part: Part, view: str) -> Path:
        named = f"{self.trained.config_hash} {self.trained.step} {part.key} {view}"
        return (
            self.trained.run_dir
            / "features"
            / f"{hashlib.sha256(named.encode()).hexdigest()[:24]}.safetensors"
        )
