"""Our own files: safetensors under the published key names, with a description in the metadata.

The description holds the architecture, what tensors cannot tell (heads, norms), the image contract, and a
SHA-256 over all of it and every tensor, so that any change to such a file is noticed. Files of safetensors
without it are read by their keys like any other.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffsiam.unet import UNet
from diffsiam.weights.architecture import Assumed, unet_from_dict, unet_to_dict
from diffsiam.weights.contract import ImageContract
from diffsiam.weights.errors import WeightsError
from diffsiam.weights.files import Content, write_tensors
from diffsiam.weights.keys import flat
from diffsiam.weights.parts import Parts
from diffsiam.weights.states import State, digest_of, sound, to_cpu

NAME = "native"
KEY = "diffsiam"  # in the metadata
FORMAT = 1


def matches(content: Content) -> bool:
    """The description in the metadata."""
    return KEY in content.metadata


def parts(content: Content, assumed: Assumed) -> Parts:
    """The U-Net.

    Raises:
        WeightsError: damaged, written by a newer version, or other heads are asked for than are recorded.
    """
    state, described = verified(content)
    config = unet_from_dict(described["unet"])
    given = assumed.given()
    for name, value in given.items():
        if name != "dropout" and getattr(config, name) != value:
            raise WeightsError(f"records {name} = {getattr(config, name)}, {value} is asked for")
    config = replace(config, dropout=given.get("dropout", config.dropout))
    contract = ImageContract.from_dict(described["contract"])
    return Parts(content.path, content.file, NAME, unet=state, config=config, contract=contract)


def verified(content: Content) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and description of one of our files.

    Raises:
        WeightsError: any bit of either was changed, or it is of another version.
    """
    described = json.loads(content.metadata[KEY])
    claimed = described.pop("sha256")
    if described.get("format") != FORMAT:
        raise WeightsError(
            f"written in format {described.get('format')!r}, this version reads format {FORMAT}"
        )
    state = flat(content.tree, "the file")
    if digest_of(state, _text(described)) != claimed:
        raise WeightsError("is damaged: its sha256 differs from the one it records")
    return sound(state, content.file.stat().st_size), described


def write(path: Path, state: State, **described: Any) -> None:
    """Write one of our files, all or nothing."""
    described = {"format": FORMAT, **described}
    text = json.dumps(described | {"sha256": digest_of(state, _text(described))})
    temporary = path.with_name(f".tmp_{os.getpid()}_{path.name}")
    try:
        write_tensors(state, temporary, {KEY: text})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_unet(
    unet: UNet, path: Path, dtype: torch.dtype = torch.float32, contract: ImageContract | None = None
) -> None:
    """Write a U-Net's weights as safetensors under the published key names, with its architecture and what it
    expects of images.
    """
    described = {"unet": unet_to_dict(unet.config), "contract": (contract or ImageContract()).to_dict()}
    write(path, to_cpu(unet.state_dict(), dtype), **described)


def _text(described: dict[str, Any]) -> str:
    return json.dumps(described, sort_keys=True)
