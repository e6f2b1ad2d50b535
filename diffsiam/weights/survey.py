"""The contents of a torch file as its pickle claims them, read without making a tensor or running anything.

What torch's reader would take on trust is compared with the file first: storages that claim more than their
record holds, tensors that reach beyond their storage or repeat it, compressed or damaged records. A pickle
may name only what plain tensors need; with ``inert=True`` every other name becomes a :class:`Placeholder`,
which is how a file that needs foreign classes is read at all (:mod:`diffsiam.weights.isolated`).
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from diffsiam.weights.errors import WeightsError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch files before version 1.6
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file."""

    dtype: torch.dtype
    key: str
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class TensorClaim:
    """A tensor that a pickle describes; its elements lie within its storage, each once."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Placeholder:
    """Stands for an object of a foreign class: takes any arguments and any state, keeps and does nothing."""

    def __new__(cls, *_: object, **__: object) -> Placeholder:
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object):
        pass

    def __setstate__(self, _: object) -> None:
        pass

    def append(self, _: object) -> None:
        """As a list's."""

    def extend(self, _: object) -> None:
        """As a list's."""

    def __setitem__(self, *_: object) -> None:
        pass


class Foreign(WeightsError):
    """A pickle names something that plain tensors do not need."""


def survey(path: Path, inert: bool = False) -> Any:
    """The structure of a torch file, with :class:`TensorClaim` where tensors are.

    Raises:
        Foreign: it names anything but plain tensors and containers, and ``inert`` is not set.
        WeightsError: it is damaged, or claims what it does not hold.
    """
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            return _survey_zip(file, inert)
        file.seek(0)
        return _survey_legacy(_Bounded(file, path.stat().st_size), inert)


def records(archive: zipfile.ZipFile) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The folder that everything in a torch archive lies in, and the storages' entries by key.

    Raises:
        WeightsError: no such archive, or entries that are compressed or larger than the file.
    """
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1 or len(entries) != len(archive.infolist()):
        raise WeightsError("is a zip archive, but not one of torch")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise WeightsError("holds compressed records, which torch never writes")
    assert archive.fp is not None
    if sum(entry.file_size for entry in entries.values()) > archive.fp.seek(0, 2):
        raise WeightsError("claims records larger than the file")
    folder = pickles[0].removesuffix("data.pkl")
    data = f"{folder}data/"
    return folder, {name.removeprefix(data): entries[name] for name in entries if name.startswith(data)}


def _survey_zip(file: IO[bytes], inert: bool) -> Any:
    with zipfile.ZipFile(file) as archive:
        folder, held = records(archive)
        if damaged := archive.testzip():
            raise WeightsError(f"is damaged: the checksum of {damaged} differs")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise WeightsError("was written in big-endian byte order")
        with archive.open(f"{folder}data.pkl") as stream:
            content, storages = _unpickle(stream, inert)
    for storage in storages.values():
        found = held[storage.key].file_size if storage.key in held else 0
        if found != storage.nbytes:
            raise WeightsError(f"storage {storage.key} has {found} bytes instead of {storage.nbytes}")
    return content


class _Bounded:
    """A file of which no more is asked than it has: Python makes room for what is asked."""

    def __init__(self, file: IO[bytes], size: int):
        self.size, self.tell, self.seek, self.readline = size, file.tell, file.seek, file.readline
        self._read = file.read

    def read(self, count: int = -1) -> bytes:
        return self._read(min(count, self.size - self.tell()) if count >= 0 else count)


def _survey_legacy(file: _Bounded, inert: bool) -> Any:
    """Before torch 1.6: four pickles, the storages' keys in order, then each storage as count and numbers."""
    if _unpickle(file, inert)[0] != MAGIC or _unpickle(file, inert)[0] != PROTOCOL:
        raise WeightsError("is a pickle, but not one of torch")
    _unpickle(file, inert)
    content, storages = _unpickle(file, inert)
    order, _ = _unpickle(file, inert)
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(storages):
        raise WeightsError("lists other storages than it uses")
    for key in order:
        storage, header = storages[key], file.read(8)
        if len(header) != 8 or struct.unpack("<q", header)[0] != storage.numel:
            raise WeightsError(f"storage {key} has another length than its tensors say")
        if file.tell() + storage.nbytes > file.size:
            raise WeightsError(f"storage {key} is cut off")
        file.seek(storage.nbytes, 1)
    return content


def _unpickle(file: Any, inert: bool) -> tuple[Any, dict[str, Storage]]:
    reader = _Reader(file, inert)
    return reader.load(), reader.storages


class _Reader(pickle._Unpickler):
    """Python's own unpickler, which grows no table by a number in the file as the compiled one does, with
    nothing to call but the few harmless functions below.
    """

    def __init__(self, file: Any, inert: bool):
        super().__init__(file, encoding="utf-8")
        self.inert = inert
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if not self.inert:
            raise Foreign(f"names {module}.{name}")
        return type("Foreign", (Placeholder,), {"__slots__": ()})

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, numel = pid[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise WeightsError("holds something other than storages")
        if not _is_count(numel) or not all(extra is None for extra in pid[5:]):
            raise WeightsError(f"storage {key} has no sensible length")
        storage = Storage(dtype, key, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise WeightsError(f"storage {key} is described twice, differently")
        return storage


def _rebuild(
    storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> TensorClaim:
    whole = isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple)
    if not whole or len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
        raise WeightsError("describes a tensor that is none")
    if not all(map(_is_count, (offset, *size, *stride))):
        raise WeightsError("describes a tensor with senseless shape or strides")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
    if count > storage.numel or (count and last >= storage.numel):
        raise WeightsError(f"a tensor of shape {size} reaches beyond its storage {storage.key}")
    return TensorClaim(storage, offset, size, stride)


def _parameter(data: TensorClaim, *_: object) -> TensorClaim:
    return data


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _text(value: str, encoding: str = "latin1") -> bytes:
    return value.encode("latin1")  # how protocol 2 writes bytes


def _foreign(*_: object) -> Placeholder:
    """What protocol 2 makes objects by; the class that follows is refused, or a placeholder."""
    return Placeholder()


_PLAIN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
    ("_codecs", "encode"): _text,
    ("copyreg", "_reconstructor"): _foreign,
    ("copy_reg", "_reconstructor"): _foreign,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
    ("torch.storage", "UntypedStorage"): torch.uint8,
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in STORAGES.values()},
}
