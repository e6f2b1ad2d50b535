"""``diffsiam prepare`` and ``inspect``: what is made is what training would see, whole or not at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from image_sets import celeba, cifar10, diffae_lmdb, encoded, picture
from PIL import Image
from test_data_exact import sample_log
from training import environment
from typer.testing import CliRunner

from engine.cli import app
from engine.data.fetching import fetch
from engine.data.looking import look
from engine.data.prepare import prepare
from engine.data.sources import open_source
from engine.errors import DataError, UsageError

pytest.importorskip("nvidia.dali")


def opened(path, px: int = 16, split: str = "train"):
    return open_source("auto", path, px, 0, 0, split)


@pytest.fixture
def in_this_process(monkeypatch):
    """Shards are made here: starting processes takes seconds."""
    from engine.data import prepare as module

    monkeypatch.setattr(
        module, "_in_processes", lambda function, numbers, _, *rest: (function(*rest, n) for n in numbers)
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Ten images, of which 3 and 7 are broken."""
    images = [b"text" if i in (3, 7) else encoded(picture(i, 40, 50)) for i in range(10)]
    return opened(diffae_lmdb(tmp_path_factory.mktemp("sets") / "lmdb", images))


@pytest.mark.parametrize("kind", ["jpeg", "raw"])
def test_a_prepared_set_holds_every_whole_image_in_order(source, tmp_path, in_this_process, kind):
    made = prepare(source, tmp_path / "set", 16, kind, quality=98, allowed=2, shard=4)
    there = opened(tmp_path / "set")
    whole = [i for i in range(10) if i not in (3, 7)]
    expected = fetch(source, 16, whole).astype(int)
    difference = np.abs(fetch(there, 16, range(8)).astype(int) - expected)
    assert difference.mean() < (3 if kind == "jpeg" else 1e-9)
    assert (there.name, len(there), there.px, there.encoded) == ("prepared", 8, 16, kind == "jpeg")
    assert [shard["count"] for shard in made["shards"]] == [3, 3, 2]
    assert set(made["broken"]) == {"3", "7"}
    assert made["broken"]["3"][1] == "it is not an image"


def test_raw_pixels_train_as_the_source_itself(tmp_path, in_this_process):
    whole = opened(diffae_lmdb(tmp_path / "lmdb", [encoded(picture(i, 40, 50)) for i in range(9)]))
    prepare(whole, tmp_path / "set", 16, "raw", shard=4)
    assert sample_log(opened(tmp_path / "set"), augment="blur") == sample_log(whole, augment="blur")


def test_jpegs_are_in_tar_files_without_subsampling_that_others_can_read(tmp_path, in_this_process):
    prepare(opened(cifar10(tmp_path / "cifar"), 32), tmp_path / "set", 32, "jpeg")
    shards = tmp_path / "shards"
    shards.mkdir()
    shutil.copy(tmp_path / "set" / "00000.tar", shards)
    there, original = opened(shards), opened(tmp_path / "cifar", 32)
    assert there.labels.tolist() == original.labels.tolist()
    with (
        tarfile.open(shards / "00000.tar") as archive,
        Image.open(archive.extractfile("00000000.jpg")) as image,
    ):
        assert image.layer[0][1:3] == image.layer[1][1:3]  # as many colours as brightnesses
    first = opened(tmp_path / "set").read(np.array([0]))[0].tobytes()
    assert first == there.read(np.array([0]))[0].tobytes()


def test_labels_and_attributes_come_along_and_celeba_is_cut(tmp_path, in_this_process):
    faces = opened(celeba(tmp_path / "celeba"), 64)
    prepare(faces, tmp_path / "set", 64)
    there = opened(tmp_path / "set")
    assert np.array_equal(there.attributes, faces.attributes)
    assert there.attribute_names == faces.attribute_names
    assert np.array_equal(fetch(there, 64, range(8)), fetch(faces, 64, range(8)))
    batches = opened(cifar10(tmp_path / "cifar"), 32)
    prepare(batches, tmp_path / "small", 32)
    assert opened(tmp_path / "small").labels.tolist() == batches.labels.tolist()
    assert opened(tmp_path / "small").classes == batches.classes


def test_a_contact_sheet_shows_what_was_made(source, tmp_path, in_this_process):
    prepare(source, tmp_path / "set", 16, allowed=2)
    with Image.open(tmp_path / "set" / "contact_sheet.png") as sheet:
        assert sheet.width > 8 * 64
        assert np.asarray(sheet.convert("RGB")).std() > 20


def test_whole_shards_are_kept_and_missing_ones_made(source, tmp_path, in_this_process):
    prepare(source, tmp_path / "set", 16, allowed=2, shard=4)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("0000*.npy")}
    (tmp_path / "set" / "prepared.json").unlink()
    (tmp_path / "set" / "00001.npy").unlink()
    (tmp_path / "set" / "00002.npy.part").write_bytes(b"half")
    prepare(source, tmp_path / "set", 16, allowed=2, shard=4)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("0000*.npy")}
    assert {name for name in before if before[name] != after[name]} == {"00001.npy"}
    assert not list((tmp_path / "set").glob("*.part"))
    assert len(opened(tmp_path / "set")) == 8


def test_a_flipped_bit_is_found_and_the_shard_made_again(source, tmp_path, in_this_process):
    prepare(source, tmp_path / "set", 16, allowed=2, shard=4)
    path = tmp_path / "set" / "00001.npy"
    contents = bytearray(path.read_bytes())
    contents[-5] ^= 1
    path.write_bytes(contents)
    with pytest.raises(DataError, match=r"not what was written; .*00001\.npy; run the same command again"):
        prepare(source, tmp_path / "set", 16, allowed=2, shard=4)
    prepare(source, tmp_path / "set", 16, allowed=2, shard=4)


def test_a_shard_that_was_cut_or_lost_is_refused_when_training(source, tmp_path, in_this_process):
    prepare(source, tmp_path / "set", 16, allowed=2, shard=4)
    path = tmp_path / "set" / "00002.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"has .* bytes; .*00002\.npy; run diffsiam prepare again"):
        opened(tmp_path / "set")
    path.unlink()
    with pytest.raises(UsageError, match="a shard is missing"):
        opened(tmp_path / "set")


def test_a_folder_begun_otherwise_or_in_use_is_not_touched(source, tmp_path, in_this_process):
    prepare(source, tmp_path / "set", 16, allowed=2)
    with pytest.raises(UsageError, match="begun with other px; name another folder"):
        prepare(source, tmp_path / "set", 24, allowed=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(UsageError, match="holds something else"):
        prepare(source, tmp_path / "mine", 16, allowed=2)


def test_more_broken_images_than_allowed_end_it_with_code_5(source, tmp_path, in_this_process):
    with pytest.raises(
        DataError, match=r"2 of 10 images are broken, 1 may be .*key 256-00003; it is not an image"
    ):
        prepare(source, tmp_path / "set", 16, allowed=1)


def test_a_disk_that_is_too_small_is_noticed_before_it_begins(source, tmp_path, in_this_process, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(UsageError, match="10 images of about 768 bytes need .* are free; make room"):
        prepare(source, tmp_path / "set", 16, allowed=2)
    assert not list((tmp_path / "set").glob("0*"))


def test_a_preparation_that_is_killed_goes_on_with_the_same_command(tmp_path):
    images = [encoded(picture(i, 40, 50)) for i in range(60)]
    path = diffae_lmdb(tmp_path / "lmdb", images)
    code = f"""
from pathlib import Path
from engine.data import prepare
from engine.data.sources import open_source
prepare._in_processes = lambda function, numbers, _, *rest: (function(*rest, n) for n in numbers)
source = open_source("auto", {str(path)!r}, 16, 0, 0)
prepare.prepare(source, Path({str(tmp_path / "set")!r}), 16, "jpeg", shard=2)
"""
    (tmp_path / "prepare_it.py").write_text(code)
    begin = [sys.executable, str(tmp_path / "prepare_it.py")]
    first = subprocess.Popen(begin, env=environment(), start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not list((tmp_path / "set").glob("0000*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    made = len(list((tmp_path / "set").glob("0*.json")))
    assert 0 < made
    assert not (tmp_path / "set" / "prepared.json").exists()
    subprocess.run(begin, env=environment(), check=True, timeout=200)
    there = opened(tmp_path / "set")
    expected = fetch(opened(path), 16, range(60)).astype(int)
    assert len(there) == 60
    assert np.abs(fetch(there, 16, range(60)).astype(int) - expected).mean() < 3


def test_the_commands_say_what_they_found_and_made(source, tmp_path, in_this_process):
    runner = CliRunner()
    looked = runner.invoke(
        app, ["inspect", str(source.root), "--sheet", str(tmp_path / "a.png"), "--px", "32"]
    )
    assert looked.exit_code == 0, looked.output
    for said in (
        "10 images, keys 256-%05d",
        "40, 40, 40",
        "8 JPEG",
        "8 RGB",
        "broken",
        "2 of 10",
        "256-00007",
    ):
        assert said in looked.output
    assert (tmp_path / "a.png").is_file()
    made = runner.invoke(
        app, ["prepare", str(source.root), str(tmp_path / "set"), "--px", "16", "--broken", "2"]
    )
    assert made.exit_code == 0, made.output
    assert "8 images of 16 px, raw, 6,272 bytes, 2 broken ones left out" in made.output
    assert json.loads((tmp_path / "set" / "prepared.json").read_text())["count"] == 8


def test_wrong_options_are_answered_in_one_line(tmp_path):
    runner = CliRunner()
    for arguments, said in (
        (["inspect", str(tmp_path / "nowhere")], "do not exist"),
        (["inspect", str(tmp_path)], "it holds no files"),
        (["inspect", str(tmp_path), "--split", "dev"], "--split dev: use train"),
        (["prepare", str(tmp_path), str(tmp_path / "set"), "--format", "bmp"], "--format bmp: use jpeg, raw"),
    ):
        answer = runner.invoke(app, arguments)
        assert answer.exit_code == 2
        assert said in answer.output
        assert answer.output.startswith("error: ")
        assert answer.output.count("\n") == 1


def test_inspecting_counts_sizes_kinds_modes_and_turned_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, 20, 30).save(tmp_path / "0.jpg", exif=exif)
    picture(1, 25, 30).convert("L").save(tmp_path / "1.png")
    picture(2, 20, 30).convert("CMYK").save(tmp_path / "2.jpg")
    (tmp_path / "3.jpg").write_bytes(b"")
    found = look(opened(tmp_path), np.arange(4))
    assert found.sizes == [(30, 20), (25, 30), (20, 30)]
    assert dict(found.kinds) == {"JPEG": 2, "PNG": 1}
    assert dict(found.modes) == {"RGB": 1, "grey": 1, "CMYK": 1}
    assert found.turned == 1
    assert found.broken == {3: "it is empty"}
