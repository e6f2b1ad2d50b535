"""What an edit leaves behind: a sheet, every image by itself, and a JSON that says what each of them is."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffsiam.sampling import Recipe
from engine import screen
from engine.command_line import typed_command
from engine.edit.opening import Trained
from engine.errors import UsageError
from engine.plain_json import write_json
from engine.sheet import save

RECORD, SHEET, IMAGES = "edit.json", "sheet.png", "images"


class Output:
    """A folder of results, written when all of them are there; an earlier one is replaced.

    Args:
        command: its name; the record also has the line as typed, if one was.
        folder: None: ``edits/COMMAND`` in the first run's directory.
        settings: JSON-able; with them, the seed and the recipe the images can be made again.

    Raises:
        UsageError: the folder holds something else.
    """

    def __init__(
        self,
        command: str,
        folder: Path | None,
        opened: Sequence[Trained],
        recipe: Recipe | None,
        settings: dict[str, Any],
    ):
        first = opened[0].path
        self.folder = folder or (first if first.is_dir() else first.parent) / "edits" / command
        self.begun = time.monotonic()
        self._pixels: dict[str, np.ndarray] = {}
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"--out {self.folder}: is a file; give a folder")
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / RECORD).is_file():
            raise UsageError(f"--out {self.folder}: holds other files; give a new folder")
        self.record: dict[str, Any] = {
            "command": command,
            "typed": typed_command(),
            "models": [{"name": each.name, **each.origin} for each in opened],
            "recipe": asdict(recipe) if recipe else None,
            **settings,
            "device": str(opened[0].device),
            "dtype": str(opened[0].autocast or torch.float32).removeprefix("torch."),
            "torch": torch.__version__,
            "images": [],
        }

    def add(self, name: str, image: np.ndarray, /, **what: Any) -> None:
        """Keep one image (px, px, 3) uint8 to be written as NAME.png, and note what it is."""
        file = f"{IMAGES}/{name}.png"
        self._pixels[file] = image
        self.record["images"].append({"file": file, **what})

    def finish(self, sheet: Image.Image | None, **more: Any) -> Path:
        """Write images, sheet and record; returns the folder."""
        shutil.rmtree(self.folder / IMAGES, ignore_errors=True)
        (self.folder / IMAGES).mkdir(parents=True)
        for file, image in self._pixels.items():
            Image.fromarray(image).save(self.folder / file)
        self.record |= more | {"seconds": round(time.monotonic() - self.begun, 2)}
        if sheet is not None:
            save(sheet, self.folder / SHEET)
        write_json(self.folder / RECORD, self.record)
        shown = f"{self.folder / SHEET}, " if sheet is not None else ""
        screen.line(f"written: {shown}{self.folder / RECORD}")
        return self.folder
