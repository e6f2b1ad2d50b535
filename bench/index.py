"""Start-up on large sets: ``python -m bench.index [--keys 3033042] [--members 100000]``.

Makes synthetic LMDBs of tiny values, one with the keys of DiffAE and one with those of LSUN, and a tar of
tiny members, and times opening each and reading a first batch, in a fresh process and after dropping what was
cached of the file. The tar is opened twice: the second time, the list of its members was kept.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import lmdb

KEYS = 3_033_042  # LSUN Bedroom
MEMBERS = 100_000
VALUE = b"tiny value"

CHILD = """
import json, resource, sys, time
import numpy as np
from engine.data.order import order
from engine.data.sources import open_source
began = time.perf_counter()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = open_source("auto", sys.argv[1], 128, 0, 0)
opened = time.perf_counter() - began
values = source.read(order(0, 0, np.arange(32), len(source)))
first = time.perf_counter() - began
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"count": len(source), "open_s": round(opened, 3), "first_batch_s": round(first, 3),
                  "mib": round((after - before) / 1024, 1), "read": len(values)}))
"""


def make(path: Path, keys: Iterator[bytes], length: int | None = None) -> Path:
    """An LMDB of those keys, in ascending order, with tiny values."""
    with lmdb.open(str(path), map_size=1 << 32) as environment:
        with environment.begin(write=True) as transaction:
            for key in keys:
                transaction.put(key, VALUE, append=True)
            if length is not None:
                transaction.put(b"length", str(length).encode(), append=True)
    return path


def make_tar(path: Path, count: int) -> Path:
    """A tar of tiny members, as if they were images."""
    with tarfile.open(path, "w") as archive:
        for i in range(count):
            member = tarfile.TarInfo(f"{i:08d}.jpg")
            member.size = len(VALUE)
            archive.addfile(member, io.BytesIO(VALUE))
    return path


def numbered(count: int) -> Iterator[bytes]:
    """DiffAE's keys of LSUN Bedroom."""
    return (b"256-%07d" % i for i in range(count))


def hashed(count: int) -> Iterator[bytes]:
    """LSUN's keys."""
    return iter(sorted(hashlib.sha1(b"%d" % i).hexdigest().encode() for i in range(count)))


def startup(path: Path) -> dict[str, float]:
    """Seconds and memory of opening ``path`` in a fresh process, the file not in the cache."""
    file = os.open(path / "data.mdb" if path.is_dir() else path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
    run = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def main(arguments: list[str]) -> int:
    """Make, time, print."""
    parser = argparse.ArgumentParser(prog="bench.index", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keys", type=int, default=KEYS, help="default: %(default)s")
    parser.add_argument("--members", type=int, default=MEMBERS, help="of the tar, default: %(default)s")
    options = parser.parse_args(arguments)
    count = options.keys
    with tempfile.TemporaryDirectory() as folder:
        for name, keys, length in (("DiffAE's", numbered(count), count), ("LSUN's", hashed(count), None)):
            path = make(Path(folder) / name.split("'")[0], keys, length)
            print(f"{count:,} keys, {name}: {json.dumps(startup(path))}", flush=True)
        path = make_tar(Path(folder) / "images.tar", options.members)
        for when in ("for the first time", "again"):
            print(f"tar of {options.members:,}, {when}: {json.dumps(startup(path))}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
