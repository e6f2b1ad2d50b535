"""From a path to its contents, by what the file holds and not by its name; nothing in a file is ever run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from diffsiam.weights.errors import WeightsError, first_line
from diffsiam.weights.survey import Foreign, survey

LONGEST_HEADER = 16 << 20  # bytes of JSON in a safetensors file; the largest real ones stay below one
LONGEST_JSON = 1 << 20


@dataclass(frozen=True)
class Content:
    """What a file or folder holds.

    Attributes:
        path: as given.
        file: that holds the tensors.
        tree: tensors by name (safetensors), or whatever the torch file's top level is.
        metadata: of a safetensors file.
        config, scheduler: the JSON files beside the tensors, in a folder of diffusers.
    """

    path: Path
    file: Path
    tree: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    scheduler: Mapping[str, Any] | None = None


def read(path: Path) -> Content:
    """The contents of a weights file, or of a folder as diffusers writes it; under :func:`refusals`.

    Tensors stay in the file until they are used (memory-mapped), where the format allows.

    Raises:
        WeightsError: missing, damaged, of another kind, or more than plain tensors.
    """
    return _read_folder(path) if path.is_dir() else _read_file(path)


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Whatever a foreign file provokes within becomes one line that begins with its path.

    Raises:
        WeightsError: that line.
    """
    try:
        yield
    except Foreign as error:
        raise WeightsError(
            f"{path}: refused, it is not plain tensors ({error}); if you trust where it comes from, "
            f"`diffsiam convert --isolated {path} OUT` takes its tensors and runs none of it"
        ) from error
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:  # parsers and torch raise every type there is
        raise WeightsError(f"{path}: cannot be read as weights ({first_line(error)})") from error


def write_tensors(
    state: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with the permissions that any new file gets; the library's own are the owner's
    alone.
    """
    save_file(dict(state), path, metadata)
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        WeightsError: too long for one, or not one.
    """
    if path.stat().st_size > LONGEST_JSON:
        raise WeightsError(f"{path.name} is too long for a description")
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise WeightsError(f"{path.name} is no JSON object")
    return value


def _read_file(path: Path) -> Content:
    if not path.is_file():
        raise WeightsError("no such file")
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":
        return _read_safetensors(path, int.from_bytes(head[:8], "little"))
    if head[:2] != b"PK" and head[:1] != b"\x80":
        raise WeightsError("cannot be read as weights (neither safetensors nor a file of torch)")
    survey(path)
    content = _load(path, is_zip=head[:2] == b"PK")
    if not isinstance(content, Mapping):
        raise WeightsError("holds no dictionary of tensors")
    return Content(path, path, content)


def _load(path: Path, is_zip: bool) -> object:
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    with path.open("rb") as file:  # torch would go by the name, not by the content
        return torch.load(file, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path, header: int) -> Content:
    if header > min(LONGEST_HEADER, path.stat().st_size - 8):
        raise WeightsError(f"cannot be read as weights (a header of {header} bytes)")
    with safe_open(path, framework="pt", device="cpu") as file:
        names = file.keys()
        return Content(path, path, {name: file.get_tensor(name) for name in names}, file.metadata() or {})


def read_tensors(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        WeightsError: it is another file.
    """
    content = _read_file(path)
    if not all(isinstance(value, torch.Tensor) for value in content.tree.values()):
        raise WeightsError(f"{path.name} is no flat file of tensors")
    return content.tree


def _read_folder(path: Path) -> Content:
    """diffusers: config.json and the tensors, in the folder itself or in the unet/ of a pipeline."""
    folder = path / "unet" if (path / "unet" / "config.json").is_file() else path
    if not (folder / "config.json").is_file():
        raise WeightsError("is a folder without config.json: neither of diffusers nor exported by us")
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"):
        if (folder / name).is_file():
            break
    else:
        raise WeightsError("has a config.json but no diffusion_pytorch_model.safetensors or .bin")
    schedulers = (path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json")
    scheduler = next((read_json(file) for file in schedulers if file.is_file()), None)
    content = _read_file(folder / name)
    return Content(
        path, content.file, content.tree, content.metadata, read_json(folder / "config.json"), scheduler
    )
