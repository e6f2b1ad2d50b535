"""Image sets as they are found on disk, made small: what the tests of data share."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import lmdb
import numpy as np
from PIL import Image

CLASSES_10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def picture(index: int, height: int = 24, width: int = 24) -> Image.Image:
    """A smooth picture, as a photograph is."""
    noise = np.random.default_rng(index).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_lmdb(root: Path, values: Mapping[bytes, bytes], subdir: bool = True) -> Path:
    root.parent.mkdir(parents=True, exist_ok=True)
    with (
        lmdb.open(str(root), map_size=1 << 26, subdir=subdir) as environment,
        environment.begin(write=True) as t,
    ):
        for key, value in values.items():
            t.put(key, value)
    if subdir:
        (root / "lock.mdb").unlink()
    return root


def diffae_lmdb(root: Path, images: Sequence[bytes], key: str = "256-%05d", **options) -> Path:
    """As DiffAE's scripts write it, which PDAE and DiTi read."""
    values = {(key % i).encode(): image for i, image in enumerate(images)}
    return write_lmdb(root, values | {b"length": str(len(images)).encode()}, **options)


def lsun_lmdb(root: Path, images: Sequence[bytes]) -> Path:
    """As LSUN is distributed: WebP values under the sha1 of something."""
    return write_lmdb(root, {hashlib.sha1(image).hexdigest().encode(): image for image in images})


def celeba(root: Path, count: int = 12) -> Path:
    """Aligned images with the lists of parts and attributes; images 8, 9 are valid, 10, 11 test."""
    (root / "img_align_celeba").mkdir(parents=True)
    names = [f"{i + 1:06d}.jpg" for i in range(count)]
    for i, name in enumerate(names):
        picture(i, 218, 178).save(root / "img_align_celeba" / name, quality=95)
    parts = [0 if i < 8 else 1 if i < 10 else 2 for i in range(count)]
    lines = [f"{name} {part}\n" for name, part in zip(names, parts, strict=True)]
    (root / "list_eval_partition.txt").write_text("".join(lines))
    rows = [
        f"{name} {' '.join(' 1' if (i >> bit) % 2 else '-1' for bit in range(3))}\n"
        for i, name in enumerate(names)
    ]
    head = f"{count}\nBald Smiling Young \n"
    (root / "list_attr_celeba.txt").write_text(head + "".join(rows))
    return root


def ffhq(root: Path, numbers: Sequence[int] = (0, 1, 999, 1000, 1001)) -> Path:
    """PNG files in folders of thousands."""
    for number in numbers:
        path = root / "thumbnails128x128" / f"{number // 1000 * 1000:05d}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, 128, 128).save(path)
    return root


def cifar10(root: Path, rows: int = 4) -> Path:
    """Batches as pickled in 2009: protocol 2, numpy's module of then, planes of red, green, blue."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = np.random.default_rng(number).integers(0, 256, (rows, 3072), dtype=np.uint8)
        labels = [(number + i) % 10 for i in range(rows)]
        files = [f"picture_{number}_{i}.png" for i in range(rows)]
        _pickle(folder / name, {"batch_label": name, "labels": labels, "data": data, "filenames": files})
    _pickle(
        folder / "batches.meta", {"num_cases_per_batch": rows, "label_names": CLASSES_10, "num_vis": 3072}
    )
    return root


def cifar100(root: Path, rows: int = 4) -> Path:
    """The 100 classes in one batch a split."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for number, name in enumerate(["train", "test"]):
        data = np.random.default_rng(number).integers(0, 256, (rows, 3072), dtype=np.uint8)
        fine = [(7 * i) % 100 for i in range(rows)]
        _pickle(folder / name, {"data": data, "fine_labels": fine, "coarse_labels": [0] * rows})
    names = [f"class {i}" for i in range(100)]
    _pickle(folder / "meta", {"fine_label_names": names, "coarse_label_names": ["all"]})
    return root


def _pickle(path: Path, content: dict) -> None:
    path.write_bytes(
        pickle.dumps(content, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    )


def webdataset(path: Path, samples: Sequence[tuple[str, Mapping[str, bytes]]]) -> Path:
    """A shard of (key, {suffix: contents}), as tar writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, parts in samples:
            for suffix, contents in parts.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(contents)
                archive.addfile(member, io.BytesIO(contents))
    return path


def sample(index: int, label: int | None = None, **shape: int) -> tuple[str, dict[str, bytes]]:
    """One sample of WebDataset: image, class, metadata."""
    parts = {"jpg": encoded(picture(index, **shape)), "json": json.dumps({"index": index}).encode()}
    return f"{index:06d}", parts if label is None else parts | {"cls": str(label).encode()}


def noisy_folder(root: Path, count: int = 20, px: int = 24) -> Path:
    """PNG files of noise, 0.png and on."""
    root.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(draws.integers(0, 255, (px, px, 3), dtype=np.uint8)).save(root / f"{number}.png")
    return root
