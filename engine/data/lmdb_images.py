"""Images as values of an LMDB: the databases of DiffAE, PDAE and DiTi, the original LSUN, and others.

Databases are opened when a process first reads, without lock and read-ahead, so that readers may be forked or
spawned, on network file systems too. Nothing is mapped that the file does not hold: LMDB itself would end the
process with a bus error.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.celeba import COUNT, PARTS, REGION, attributes_beside
from engine.data.source import Source
from engine.data.splits import Split
from engine.errors import DataError, UsageError

NUMBERED = re.compile(rb"(.+)-(\d{3,})")
LSUN_KEY = re.compile(rb"[0-9a-f]{40}")
LENGTH = b"length"
NO_IMAGES = {LENGTH, b"__len__", b"__keys__", b"num-samples"}
MAGIC, MAGIC_AT = struct.pack("<I", 0xBEEFC0DE), 16
CHUNK = 100_000  # keys


def is_lmdb(path: Path) -> bool:
    """Whether a path is an LMDB: its folder, its data.mdb, or a database in one file."""
    file = path / "data.mdb" if path.is_dir() else path
    try:
        with open(file, "rb") as opened:
            return opened.read(MAGIC_AT + 4)[MAGIC_AT:] == MAGIC
    except OSError:
        return False


@cache
def _environment(file: str) -> Any:
    """The one environment of this process for a database file; a forked process keeps its parent's."""
    import lmdb

    return lmdb.open(file, subdir=False, readonly=True, lock=False, readahead=False, meminit=False)


@dataclass(frozen=True)
class Numbered:
    """Keys counted as in DiffAE's databases: PREFIX-00000 or PREFIX-0000000."""

    prefix: bytes
    digits: int
    count: int

    def key(self, index: int) -> bytes:
        return b"%s-%0*d" % (self.prefix, self.digits, index)

    def __len__(self) -> int:
        return self.count

    def describe(self) -> str:
        return f"keys {self.prefix.decode(errors='replace')}-%0{self.digits}d"


@dataclass(frozen=True)
class Listed:
    """All keys of a database in its own order, (N,) bytes."""

    keys: np.ndarray

    def key(self, index: int) -> bytes:
        return bytes(self.keys[index])

    def __len__(self) -> int:
        return len(self.keys)

    def describe(self) -> str:
        first = self.key(0)
        return "sha1 keys" if LSUN_KEY.fullmatch(first) else f"keys {first.decode(errors='replace')} .."


class LmdbSource(Source):
    """Encoded images (JPEG, WebP, PNG) of an LMDB; the key scheme is read from it.

    A database of DiffAE may hold several sizes: the smallest that is at least ``px`` is read, else the
    largest. One of CelebA (202,599 images of unchanged size) is cut to the usual 128 x 128 pixels at (57, 25)
    and divided as published.

    Args:
        path: folder of data.mdb, data.mdb itself, or a database in one file.
        px: of the training image.
        split: of CelebA.

    Raises:
        UsageError: no LMDB, truncated, empty, or its keys are not those that it states.
    """

    name = "lmdb"

    def __init__(self, path: str | Path, px: int = 128, split: Split = "train"):
        path = Path(path).expanduser()
        self.root = path.parent if path.name == "data.mdb" else path
        self.file = str((self.root / "data.mdb" if self.root.is_dir() else path).resolve())
        if not is_lmdb(path):
            raise UsageError(f"no LMDB (data.mdb); {path}; set data.path to its folder")
        self._demand_whole()
        self.scheme = self._scheme(px)
        if not len(self.scheme):
            raise UsageError(f"the LMDB holds no images; {self.root}")
        self.first, self.last, self.split = 0, len(self.scheme), ""
        celeba = isinstance(self.scheme, Numbered) and self.scheme.prefix == b"None"
        if celeba and len(self.scheme) == COUNT:
            self.region = REGION
            if split != "all":
                (self.first, self.last), self.split = PARTS[split], f" ({split} of CelebA)"
        if isinstance(self.scheme, Listed) and LSUN_KEY.fullmatch(self.scheme.key(0)):
            self.name = "lsun"

    def _demand_whole(self) -> None:
        import lmdb

        try:
            environment = _environment(self.file)
            needs = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        except lmdb.Error as error:
            raise UsageError(f"cannot open the LMDB; {self.root}; {error}") from error
        if (has := Path(self.file).stat().st_size) < needs:
            raise UsageError(f"the LMDB is truncated: {has:,} of {needs:,} bytes; {self.file}; copy it again")

    def _scheme(self, px: int) -> Numbered | Listed:
        environment = _environment(self.file)
        with environment.begin() as transaction, transaction.cursor() as cursor:
            length = transaction.get(LENGTH)
            if length is None or not length.isdigit():
                return Listed(_listed(cursor, environment.stat()["entries"]))
            found = _numbered(cursor, int(length))
            if not found:
                return Listed(_listed(cursor, environment.stat()["entries"]))
            chosen = min(found, key=lambda scheme: _distance(scheme.prefix, px))
            last = chosen.key(int(length) - 1)
            if int(length) and transaction.get(last) is None:
                raise UsageError(
                    f"the LMDB states a length of {int(length):,}, but has no key {last.decode()}; "
                    f"{self.root}; it was not written to its end: make it again"
                )
            return chosen

    def __len__(self) -> int:
        return self.last - self.first

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Values of the items ``indices``, 1-D uint8 each; an empty one where the key is missing."""
        import lmdb

        try:
            with _environment(self.file).begin() as transaction:
                values = [transaction.get(self.scheme.key(self.first + int(i)), b"") for i in indices]
        except lmdb.Error as error:
            raise DataError(f"cannot read the LMDB; {self.root}; {error}") from error
        return [np.frombuffer(value, np.uint8) for value in values]

    def item(self, index: int) -> str:
        return f"{self.root}, key {self.scheme.key(self.first + index).decode(errors='replace')}"

    @cached_property
    def _attributes(self) -> tuple[list[str], np.ndarray] | None:
        return attributes_beside(self.root, len(self.scheme))

    @property
    def attributes(self) -> np.ndarray | None:
        return None if self._attributes is None else self._attributes[1][self.first : self.last]

    @property
    def attribute_names(self) -> list[str]:
        return [] if self._attributes is None else self._attributes[0]

    def describe(self) -> str:
        kind = "LSUN LMDB" if self.name == "lsun" else "LMDB"
        cut = f", cut to {REGION[2]} x {REGION[3]}" if self.region else ""
        return f"{kind} {self.root}: {len(self):,} images, {self.scheme.describe()}{self.split}{cut}"

    def fingerprint(self) -> str:
        environment = _environment(self.file)
        state = environment.stat() | {"txn": environment.info()["last_txnid"]}
        return hashlib.sha256(
            f"{self.name} {len(self)} {self.scheme.describe()} {state} {self.first}".encode()
        ).hexdigest()


def _numbered(cursor: Any, count: int) -> list[Numbered]:
    """The numbered sequences of keys, found by jumping from one prefix to the next; none if other keys are
    among them.
    """
    found: list[Numbered] = []
    more = cursor.first()
    while more:
        if cursor.key() in NO_IMAGES:
            more = cursor.next()
            continue
        match = NUMBERED.fullmatch(cursor.key())
        if match is None:
            return []
        found.append(Numbered(match[1], len(match[2]), count))
        more = cursor.set_range(match[1] + b".")  # the first key after all of PREFIX-
    return found


def _listed(cursor: Any, entries: int) -> np.ndarray:
    """All keys that name images, as one array of bytes: 3 million of LSUN's take 120 MB."""
    keys = np.empty(entries, "S1")
    walk, filled = cursor.iternext(keys=True, values=False), 0
    while chunk := list(islice(walk, CHUNK)):
        width = max(map(len, chunk))
        if width > keys.itemsize:  # nearly always once: the keys of a set are of one length
            keys = keys.astype(f"S{width}") if filled else np.empty(entries, f"S{width}")
        keys[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    others = [name for name in NO_IMAGES if cursor.set_key(name)]
    return keys[~np.isin(keys, others)] if others else keys


def _distance(prefix: bytes, px: int) -> tuple[bool, int]:
    """Order of preference of a database's sizes; one that is no number ("None") is a size of its own."""
    size = int(prefix) if prefix.isdigit() else px
    return size < px, abs(size - px)
