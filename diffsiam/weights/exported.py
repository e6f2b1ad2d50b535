"""A trained model as a folder: what ``diffsiam export`` writes and ``diffsiam.load`` reads.

    model.json            format, architectures, subsets, schedule, image contract, provenance, sha256s
    encoder.safetensors   f                            (moving averages, no optimizer)
    decoder.safetensors   g
    unet.safetensors      the frozen diffusion model, left out on request
    README.md             the model card

Every file is compared with its sha256 on reading, and model.json with its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffsiam.encoder import EncoderConfig
from diffsiam.weights.architecture import unet_from_dict, unet_to_dict
from diffsiam.weights.contract import ImageContract
from diffsiam.weights.errors import WeightsError
from diffsiam.weights.files import Content, read_json, read_tensors, sha256_of, write_tensors
from diffsiam.weights.parts import Parts
from diffsiam.weights.states import sound, to_cpu

DESCRIPTION = "model.json"
FORMAT = 1
NAMES = ("encoder", "decoder", "unet", "simsiam")


def write_export(
    out: Path,
    parts: Parts,
    provenance: Mapping[str, Any],
    card: str = "",
    extras: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder, all or nothing.

    Args:
        out: must not exist.
        parts: networks to write; one that is None is left out.
        provenance: JSON-able; where the model comes from.
        card: text of README.md; none: a few lines from what is known.
        extras: further JSON-able entries ("subsets", "schedule", "frozen").

    Raises:
        WeightsError: ``out`` exists.
    """
    if out.exists():
        raise WeightsError(f"{out}: exists already")
    temporary = out.with_name(f".tmp_{os.getpid()}_{out.name}")
    try:
        temporary.mkdir(parents=True)
        for name in NAMES:
            if (state := getattr(parts, name)) is not None:
                write_tensors(to_cpu(state), temporary / f"{name}.safetensors")
        described = describe(parts, provenance, extras or dict(parts.extras), temporary)
        (temporary / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n")
        (temporary / "README.md").write_text(card or plain_card(parts))
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def describe(
    parts: Parts, provenance: Mapping[str, Any], extras: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """model.json for networks whose files lie in ``folder``."""
    described = {
        "format": FORMAT,
        "encoder": None if parts.encoder_config is None else asdict(parts.encoder_config),
        "unet": None if parts.config is None else unet_to_dict(parts.config),
        "contract": parts.contract.to_dict(),
        "provenance": dict(provenance),
        **extras,
        "files": {file.name: sha256_of(file) for file in sorted(folder.glob("*.safetensors"))},
    }
    return json.loads(json.dumps(described | {"sha256": _digest(described)}))


def is_export(path: Path) -> bool:
    """Whether a folder is one of these."""
    return (path / DESCRIPTION).is_file()


def read_export(path: Path) -> Content:
    """Description and tensors, every byte compared.

    Raises:
        WeightsError: a file is missing or was changed, or a newer version wrote them.
    """
    described = read_json(path / DESCRIPTION)
    claimed = described.pop("sha256", None)
    if described.get("format") != FORMAT:
        raise WeightsError(
            f"written in format {described.get('format')!r}, this version reads format {FORMAT}"
        )
    if _digest(described) != claimed:
        raise WeightsError(f"{DESCRIPTION} was changed: its sha256 differs from the one it records")
    tree = {}
    for name, sha256 in described["files"].items():
        file = path / name
        if Path(name).name != name or not file.is_file():
            raise WeightsError(f"{name} is missing")
        if sha256_of(file) != sha256:
            raise WeightsError(f"{name} is damaged: its sha256 differs from the one in {DESCRIPTION}")
        tree[file.stem] = read_tensors(file)
    return Content(path, path / DESCRIPTION, tree, {DESCRIPTION: "yes"}, described)


def parts_of(content: Content, name: str) -> Parts:
    """The networks of an exported folder."""
    described = content.config or {}
    states: dict[str, Any] = {
        part: sound(state, (content.path / f"{part}.safetensors").stat().st_size)
        for part, state in content.tree.items()
        if part in NAMES
    }
    reserved = ("format", "encoder", "unet", "contract", "files")
    unet, encoder = described["unet"], described["encoder"]
    return Parts(
        content.path,
        content.file,
        name,
        **states,
        config=None if unet is None else unet_from_dict(unet),
        encoder_config=None if encoder is None else EncoderConfig(**encoder),
        contract=ImageContract.from_dict(described["contract"]),
        extras={key: value for key, value in described.items() if key not in reserved},
    )


def plain_card(parts: Parts) -> str:
    """README.md of a model of which no run is known."""
    return (
        f"# A model for DiffSiam\n\nHeld: {parts.describe()}.\nImages: {parts.contract.describe()}.\n\n"
        '```python\nimport diffsiam\nmodel = diffsiam.load("THIS FOLDER")\nz = model.encode(images)\n```\n'
    )


def _digest(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
