"""Files that would run something, claim more memory than there is, lead out of their folder or nest without
end: whole where a check of sums would otherwise refuse them before anybody looks inside.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from edited_runs import make_run
from image_sets import cifar10

DEEP = "[" * 100_000
EVIL = "<script>alert('x')</script>"
PROOF = "it_ran"


class Runs:
    """What unpickling it would do: make a folder."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def bomb(side: int = 100_000) -> bytes:
    """A PNG of few bytes that claims ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def safetensors_of(header: dict | bytes, data: bytes = b"", claimed: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if claimed is None else claimed).to_bytes(8, "little") + text + data


def tensor(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def weights(folder: Path) -> dict[str, Path]:
    """Files of weights; the pickles name :class:`Runs`, whatever they are called."""
    folder.mkdir()
    runs = Runs(folder / PROOF)
    plain = pickle.dumps({"ema_denoise_fn": runs})
    torch.save({"ema_denoise_fn": runs}, folder / "archive.pt")
    torch.save({"ema_denoise_fn": {"time_embed.0.weight": torch.zeros(1 << 22)}}, folder / "stored.pt")
    with zipfile.ZipFile(folder / "stored.pt") as before:
        with zipfile.ZipFile(folder / "zip_bomb.pt", "w", zipfile.ZIP_DEFLATED) as after:
            for name in before.namelist():
                after.writestr(name, before.read(name))
    (folder / "stored.pt").unlink()
    content = {
        "pickle.pt": plain,
        "pickle.safetensors": plain,
        "header.safetensors": safetensors_of(b"{" + b" " * 64, claimed=1 << 62),
        "deep.safetensors": safetensors_of(b'{"a":' * 200_000),
        "overlap.safetensors": safetensors_of({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, bytes(12)),
        "dtype.safetensors": safetensors_of({"a": tensor(0, 8, [2], "F999")}, bytes(8)),
        "beyond.safetensors": safetensors_of({"a": tensor(0, 1 << 42, [1 << 40])}, bytes(8)),
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return {path.stem + path.suffix: path for path in sorted(folder.iterdir())}


def image_sets(folder: Path) -> dict[str, Path]:
    """Sets of images."""
    folder.mkdir()
    made = {}
    batches = cifar10(folder / "cifar")
    inside = next((folder / "cifar").rglob("data_batch_3"))
    inside.write_bytes(pickle.dumps(Runs(folder / PROOF)))
    made["cifar"] = batches
    (folder / "bombs").mkdir()
    for number in range(4):
        (folder / "bombs" / f"{number}.png").write_bytes(bomb())
    made["bombs"] = folder / "bombs"
    made["tar"] = folder / "links.tar"
    with tarfile.open(made["tar"], "w") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        outside = tarfile.TarInfo("../../outside.jpg")
        outside.size = 4
        archive.addfile(outside, io.BytesIO(b"evil"))
    made["zip"] = folder / "set.zip"
    with zipfile.ZipFile(made["zip"], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../outside.jpg", bytes(1 << 22))
    made["claims"] = folder / "claims.tar"
    huge = tarfile.TarInfo("0.jpg")
    huge.size = 1 << 50
    made["claims"].write_bytes(huge.tobuf() + bytes(1024))
    made["database"] = folder / "lmdb"
    made["database"].mkdir()
    (made["database"] / "data.mdb").write_bytes(bytes(16) + b"\xde\xc0\xef\xbe" + bytes(8192))
    made["prepared"] = folder / "prepared"
    made["prepared"].mkdir()
    (made["prepared"] / "prepared.json").write_text(DEEP)
    return made


def sealed(checkpoint: Path) -> None:
    """Give a changed checkpoint the sums of what it holds now, as whoever made it would."""
    file = checkpoint / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["manifest_sha256"]
    for name, known in manifest["files"].items():
        data = (checkpoint / name).read_bytes()
        known |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps(manifest | {"manifest_sha256": digest}))


def _state(checkpoint: Path, change: Callable[[dict], object]) -> None:
    state = json.loads((checkpoint / "state.json").read_text())
    change(state)
    (checkpoint / "state.json").write_text(json.dumps(state))


def _manifest(checkpoint: Path, **more: object) -> None:
    values = json.loads((checkpoint / "manifest.json").read_text()) | more
    del values["manifest_sha256"]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(values | {"manifest_sha256": digest}))


def _tensors(data: bytes) -> Callable[[Path], None]:
    def write(checkpoint: Path) -> None:
        (checkpoint / "ema.safetensors").write_bytes(data)
        sealed(checkpoint)

    return write


def _of_state(text: str) -> Callable[[Path], None]:
    def write(checkpoint: Path) -> None:
        (checkpoint / "state.json").write_text(text)
        sealed(checkpoint)

    return write


# What is done to the one checkpoint of a run.
HARM: dict[str, Callable[[Path], None]] = {
    "a pickle for tensors": lambda c: _tensors(pickle.dumps(Runs(c.parents[2] / PROOF)))(c),
    "a header of 2^62 bytes": _tensors(safetensors_of(b"{", claimed=1 << 62)),
    "a nested header": _tensors(safetensors_of(b'{"a":' * 200_000)),
    "overlapping tensors": _tensors(
        safetensors_of({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, bytes(12))
    ),
    "no tensors of the model": _tensors(safetensors_of({"a": tensor(0, 8, [2])}, bytes(8))),
    "a nested state": _of_state(DEEP),
    "a state that is a list": _of_state("[]"),
    "a state without config": _of_state("{}"),
    "a config that is text": _of_state('{"config": "evil"}'),
    "a nested manifest": lambda c: (c / "manifest.json").write_text(DEEP) and None,
    "a manifest of another shape": lambda c: _manifest(c, files=["evil"]),
    "a step that is text": lambda c: _manifest(c, step="evil"),
    "files out of its folder": lambda c: _manifest(
        c, files={"../../../../../../../../etc/passwd": {"size": -1, "sha256": ""}}
    ),
    "a file without a size": lambda c: _manifest(c, files={"state.json": {}}),
}


# What is done to the files beside it.
BESIDE = {
    "config.json": DEEP,
    "metrics.jsonl": f'{DEEP}\n[]\n{{"step": "evil"}}\n{{"step": 1, "loss": 1.0}}\n',
    "quarantine.jsonl": f'{DEEP}\n[]\n{{"index": "evil"}}\n{{"index": -1}}\n',
    "report/evaluation.json": DEEP,
    "report/started.json": "[]",
    "report/label_map.json": '"evil"',
    "report/explorer.json": DEEP,
    "evaluation/results.json": DEEP,
}


def whole_run(folder: Path, awaken) -> Path:
    """A run that nobody has touched yet."""
    run = make_run(folder, awaken)
    state = json.loads(next(run.glob("checkpoints/*/state.json")).read_text())
    (run / "config.json").write_text(json.dumps(state["config"]))
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    return run


def hostile_runs(folder: Path, awaken) -> dict[str, Path]:
    """Runs whose only checkpoint is not what it says."""
    whole, made = whole_run(folder / "whole", awaken), {}
    for number, (name, harm) in enumerate(HARM.items()):
        made[name] = shutil.copytree(whole, folder / str(number))
        harm(next((made[name] / "checkpoints").glob("step_*")))
    return made
