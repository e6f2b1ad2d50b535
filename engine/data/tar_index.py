"""What lies where in tar files: read header by header once, then kept.

A tar has no table of contents, so opening one of a million members takes a minute. The list that was found is
kept beside the tar, or in the user's cache folder where that cannot be written, and is believed as long as
names, sizes and times of the tars are those it was made from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from engine.data.source import SUFFIXES
from engine.errors import DataError, UsageError

VERSION = 1
KEPT_FROM = 10_000  # images; fewer are listed in a second
CLASS = ".cls"


@dataclass(frozen=True)
class Index:
    """The images of some tar files, in the order in which they lie.

    Attributes:
        names: of the members.
        places: (N, 3) int64 of (tar, first byte, size).
        codes: the class numbers of WebDataset's .cls members, by "tar/key".
    """

    names: list[str]
    places: np.ndarray
    codes: dict[str, int]


def index(root: Path, shards: list[str]) -> Index:
    """The index of ``shards``, which lie in the folder ``root`` or are that file.

    Raises:
        UsageError: a compressed or truncated archive, or a .cls that is no number.
        DataError: one cannot be read.
    """
    state = _state(shards)
    for file in _files(root, state):
        if (found := _load(file, state)) is not None:
            return found
    made = _scan(shards)
    if len(made.names) >= KEPT_FROM:
        _keep(made, root, state)
    return made


def stem(name: str) -> tuple[str, str]:
    """WebDataset's key and suffix: a name up to the first dot of its last part, and the rest."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    start, dot, rest = base.partition(".")
    return folder + slash + start, (dot + rest).lower()


def read_range(path: str, start: int, size: int) -> np.ndarray:
    """Bytes of a file, 1-D uint8. It is opened for every read: a set may have more shards than a process may
    have files.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return np.fromfile(path, dtype=np.uint8, count=size, offset=start)
    except OSError as error:
        raise DataError(f"cannot read a shard; {path}; {error.strerror or error}") from error


def _scan(shards: list[str]) -> Index:
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    codes: dict[str, int] = {}
    for number, shard in enumerate(shards):
        for key, suffix, start, size in _members(shard):
            if suffix.endswith(SUFFIXES):
                names.append(key + suffix)
                places.append((number, start, size))
            elif suffix == CLASS:
                codes[f"{number}/{key}"] = _code(shard, start, size)
    return Index(names, np.array(places, dtype=np.int64).reshape(-1, 3), codes)


def _members(shard: str) -> list[tuple[str, str, int, int]]:
    """(key, suffix, first byte, size) of the regular members."""
    try:
        with tarfile.open(shard, mode="r:") as archive:
            found = []
            for member in archive:
                if member.isreg():
                    found.append((*stem(member.name), member.offset_data, member.size))
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep a gigabyte of a million
            rest = read_range(shard, archive.offset, tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UsageError(f"cannot read a tar file (is it compressed?); {shard}; {error}") from error
    if rest.any() or 0 < len(rest) < tarfile.BLOCKSIZE:  # what follows is half a header, not the end's zeros
        raise UsageError(f"a tar file is truncated; {shard}; copy it again")
    return found


def _code(shard: str, start: int, size: int) -> int:
    text = read_range(shard, start, size).tobytes().decode(errors="replace").strip()
    if not text.isdecimal():
        raise UsageError(f"a .cls is no class number: {text[:20]!r}; {shard}")
    return int(text)


def _state(shards: list[str]) -> str:
    """What an index belongs to: version, and name, size and time of change of each tar."""
    stats = [(os.path.basename(shard), os.stat(shard)) for shard in shards]
    return json.dumps([VERSION, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]])


def _files(root: Path, state: str) -> list[Path]:
    """Where an index may lie: beside the tars, and in the cache folder. One of several splits has its own."""
    names = hashlib.sha256(json.dumps([name for name, *_ in json.loads(state)[1]]).encode()).hexdigest()[:12]
    folder = root if root.is_dir() else root.parent
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffsiam"
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
    return [folder / f".index-{names}.npz", cache / f"tar-{place}-{names}.npz"]


def _load(file: Path, state: str) -> Index | None:
    """The index kept in ``file``; None if there is none, or if it is damaged or of other tars."""
    try:
        with np.load(file, allow_pickle=False) as held:
            if str(held["state"]) != state:
                return None
            keys, codes = _lines(held["keys"]), held["codes"].tolist()
            names, places = _lines(held["names"]), held["places"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    if places.shape != (len(names), 3) or len(keys) != len(codes):
        return None
    return Index(names, places, dict(zip(keys, codes, strict=True)))


def _keep(made: Index, root: Path, state: str) -> None:
    """Into the first place that can be written; nowhere else is no error, the next start takes its time."""
    for file in _files(root, state):
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as out:
                np.savez(
                    out,
                    state=np.array(state),
                    names=_bytes(made.names),
                    places=made.places,
                    keys=_bytes(list(made.codes)),
                    codes=np.array(list(made.codes.values()), dtype=np.int64),
                )
            os.replace(part, file)  # several ranks may do so at once
            return
        part.unlink(missing_ok=True)


def _bytes(names: list[str]) -> np.ndarray:
    """Names end with a zero byte, which none of a tar can hold."""
    return np.frombuffer("".join(name + "\0" for name in names).encode("utf-8", "surrogateescape"), np.uint8)


def _lines(held: np.ndarray) -> list[str]:
    return held.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
