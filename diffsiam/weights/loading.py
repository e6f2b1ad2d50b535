"""From a path to networks."""

from __future__ import annotations

from pathlib import Path

from diffsiam.unet import UNet
from diffsiam.weights.architecture import NOTHING_ASSUMED, Assumed
from diffsiam.weights.exported import is_export, read_export
from diffsiam.weights.files import read, refusals
from diffsiam.weights.formats import recognise
from diffsiam.weights.parts import Parts
from diffsiam.weights.states import filled


def read_parts(path: Path, assumed: Assumed = NOTHING_ASSUMED) -> Parts:
    """The networks of a published file: recognised by content, every tensor compared with its architecture.

    Args:
        path: a file, or a folder of diffusers or of ``diffsiam export``.
        assumed: what tensors cannot tell.

    Raises:
        WeightsError: unreadable, of no known format, or the first key whose presence or shape differs.
    """
    with refusals(path):
        content = read_export(path) if is_export(path) else read(path)
        return recognise(content).parts(content, assumed).check()


def build_unet(parts: Parts) -> UNet:
    """The diffusion model of a file.

    Raises:
        WeightsError: it holds none.
    """
    config = parts.architecture
    assert parts.unet is not None, "has an architecture"
    return filled(lambda: UNet(config), parts.unet)


def load_unet(
    path: Path, heads: int | None = None, dropout: float = 0.0, head_channels: int | None = None
) -> UNet:
    """The U-Net of a file of any format, its architecture inferred, every key matched, float32.

    Raises:
        WeightsError: see :func:`read_parts`; or it holds no diffusion model.
    """
    return build_unet(read_parts(path, Assumed(heads, head_channels, dropout=dropout)))
