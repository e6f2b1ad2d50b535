"""Corrupt small weights files in every way and read them: ``fuzz_weights.py FOLDER COUNT FORMAT...``

A process of its own, so that a crash is seen and memory can be limited. Prints one JSON object: per format
how many files were refused, read as before, read with other numbers, and everything that should not happen.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import published
import torch
from published import DDPM, Networks, networks
from safetensors.torch import load, save_file
from torch import nn

from diffsiam.unet import UNetConfig
from diffsiam.weights import Parts, WeightsError, read_parts
from diffsiam.weights.converting import convert

ROOM = 96 << 20  # bytes of address space beside what the process had before; the files have about 100 kB
SECONDS = 5
SMALL = UNetConfig(8, (1, 1), blocks=1, attention=())
SMALL_DDPM = replace(DDPM, channel_mult=(1, 1), attention=())
DTYPES = (torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn)


class TooLong(BaseException):
    """Not to be caught by whoever reads."""


class Hostile:
    """Makes a directory when a pickle runs it."""

    proof = ""

    def __reduce__(self):
        return os.mkdir, (self.proof,)


def make(name: str, path: Path, n: Networks, other: Networks) -> Path:
    if name != "diffusers":
        return published.WRITERS[name](path, n, other)
    native = published.native(path.with_name("ddpm"), networks(SMALL_DDPM), other)
    convert(native, path, "diffusers")
    return path


def files(path: Path) -> list[Path]:
    """Those of a format's folder that are read, or the file itself."""
    return (
        sorted(f for f in path.iterdir() if f.suffix in (".json", ".safetensors"))
        if path.is_dir()
        else [path]
    )


def place(rng: random.Random, size: int) -> int:
    """Half of all places are in the first or last 2 kB, where structure is."""
    edge = min(size, 2048)
    return rng.choice(
        [rng.randrange(size), rng.randrange(size), rng.randrange(edge), size - 1 - rng.randrange(edge)]
    )


def damage_bytes(rng: random.Random, path: Path) -> str:
    file = rng.choice(files(path))
    content = bytearray(file.read_bytes())
    kind = rng.choice(["cut", "flip", "flip", "flips", "blank", "huge", "insert", "remove"])
    at = place(rng, len(content))
    if kind == "cut":
        content = content[:at]
    elif kind == "flip":
        content[at] ^= 1 << rng.randrange(8)
    elif kind == "flips":
        for _ in range(8):
            content[place(rng, len(content))] ^= 1 << rng.randrange(8)
    elif kind == "blank":
        content[at : at + 16] = rng.choice([b"\0", b"\xff"]) * len(content[at : at + 16])
    elif kind == "huge":
        at = rng.choice([0, at])
        content[at : at + 8] = (1 << rng.randrange(20, 63)).to_bytes(8, "little")
    elif kind == "insert":
        content[at:at] = rng.randbytes(rng.randrange(1, 40))
    else:
        del content[at : at + rng.randrange(1, 40)]
    file.write_bytes(bytes(content))
    return f"{kind} at {at} of {file.name}"


def states(tree: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """All flat state dicts in a file's contents that hold more than counters."""
    if tree and all(isinstance(v, torch.Tensor) for v in tree.values()):
        return [tree] if any(v.numel() > 1 for v in tree.values()) else []
    return [found for v in tree.values() if isinstance(v, dict) for found in states(v)]


@lru_cache(maxsize=4)
def parsed(name: str, content: bytes) -> tuple[bool, dict[str, Any], dict[str, str] | None]:
    if content[:2] in (b"PK", b"\x80\x02"):
        return True, dict(torch.load(io.BytesIO(content), weights_only=True)), None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return False, load(content), header.get("__metadata__")


def contents(name: str, content: bytes) -> tuple[bool, dict[str, Any], dict[str, str] | None]:
    """(whether it is torch's, a tree to change, metadata) of an undamaged file."""
    is_torch, tree, metadata = parsed(name, content)
    return is_torch, {k: dict(v) if isinstance(v, dict) else v for k, v in tree.items()}, metadata


def damage_meaning(rng: random.Random, path: Path) -> str:
    """A well-formed file that means something else."""
    file = rng.choice([f for f in files(path) if f.suffix != ".json"])
    is_torch, tree, metadata = contents(file.name, file.read_bytes())
    state = rng.choice(states(tree))
    key = rng.choice([k for k, v in state.items() if v.numel() > 1])
    value = state[key]
    kinds = [
        "reshape",
        "dtype",
        "lose",
        "number",
        "rename",
        "index",
        *(["payload", "expand"] if is_torch else []),
    ]
    kind = rng.choice(kinds)
    if kind == "reshape":
        state[key] = value.reshape(1, -1).contiguous()
    elif kind == "dtype":
        state[key] = value.to(rng.choice(DTYPES[:3] if not is_torch else DTYPES))
    elif kind == "lose":
        del state[key]
    elif kind == "number" and value.is_floating_point():
        state[key] = value.clone()
        state[key].view(-1)[rng.randrange(value.numel())] = rng.choice([float("nan"), float("inf")])
    elif kind == "rename":
        state[f"{key}_"] = state.pop(key)
    elif kind == "index":
        state["output_blocks.999999.0.in_layers.0.weight"] = torch.zeros(2)
    elif kind == "expand":
        state[key] = torch.zeros(1).expand(1 << 40)
    else:
        (tree if is_torch else state)["payload"] = Hostile() if is_torch else torch.zeros(1)
    if is_torch:
        torch.save(tree, file)
    else:
        save_file(tree, file, metadata=metadata)
    return f"{kind} {key} in {file.name}"


def same_numbers(a: Parts, b: Parts) -> bool:
    def equal(x: Any, y: Any) -> bool:
        return x is y is None or (
            x is not None
            and y is not None
            and x.keys() == y.keys()
            and all(torch.equal(x[k], y[k]) for k in x)
        )

    return all(equal(getattr(a, p), getattr(b, p)) for p in ("unet", "decoder", "encoder", "simsiam"))


def same_shape(a: Parts, b: Parts) -> bool:
    def shapes(x: Any) -> Any:
        return None if x is None else {key: value.shape for key, value in x.items()}

    return all(
        shapes(getattr(a, p)) == shapes(getattr(b, p)) for p in ("unet", "decoder", "encoder", "simsiam")
    )


def attempt(path: Path, before: Parts) -> tuple[str, str]:
    """(outcome, message) of reading one damaged file."""
    signal.alarm(SECONDS)
    try:
        after = read_parts(path)
    except WeightsError as error:
        text = str(error)
        bad = "\n" in text or not text.startswith(str(path)) or "MemoryError" in text or "allocate" in text
        return ("bad refusal" if bad else "refused"), text
    except TooLong:
        return "hang", ""
    except BaseException as error:
        return "escaped", repr(error)
    finally:
        signal.alarm(0)
    if not same_shape(before, after):
        return "another model", after.describe()
    if same_numbers(before, after) and (before.config, before.contract) == (after.config, after.contract):
        return "same", ""
    return "other numbers", ""


def fuzz(name: str, folder: Path, count: int, n: Networks, other: Networks) -> dict[str, Any]:
    original = make(name, folder / name, n, other)
    before, outcomes, wrong = read_parts(original), Counter(), []
    for seed in range(count):
        rng = random.Random(f"{name} {seed}")
        path = folder / "damaged"
        (shutil.copytree if original.is_dir() else shutil.copy)(original, path)
        damage: Callable[[random.Random, Path], str] = damage_meaning if rng.random() < 0.15 else damage_bytes
        what = damage(rng, path)
        outcome, message = attempt(path, before)
        outcomes[outcome] += 1
        if outcome not in ("refused", "same", "other numbers"):
            wrong.append(f"seed {seed}: {what}: {outcome} {message}")
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return {**outcomes, "wrong": wrong}


def main(folder: Path, count: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    Hostile.proof = str(folder / "it_ran")

    def stop(*_: object) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, stop)
    # Few tensors: what is tested is the reading, and 500 files of each format are read.
    published.adam_of = lambda _: {"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 1e-4}]}
    n, other = networks(SMALL), Networks(*(nn.Linear(2, 2) for _ in range(4)))
    (folder / "warm").mkdir()
    for name in names:  # what is imported and allocated once is no cost of a file
        read_parts(make(name, folder / "warm" / name, n, other))
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    print(json.dumps({name: fuzz(name, folder, count, n, other) for name in names}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
