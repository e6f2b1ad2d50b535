"""The list of what lies in tar files: made once, believed only for the tars that it was made from."""

import os
import tarfile

import numpy as np
import pytest
from image_sets import encoded, picture, webdataset

from engine.data import tar_index
from engine.data.shards import TarSource
from engine.errors import UsageError

JPEG = encoded(picture(0))
LARGE = tar_index.KEPT_FROM


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def every_set_is_large(monkeypatch):
    monkeypatch.setattr(tar_index, "KEPT_FROM", 1)


@pytest.fixture
def scans(monkeypatch):
    """The tars that were read header by header."""
    scanned = []
    scan = tar_index._members
    monkeypatch.setattr(tar_index, "_members", lambda shard: scanned.append(shard) or scan(shard))
    return scanned


def two_shards(folder):
    """Seven images in two tars, with classes; one name is no UTF-8."""
    folder.mkdir()
    odd = os.fsdecode(b"na\xefve")
    for number, keys in enumerate((["a", "b/c", odd], ["d", "e", "f", "g"])):
        members = [(key, {"jpg": JPEG + bytes([number]), "cls": b"%d" % number}) for key in keys]
        webdataset(folder / f"{number}.tar", members)
    return folder


def described(source: TarSource) -> tuple:
    contents = [image.tobytes() for image in source.read(np.arange(len(source)))]
    return source.names, contents, source.labels.tolist(), source.fingerprint()


def test_a_large_tar_is_read_through_once(tmp_path, scans):
    path = tmp_path / "large.tar"
    with tarfile.open(path, "w") as archive:
        for i in range(LARGE):
            archive.addfile(tarfile.TarInfo(f"{i:06d}.jpg"))
    first, second = TarSource(path), TarSource(path)
    assert scans == [str(path)]
    assert len(first) == len(second) == LARGE
    assert np.array_equal(first._places, second._places)


def test_a_small_one_leaves_nothing_behind(tmp_path, cache, scans):
    folder = two_shards(tmp_path / "set")
    TarSource(folder)
    assert sorted(file.name for file in folder.iterdir()) == ["0.tar", "1.tar"]
    assert not cache.exists()


def test_a_list_that_was_kept_gives_the_same_set(tmp_path, scans, every_set_is_large):
    folder = two_shards(tmp_path / "set")
    made = described(TarSource(folder))
    assert len(scans) == 2
    assert described(TarSource(folder)) == made
    assert len(scans) == 2
    assert described(TarSource(folder.rename(tmp_path / "moved"))) == made
    assert len(scans) == 2


@pytest.mark.parametrize("change", ["grown", "touched", "added", "damaged list", "cut list"])
def test_a_list_of_other_tars_or_a_damaged_one_is_not_believed(tmp_path, scans, every_set_is_large, change):
    folder = two_shards(tmp_path / "set")
    before = len(TarSource(folder))
    kept = next(folder.glob(".index-*.npz"))
    if change == "grown":
        with tarfile.open(folder / "1.tar", "a") as archive:
            archive.addfile(tarfile.TarInfo("h.jpg"))
    elif change == "touched":
        os.utime(folder / "1.tar", ns=(0, 0))
    elif change == "added":
        webdataset(folder / "2.tar", [("h", {"jpg": JPEG})])
    else:
        whole = kept.read_bytes()
        kept.write_bytes(whole[: len(whole) // 2] if change == "cut list" else b"damage")
    assert len(TarSource(folder)) == before + (change in ("grown", "added"))
    assert len(scans) > 2


def test_where_the_tars_lie_on_a_medium_that_cannot_be_written_the_list_lies_in_the_cache(
    tmp_path, scans, cache, every_set_is_large, monkeypatch
):
    folder = two_shards(tmp_path / "set")
    writes = open

    def read_only(file, mode="r", *rest, **options):
        if "w" in mode and str(file).startswith(str(folder)):
            raise PermissionError(13, "Permission denied", str(file))
        return writes(file, mode, *rest, **options)

    monkeypatch.setattr("builtins.open", read_only)
    made = described(TarSource(folder))
    assert len(list(folder.iterdir())) == 2
    assert len(list((cache / "diffsiam").iterdir())) == 1
    assert described(TarSource(folder)) == made
    assert len(scans) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    assert described(TarSource(folder)) == made, "without any place to keep it, it is made each time"
    assert len(scans) == 4


def test_a_truncated_tar_is_refused_and_not_kept(tmp_path, every_set_is_large):
    folder = two_shards(tmp_path / "set")
    path = folder / "0.tar"
    path.write_bytes(path.read_bytes()[:3000])
    for _ in range(2):
        with pytest.raises(UsageError, match=r"0\.tar"):
            TarSource(folder)
    assert not list(folder.glob(".index-*"))
