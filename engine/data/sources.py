"""Which kind of source lies at a path, by what it holds, and opening it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.data.celeba import CelebASource, is_celeba
from engine.data.cifar import CifarSource, find_batches
from engine.data.folder import FolderSource
from engine.data.lmdb_images import LmdbSource, is_lmdb
from engine.data.prepared import PreparedSource, is_prepared
from engine.data.rooms import Rooms
from engine.data.rooms_source import RoomsSource
from engine.data.shards import TarSource, find_shards
from engine.data.source import Source
from engine.data.splits import Split, select
from engine.errors import UsageError

KINDS = ("folder", "lmdb", "celeba", "cifar", "tar", "prepared")


def open_source(
    source: str, path: str | Path | None, px: int, seed: int, count: int, split: Split = "train"
) -> Source:
    """The source that a config names.

    Args:
        source: "rooms" (of ``px``, ``seed``, ``count``), "auto" (by content of ``path``), or one of KINDS.

    Raises:
        UsageError: there is none at ``path``; it says what is there instead.
    """
    if source == "rooms":
        return RoomsSource(Rooms(px, seed, count))
    if source not in ("auto", *KINDS):
        raise UsageError(f"unknown data source {source!r}; data.source; use auto, rooms, {', '.join(KINDS)}")
    if not path:
        raise UsageError(f"data.source={source} needs images; data.path is not set; set data.path=PATH")
    path = Path(path).expanduser()
    if not path.exists():
        raise UsageError(f"the images do not exist; {path}; set data.path")
    kind = detect(path) if source == "auto" else source
    if kind == "lmdb":
        return LmdbSource(_database(path, split), px, split)
    if kind == "prepared":
        return PreparedSource(path)
    kinds: dict[str, Callable[[Path, Split], Source]] = {
        "folder": FolderSource,
        "celeba": CelebASource,
        "cifar": CifarSource,
        "tar": TarSource,
    }
    return kinds[kind](path, split)


def detect(path: Path) -> str:
    """The kind of source at an existing path, one of KINDS."""
    if path.is_file():
        if is_lmdb(path):
            return "lmdb"
        if find_shards(path):
            return "tar"
        raise UsageError(
            f"not a set of images: {_first_bytes(path)}; {path}; give a folder, an LMDB or a plain .tar"
        )
    if is_prepared(path):
        return "prepared"
    if is_lmdb(path) or _databases(path):
        return "lmdb"
    if find_batches(path):
        return "cifar"
    if is_celeba(path):
        return "celeba"
    return "tar" if find_shards(path) else "folder"


def _databases(path: Path) -> list[Path]:
    """LSUN's databases in the folder that they were unpacked into, such as bedroom_train_lmdb."""
    return sorted(folder for folder in path.glob("*_lmdb") if is_lmdb(folder)) if path.is_dir() else []


def _database(path: Path, split: Split) -> Path:
    found = {folder.name: folder for folder in _databases(path)}
    if is_lmdb(path) or not found:
        return path
    chosen = select(found, split)
    if len(chosen) != 1:
        raise UsageError(
            f"{len(chosen) or 'no'} databases of the split {split} among {', '.join(found)}; {path}; "
            "set data.path to one of them"
        )
    return found[chosen[0]]


def _first_bytes(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(6)
    known = {b"\x1f\x8b": "gzip", b"PK": "a zip archive", b"\xfd7zXZ": "xz", b"BZh": "bzip2"}
    named = (what for magic, what in known.items() if start.startswith(magic))
    return next(named, f"it starts with {start!r}")
