"""Weights of LPIPS and FID: from a path or an environment variable, their sha256 compared first."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffsiam.evaluation.fidelity import Lpips
from engine.errors import UsageError

TRUNK, HEADS, INCEPTION = "DIFFSIAM_ALEXNET", "DIFFSIAM_LPIPS", "DIFFSIAM_INCEPTION"
FILES = {  # as published: what it is, and its sha256
    TRUNK: (
        "alexnet-owt-7be5be79.pth of torchvision",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    HEADS: (
        "weights/v0.1/alex.pth of LPIPS",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
    INCEPTION: (
        "inception-2015-12-05.pt of StyleGAN2-ADA",
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    ),
}


@dataclass(frozen=True)
class WeightFiles:
    """Paths given on the command line; None: the environment variable, if it is set."""

    alexnet: Path | None = None
    lpips: Path | None = None
    inception: Path | None = None

    def check(self) -> None:
        """Raises UsageError, before hours of work, for a file that is not the published one."""
        for variable, path in ((TRUNK, self.alexnet), (HEADS, self.lpips), (INCEPTION, self.inception)):
            find(variable, path)


NONE_GIVEN = WeightFiles()


def find(variable: str, given: Path | None) -> Path | None:
    """The file given, or named by the environment variable, if it is the published one; None without either.

    Raises:
        UsageError: it does not exist or is another file.
    """
    named = given or os.environ.get(variable)
    if not named:
        return None
    path, (what, digest) = Path(named), FILES[variable]
    if not path.is_file():
        raise UsageError(f"{variable}: {path} does not exist; it should be {what}")
    with open(path, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != digest:
        raise UsageError(
            f"{variable}: {path} is not {what}: its sha256 is {found[:12]}..., not {digest[:12]}..."
        )
    return path


def missing(*variables: str) -> str:
    """Why a measure is absent, and what would change that."""
    wanted = " and ".join(f"{variable}={FILES[variable][0]}" for variable in variables)
    return f"not measured: set {wanted}"


def load_lpips(given: WeightFiles = NONE_GIVEN) -> Lpips | None:
    """LPIPS on AlexNet, None where neither of its files is named.

    Raises:
        UsageError: a file is not the published one, or only one of the two is named.
    """
    files = find(TRUNK, given.alexnet), find(HEADS, given.lpips)
    if files == (None, None):
        return None
    if files[0] is None or files[1] is None:
        raise UsageError(f"LPIPS needs two files: {missing(TRUNK, HEADS).removeprefix('not measured: ')}")
    states = [torch.load(file, map_location="cpu", weights_only=True) for file in files if file]
    return Lpips(*states)


def load_inception(given: WeightFiles = NONE_GIVEN) -> Callable[[Tensor], Tensor] | None:
    """Images (N, 3, H, W) in [-1, 1] -> Inception's features (N, 2048); None where its file is not named.

    Raises:
        UsageError: the file is not the published one.
    """
    path = find(INCEPTION, given.inception)
    if path is None:
        return None
    network = torch.jit.load(str(path), map_location="cpu").eval()

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        bytes_ = (images.cpu() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        return torch.cat([network(part, return_features=True) for part in bytes_.split(32)])

    return features
