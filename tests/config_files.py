"""Config files and their refusals: what the tests of configs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config import Config
from engine.config_file import load
from engine.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"data": {"source": "rooms", "px": 16}, "loss": {"weight": 0}}  # needs neither images nor weights


def write(folder: Path, values: dict[str, Any], name: str = "trial") -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")
    return path


def rooms(folder: Path, *overrides: str) -> Config:
    return load(write(folder, ROOMS), overrides)


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def inputs(path: Path, folder: Path) -> list[str]:
    """Overrides that supply what a preset asks for."""
    values = json.loads(path.read_text())
    supplied = [f"data.path={folder}"] if values["data"]["source"] != "rooms" else []
    if values.get("task") != "diffusion" and "weights" not in values["frozen"]:
        supplied.append("frozen.weights=random")
    return supplied
