"""Checkpoints that survive a power cut, a full disk and a flipped bit.

    <run>/checkpoints/step_00001000/
        model.safetensors, ema.safetensors, ...   tensors: full and unsharded, so any world size can resume
        state.json                                everything else
        manifest.json                             size and sha256 of each file above, step, versions, ...

A directory appears under its final name only when every byte of it is on disk: written under a temporary name
on the same file system, each file fsynced, the manifest last, then one rename. Older checkpoints are pruned
only after that. Nothing here knows of ranks: the caller gathers, and rank 0 calls, holding the run's lock
(engine.runlock).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffsiam.weights.files import write_tensors
from engine import faults, screen
from engine.errors import CheckpointError
from engine.json_files import read_json
from engine.processes import is_alive

FORMAT = 1

_DIRECTORY = re.compile(r"step_(\d{8,})")
_TEMPORARY = re.compile(r"\.tmp_(\d+)_.+")
_STATE, _MANIFEST = "state.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every byte was compared with its manifest.

    Attributes:
        path: its directory.
        step: optimizer steps done when it was written.
        config_hash: of the configuration that wrote it; whether to accept another one is for the caller.
        state: the JSON part, as given to :func:`save`.
    """

    path: Path
    step: int
    config_hash: str
    state: dict[str, Any]

    def stated(self, name: str) -> Any:
        """What the state says under a name that every run writes.

        Raises:
            CheckpointError: it says nothing: no run of this engine wrote it.
        """
        if name not in self.state:
            raise CheckpointError(f"{self.path}: {_STATE} holds no {name!r}")
        return self.state[name]

    def load(self, stem: str) -> dict[str, Tensor]:
        """The tensors saved under ``stem`` ("model", "ema", "optimizer", ...), on the CPU and contiguous.

        Raises:
            CheckpointError: there is no such file here, or it became unreadable since it was verified.
        """
        file = self.path / f"{stem}.safetensors"
        if not file.exists():
            held = ", ".join(sorted(f.stem for f in self.path.glob("*.safetensors")))
            raise CheckpointError(f"{self.path} holds no {stem!r} (it holds: {held})")
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error


def save(
    run_dir: Path | str,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    config_hash: str,
    keep: int = 2,
) -> Path:
    """Write one checkpoint, durably and all or nothing, then prune. Returns its directory.

    Once this returns, a power cut at any moment leaves the checkpoint loadable. A valid checkpoint of the
    same step and configuration is left as it is, since a run's state is a function of the two.

    Args:
        tensors: file stem -> state dict. Shared and non-contiguous tensors are stored as separate ones.
        state: JSON-able.
        keep: newest checkpoints to keep, at least 2, so that damage to the newest never means starting again.

    Raises:
        CheckpointError: the disk is full, the directory is gone, ...; earlier checkpoints are untouched.
    """
    if keep < 2:
        raise ValueError(f"keep must be at least 2, got {keep}")
    parent = Path(run_dir) / "checkpoints"
    final = parent / f"step_{step:08d}"
    temporary = parent / f".tmp_{os.getpid()}_{final.name}"
    if _is_saved(final, config_hash):
        return final
    try:
        parent.mkdir(parents=True, exist_ok=True)
        remove_stale(run_dir)  # before the disk is needed
        temporary.mkdir()
        faults.point("save.begun")
        _write(temporary, step, tensors, state, config_hash)
        _discard(final)  # what is there is damaged, and a rename cannot replace a directory with files in it
        faults.point("save.complete")
        os.replace(temporary, final)
        faults.point("save.renamed")
        _sync(parent)
        _sync(parent.parent)  # the first save made its parent too
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint of step {step} was not saved in {parent}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    faults.point("save.durable")
    _prune(parent, step, keep)
    faults.point("save.pruned")
    return final


def latest(run_dir: Path | str) -> Checkpoint | None:
    """The newest valid checkpoint, or None where there has never been one. Reads every byte of it.

    A damaged one is named on the screen and the next older one is tried.

    Raises:
        CheckpointError: there are checkpoints and none is valid; training must not start from zero unasked.
    """
    reasons = []
    for _, path in sorted(_checkpoints(Path(run_dir) / "checkpoints"), reverse=True):
        try:
            return verify(path)
        except CheckpointError as error:
            reasons.append(str(error))
            screen.warn(f"checkpoint skipped: {error}")
    if reasons:
        raise CheckpointError(
            "no checkpoint is valid: "
            + "; ".join(reasons)
            + "; move them away to start this run from the beginning"
        )
    return None


def verify(path: Path | str) -> Checkpoint:
    """Compare a checkpoint directory with its manifest.

    Raises:
        CheckpointError: with the one reason why it cannot be trusted.
    """
    path = Path(path)
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        claimed, form = manifest.pop("manifest_sha256"), manifest["format"]
        step, config_hash = int(manifest["step"]), str(manifest["config_hash"])
        files = {name: (known["size"], known["sha256"]) for name, known in manifest["files"].items()}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: {_MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CheckpointError(f"{path}: {_MANIFEST} is damaged") from None
    if form != FORMAT:
        raise CheckpointError(f"{path}: written in format {form!r}, this version reads format {FORMAT}")
    if claimed != _digest_of(manifest):
        raise CheckpointError(f"{path}: {_MANIFEST} is damaged")
    if path.name != f"step_{step:08d}":
        raise CheckpointError(f"{path}: the manifest is that of step {step}")
    for name, (size, sha256) in files.items():
        if Path(name).name != name:
            raise CheckpointError(f"{path}: {_MANIFEST} names {name}, which is no file of its directory")
        if reason := _damage(path / name, size, sha256):
            raise CheckpointError(f"{path}: {name} {reason}")
    state = read_json(path / _STATE)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: {_STATE} is no object of JSON")
    return Checkpoint(path, step, config_hash, state)


def remove_stale(run_dir: Path | str) -> None:
    """Remove what processes that died while saving left behind; a live process' temporary directory stays.

    Only for the holder of the run's lock: on another host the pids mean nothing.
    """
    for path in (Path(run_dir) / "checkpoints").glob(".tmp_*"):
        match = _TEMPORARY.fullmatch(path.name)
        # Our own pid is that of a dead predecessor: pids start again in every container.
        if match and (int(match[1]) == os.getpid() or not is_alive(int(match[1]))):
            shutil.rmtree(path, ignore_errors=True)


def _write(
    directory: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    config_hash: str,
) -> None:
    for stem, named in tensors.items():
        write_tensors(_separate(named), directory / f"{stem}.safetensors")
        faults.point(f"save.{stem}")
    (directory / _STATE).write_text(json.dumps(state, indent=1))
    files = {}
    for file in sorted(directory.iterdir()):
        _sync(file)
        files[file.name] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    faults.point("save.synced")
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "step": step,
        "config_hash": config_hash,
        "versions": versions(),
        "files": files,
    }
    manifest["manifest_sha256"] = _digest_of(manifest)
    (directory / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    faults.point("save.manifest")
    _sync(directory / _MANIFEST)
    _sync(directory)


def _separate(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU tensors that are contiguous and share no memory, as safetensors wants them."""
    separate, seen = {}, set()
    for name, tensor in named.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return separate


def _checkpoints(parent: Path) -> list[tuple[int, Path]]:
    """(step, path) of everything that is named like a checkpoint, valid or not, in no order."""
    if not parent.is_dir():
        return []
    return [(int(match[1]), path) for path in parent.iterdir() if (match := _DIRECTORY.fullmatch(path.name))]


def _is_saved(path: Path, config_hash: str) -> bool:
    if not path.exists():
        return False
    try:
        return verify(path).config_hash == config_hash
    except CheckpointError:
        return False


def _prune(parent: Path, step: int, keep: int) -> None:
    # Those of later steps are damaged ones that this run fell back from: they must not count as kept, and
    # neither must what a save that was cut off left where a rename is no single moment.
    older = sorted(found for found in _checkpoints(parent) if found[0] <= step)
    kept = [found for found in older if _looks_whole(found[1])][-keep:]
    if len(kept) < keep:
        return  # while there are so few, what looks damaged may be all that can be rescued
    for _, path in (found for found in older if found not in kept):
        try:
            _discard(path)
        except OSError as error:  # a full quota is no reason to stop training
            screen.warn(f"old checkpoint {path} could not be removed: {error}")


def _looks_whole(path: Path) -> bool:
    """Whether every file is there in its size; what is in them is not read."""
    try:
        files = json.loads((path / _MANIFEST).read_bytes())["files"]
        return all((path / name).stat().st_size == known["size"] for name, known in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _discard(path: Path) -> None:
    """Remove a checkpoint so that an interruption leaves no half of it under its name."""
    if path.exists():
        doomed = path.with_name(f".tmp_{os.getpid()}_old_{path.name}")
        os.replace(path, doomed)
        faults.point("save.discarding")
        shutil.rmtree(doomed)


def _damage(file: Path, size: int, sha256: str) -> str | None:
    try:
        found = file.stat().st_size
        if found != size:
            return f"has {found} bytes instead of {size}"
        return None if _sha256(file) == sha256 else "is corrupt (its sha256 differs)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error}"


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a directory.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def versions() -> dict[str, str]:
    """Of Python and of the packages that training depends on, as installed here."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("diffsiam", "deepspeed", "safetensors"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
