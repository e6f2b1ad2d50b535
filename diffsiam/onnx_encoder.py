"""An encoder as an ONNX file that takes uint8 images: its normalisation is inside, so no user can forget it.

Needs the extra ``onnx``.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from diffsiam.model import Model

TOLERANCE = 1e-4  # of z, relative to its largest entry
OPSET = 18
TRIAL = 3  # images that both sides encode


class ParityError(Exception):
    """onnxruntime computes something else than torch."""


class _FromBytes(nn.Module):
    """uint8 (N, px, px, 3) -> z."""

    def __init__(self, model: Model):
        super().__init__()
        self.encoder = model.encoder
        self.mean = nn.Buffer(255 * torch.tensor(model.contract.mean)[:, None, None])
        self.scale = nn.Buffer(1 / (255 * torch.tensor(model.contract.std)[:, None, None]))

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder((images.permute(0, 3, 1, 2).float() - self.mean) * self.scale)


def export_onnx(model: Model, path: Path, px: int | None = None) -> float:
    """Write f as ONNX: input "images" uint8 (N, px, px, 3) with N free, output "z" (N, d) float32.

    Args:
        px: side of the images, where the model does not record it.

    Returns:
        Largest difference between onnxruntime and torch on trial images, relative to the largest |z|.

    Raises:
        ModuleNotFoundError: the extra is not installed.
        ParityError: that difference exceeds :data:`TOLERANCE`; no file is left.
        ValueError: no resolution is known.
    """
    import onnxruntime

    px = model.contract.px or px
    if px is None:
        raise ValueError("the model records no resolution: say px")
    module = _FromBytes(model.to("cpu")).eval()
    images = torch.randint(
        0, 256, (TRIAL, px, px, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with _quiet():
        torch.onnx.export(
            module,
            (images,),
            path,
            input_names=["images"],
            output_names=["z"],
            dynamic_shapes={"images": {0: torch.export.Dim("N")}},
            opset_version=OPSET,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in (1, TRIAL):
        (found,) = session.run(["z"], {"images": images[:count].numpy()})
        with torch.no_grad():
            expected = model.encode(images[:count])
        difference = (torch.from_numpy(found) - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
        worst = max(worst, difference.item())
    if not worst <= TOLERANCE:
        path.unlink()
        raise ParityError(f"onnxruntime differs from torch by {worst:.1e} of the largest entry of z")
    return worst


class _quiet(warnings.catch_warnings):
    """The exporter's advice to its developers is not for users."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
