"""CIFAR-10 and CIFAR-100 as the batches that are downloaded: pickles of arrays, of which nothing is run."""

from __future__ import annotations

import hashlib
import io
import pickle
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.source import Source
from engine.data.splits import Split
from engine.errors import UsageError

PX = 32
FOLDERS = ("cifar-10-batches-py", "cifar-100-python")
MARKS = (("batches.meta",), ("meta", "train"))  # files by which either is known
TRAIN_10 = [f"data_batch_{i}" for i in range(1, 6)]
RECONSTRUCT: Any = np.zeros(0).__reduce__()[0]
# All that a pickled array needs; the batches of 2009 name numpy's module of then.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def find_batches(path: Path) -> Path | None:
    """The folder of batches at ``path`` or in it, or None."""
    candidates = (path, *(path / name for name in FOLDERS))
    return next((folder for folder in candidates if any(_has(folder, names) for names in MARKS)), None)


def _has(folder: Path, names: tuple[str, ...]) -> bool:
    return all((folder / name).is_file() for name in names)


class CifarSource(Source):
    """32-px pictures with their classes, held in memory (184 MB).

    Raises:
        UsageError: a batch is missing or is not what CIFAR's are, or there is no such split.
    """

    name = "cifar"
    encoded = False
    px = PX

    def __init__(self, path: str | Path, split: Split = "train"):
        folder = find_batches(Path(path).expanduser())
        if folder is None:
            raise UsageError(f"no batches of CIFAR-10 or CIFAR-100 (python version); {path}")
        self.root, self.split = folder, split
        self.ten = (folder / "batches.meta").is_file()
        if split == "valid":
            raise UsageError(f"CIFAR has no split valid; {folder}; use data.split=train with data.held_out")
        train, test = (TRAIN_10, ["test_batch"]) if self.ten else (["train"], ["test"])
        names = {"train": train, "test": test, "all": train + test}[split]
        batches = [_batch(folder / name) for name in names]
        self.images = np.concatenate([_pictures(batch, folder) for batch in batches])
        key = "labels" if self.ten else "fine_labels"
        self._labels = np.concatenate([np.array(batch[key], dtype=np.int64) for batch in batches])

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    @cached_property
    def classes(self) -> list[str]:  # type: ignore[override]
        meta = _batch(self.root / ("batches.meta" if self.ten else "meta"))
        return list(meta["label_names" if self.ten else "fine_label_names"])

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The pictures ``indices``, (B, 32, 32, 3) uint8."""
        return self.images[indices]

    def item(self, index: int) -> str:
        return f"{self.root}, {self.split} picture {index}"

    def describe(self) -> str:
        kind = "CIFAR-10" if self.ten else "CIFAR-100"
        images = f"{len(self):,} images of {PX} px in {len(self.classes)} classes"
        return f"{kind} {self.root}: {images} ({self.split})"

    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.tobytes() + self._labels.tobytes()).hexdigest()


class _Arrays(pickle.Unpickler):
    """Reads dictionaries of strings, numbers and arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        if name == "_reconstruct":
            return RECONSTRUCT
        return super().find_class(module, name)


def _batch(path: Path) -> dict[str, Any]:
    try:
        content = _Arrays(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except OSError as error:
        raise UsageError(f"cannot read a batch of CIFAR; {path}; {error.strerror}") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UsageError(f"this is no batch of CIFAR; {path}; {error}; download it again") from error
    if not isinstance(content, dict):
        raise UsageError(f"this is no batch of CIFAR; {path}; it holds a {type(content).__name__}")
    return content


def _pictures(batch: dict[str, Any], folder: Path) -> np.ndarray:
    """Rows of 3072 bytes, plane by plane, as (N, 32, 32, 3)."""
    rows = batch.get("data")
    if not (isinstance(rows, np.ndarray) and rows.dtype == np.uint8 and rows.shape[1:] == (3 * PX * PX,)):
        raise UsageError(f"a batch of CIFAR without rows of 3072 bytes; {folder}; download it again")
    return np.ascontiguousarray(rows.reshape(-1, 3, PX, PX).transpose(0, 2, 3, 1))
