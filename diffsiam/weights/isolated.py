"""The tensors of a torch file that needs foreign classes, taken by a process that runs none of them.

    python -m diffsiam.weights.isolated IN OUT

Lightning of 2021 pickled hyper-parameters as objects of the training code. Here such objects become
placeholders that do nothing (:mod:`diffsiam.weights.survey`), tensors are cut out of the archive by their
described place, and OUT is a plain torch file of the same dictionaries of tensors. Memory, file size and time
of the process are limited by the size of IN.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsiam.weights.errors import WeightsError, first_line
from diffsiam.weights.survey import Storage, TensorClaim, records, survey

ROOM = 512 << 20  # bytes beside what the tensors take
SECONDS = 600


def convert_isolated(source: Path, out: Path) -> None:
    """Write the tensors of ``source`` to ``out``, a plain torch file.

    Raises:
        WeightsError: the process refused the file, or was stopped at a limit.
    """
    command = [sys.executable, "-m", "diffsiam.weights.isolated", str(source), str(out)]
    kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if key in os.environ}
    if "PYTHONPATH" not in kept:
        kept["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    try:
        done = subprocess.run(
            command, env=kept | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise WeightsError(f"{source}: stopped after {SECONDS} seconds") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise WeightsError(f"{source}: {reason[:200]}")


def take_tensors(source: Path) -> dict[str, Any]:
    """Top-level tensors, and dictionaries of tensors, of a torch archive.

    Raises:
        WeightsError: no archive of torch, or nothing of the kind in it.
    """
    content = survey(source, inert=True)
    if not isinstance(content, Mapping) or not zipfile.is_zipfile(source):
        raise WeightsError("is no torch archive of a dictionary")
    with zipfile.ZipFile(source) as archive:
        _, held = records(archive)
        storages: dict[str, Tensor] = {}

        def tensor(claim: TensorClaim) -> Tensor:
            storage = claim.storage
            if storage.key not in storages:
                storages[storage.key] = _numbers(archive, held[storage.key], storage)
            return torch.as_strided(storages[storage.key], claim.size, claim.stride, claim.offset)

        result: dict[str, Any] = {}
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, TensorClaim):
                result[key] = tensor(value)
            elif isinstance(key, str) and isinstance(value, Mapping):
                inner = {
                    k: tensor(v)
                    for k, v in value.items()
                    if isinstance(v, TensorClaim) and isinstance(k, str)
                }
                if inner and len(inner) == len(value):
                    result[key] = inner
    if not result:
        raise WeightsError("holds no dictionary of tensors")
    return result


def _numbers(archive: zipfile.ZipFile, record: zipfile.ZipInfo, storage: Storage) -> Tensor:
    if not storage.numel:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(bytearray(archive.read(record)), dtype=storage.dtype)


def _limit(size: int) -> None:
    """Let this process take no more memory, disk or time than a file of ``size`` bytes can need."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2 * size + ROOM,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size + ROOM,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS,) * 2)


def main(source: str, out: str) -> int:
    """Exit code 1 with one line on standard error if the file is refused."""
    try:
        _limit(Path(source).stat().st_size)
        torch.save(take_tensors(Path(source)), out)
    except WeightsError as error:
        print(first_line(error), file=sys.stderr)
        return 1
    except Exception as error:  # one line, whatever a foreign file provokes
        print(f"cannot be read as weights ({type(error).__name__}: {first_line(error)})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
