"""Weights of diffusion models: read a file strictly, and infer the architecture from its tensors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffsiam.unet import UNet, UNetConfig


class WeightsError(Exception):
    """A weights file cannot be read, or does not hold what is asked for."""


EMA_KEYS = (
    "ema_denoise_fn",
    "denoise_fn",
)  # a pretrained DPM of PDAE holds both; published results use the EMA


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a torch file (bare state dict, or PDAE's pretrained DPM); never
    runs code of the file.

    Raises:
        WeightsError: file missing, damaged, or not a flat dictionary of tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: cannot be read as weights ({_first_line(error)})") from error
    except Exception as error:  # the unpickler's refusals come in several types
        raise WeightsError(f"{path}: refused, it is not plain tensors ({_first_line(error)})") from error
    for key in EMA_KEYS:
        if isinstance(content, Mapping) and key in content:
            content = content[key]
            break
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(v, Tensor) for v in content.values())
    ):
        raise WeightsError(f"{path}: holds no flat state dict of a U-Net")
    return dict(content)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def infer_config(state: Mapping[str, Tensor], heads: int = 1, dropout: float = 0.0) -> UNetConfig:
    """The architecture of a guided-diffusion-family U-Net from its tensors.

    ``heads`` and ``dropout`` leave no trace in the tensors and are arguments.

    Raises:
        WeightsError: the keys are not those of such a U-Net.
    """
    try:
        embedding, base = state["time_embed.0.weight"].shape
        inputs = 1 + max(int(m[1]) for key in state if (m := re.match(r"input_blocks\.(\d+)\.", key)))
        outputs = 1 + max(int(m[1]) for key in state if (m := re.match(r"output_blocks\.(\d+)\.", key)))
        blocks = next(
            i
            for i in range(outputs)
            if any(f"output_blocks.{i}.{j}.in_layers.0.weight" in state for j in (1, 2))
        )
        levels = outputs // (blocks + 1)
        mult, attention = [], []
        for level in range(levels):
            first = 1 + level * (blocks + 1)
            mult.append(state[f"input_blocks.{first}.0.out_layers.3.weight"].shape[0] // base)
            if f"input_blocks.{first}.1.qkv.weight" in state:
                attention.append(2**level)
        out_channels = state["out.2.weight"].shape[0]
    except (KeyError, StopIteration, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"not a guided-diffusion U-Net: {_first_line(error)}") from error
    if inputs != outputs:
        raise WeightsError(f"not a guided-diffusion U-Net: {inputs} input blocks, {outputs} output blocks")
    return UNetConfig(
        base_channels=base,
        channel_mult=tuple(mult),
        blocks=blocks,
        attention=tuple(attention),
        heads=heads,
        dropout=dropout,
        learn_sigma=out_channels == 6,
        embedding=None if embedding == 4 * base else embedding,
    )


def load_unet(path: Path, heads: int = 1, dropout: float = 0.0) -> UNet:
    """The U-Net of a file, its architecture inferred, every key matched, float32.

    Raises:
        WeightsError: unreadable, another architecture, or the first key whose presence or shape differs.
    """
    state = {key: value.float() for key, value in read_state(path).items()}
    try:
        unet = UNet(infer_config(state, heads, dropout))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    mismatch = first_mismatch(unet.state_dict(), state)
    if mismatch:
        raise WeightsError(f"{path}: {mismatch}")
    unet.load_state_dict(state)
    return unet


def first_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """The first difference between two state dicts in words, or None."""
    for key, value in expected.items():
        if key not in found:
            return f"key {key} {tuple(value.shape)} is missing"
        if found[key].shape != value.shape:
            return f"key {key} has shape {tuple(found[key].shape)}, expected {tuple(value.shape)}"
    extra = next((key for key in found if key not in expected), None)
    return f"key {extra} is unexpected" if extra else None


def save_unet(unet: UNet, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a U-Net's weights as safetensors under the published key names."""
    save_file(
        {key: value.detach().to("cpu", dtype).contiguous() for key, value in unet.state_dict().items()}, path
    )


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
