"""Broken images: converted, or quarantined and replaced within the same permutation, up to a budget."""

import json
import struct
import zlib

import numpy as np
import pytest
from image_sets import diffae_lmdb, encoded, picture
from PIL import Image
from training import TINY, write_config

from engine.data.broken import MOST, Broken, Quarantine, decoding_fault, image_size
from engine.data.fetching import fetch
from engine.data.order import order
from engine.data.pipeline import Loader
from engine.data.sources import FolderSource, open_source
from engine.errors import DataError

pytest.importorskip("nvidia.dali")

COUNT, SEED = 40, 3
WHOLE = encoded(picture(0, 60, 80))
CUT = WHOLE[: len(WHOLE) * 2 // 3]
PNG = encoded(picture(0, 60, 80), "PNG")
DAMAGED = PNG[: len(PNG) // 2] + b"damage" + PNG[len(PNG) // 2 + 6 :]
BAD = {4: b"", 11: b"no image", 12: DAMAGED, 30: encoded(picture(0, 1, 1))}


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that claims a square of many pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100))


def array(contents: bytes) -> np.ndarray:
    return np.frombuffer(contents, np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Forty images of which four are broken, two of them side by side."""
    root = tmp_path_factory.mktemp("set") / "broken"
    return open_source(
        "auto", diffae_lmdb(root, [BAD.get(i, encoded(picture(i))) for i in range(COUNT)]), 16, 0, 0
    )


def indices(source, steps: int = 15, **options) -> list[int]:
    options = {"quarantine": Quarantine(source, 4)} | options
    loader = Loader(source, 16, SEED, 8, views=False, threads=1, **options)
    found = np.concatenate([next(loader)["index"].numpy() for _ in range(steps)]).tolist()
    loader.close()
    return found


@pytest.mark.parametrize(
    ("contents", "why"),
    [
        (b"", "empty"),
        (b"<html>", "not an image"),
        (encoded(picture(0, 1, 1), "PNG"), "1 x 1 pixels are less than 8 x 8"),
        (encoded(picture(0), "GIF"), "GIF is not supported"),
        (bomb(9000), "9000 x 9000 pixels are more than 64,000,000"),
        (bomb(20000), "400000000 pixels"),
        (WHOLE[:20], "not an image|truncated|Truncated"),
        (CUT, "truncated"),
        (PNG[: len(PNG) * 2 // 3], "truncated"),
    ],
    ids=["empty", "text", "1x1", "gif", "bomb", "large bomb", "cut in the header", "cut JPEG", "cut PNG"],
)
def test_a_header_or_an_end_that_shows_a_fault_says_which(contents, why):
    with pytest.raises(Broken, match=why):
        image_size(array(contents))


def test_an_image_smaller_than_the_cut_of_its_set_is_broken():
    with pytest.raises(Broken, match="less than 153 x 185"):
        image_size(array(encoded(picture(0, 64, 64))), (57, 25, 128, 128))


def test_a_file_that_lost_only_its_last_bytes_is_whole():
    assert image_size(array(WHOLE[:-2])) == (60, 80)


def test_damage_in_the_middle_of_a_file_is_found_by_decoding():
    assert image_size(array(DAMAGED)) == (60, 80)
    assert "data stream" in decoding_fault(array(DAMAGED))


def test_of_a_file_that_is_cut_off_the_decoder_says_nothing(tmp_path, capfd):
    source = open_source("auto", diffae_lmdb(tmp_path / "set", [WHOLE, CUT]), 16, 0, 0)
    fetch(source, 16, [0, 1], quarantine=Quarantine(source, 1))
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "passed over a broken image" in lines[0]


def test_in_place_of_a_broken_image_stands_the_next_of_the_same_permutation(source):
    expected = []
    for epoch in range(3):
        permutation = order(SEED, epoch, np.arange(COUNT), COUNT)
        for place in range(COUNT):
            while int(permutation[place % COUNT]) in BAD:
                place += 1
            expected.append(int(permutation[place % COUNT]))
    assert indices(source) == expected


def test_what_is_known_of_broken_images_does_not_change_the_order(source):
    everything = Quarantine(source, 4)
    everything.faults.update(dict.fromkeys(BAD, "known from before"))
    assert indices(source, quarantine=everything) == indices(source)


def test_resuming_and_ranks_do_not_change_the_order_either(source):
    whole = indices(source)
    assert indices(source, steps=5, start_step=10) == whole[80:]
    parts = [indices(source, rank=rank, world=2) for rank in (0, 1)]
    dealt = [part[i : i + 4] for i in range(0, 60, 4) for part in parts]
    assert sum(dealt, []) == whole


def test_processes_that_read_pass_over_the_same_images_and_tell(source):
    quarantine = Quarantine(source, 4)
    assert indices(source, quarantine=quarantine, workers=1) == indices(source)
    assert set(quarantine.faults) == set(BAD)


def test_each_is_written_down_once_with_its_fault_and_read_back(source, tmp_path, capsys):
    path = tmp_path / "run" / "quarantine.jsonl"
    indices(source, quarantine=Quarantine(source, 4, path))
    entries = {met["index"]: met for met in map(json.loads, path.read_text().splitlines())}
    assert set(entries) == set(BAD)
    assert entries[4]["reason"] == "it is empty"
    assert entries[11]["item"].endswith("key 256-00011")
    assert capsys.readouterr().err.count("passed over a broken image") == 4
    assert set(Quarantine(source, 4, path).faults) == set(BAD)


def test_a_list_of_other_images_is_not_believed(source, tmp_path):
    path = tmp_path / "quarantine.jsonl"
    path.write_text('{"index": 0, "item": "elsewhere", "reason": "old"}\n')
    assert len(Quarantine(source, 4, path)) == 0


def test_one_more_than_allowed_ends_the_run_with_the_list(source):
    with pytest.raises(
        DataError, match=r"cannot read or decode 4 of 40 images, 3 may be broken.*256-000"
    ) as caught:
        indices(source, quarantine=Quarantine(source, 3))
    assert caught.value.exit_code == 5


def test_a_thousandth_may_be_broken_and_never_more_than_a_thousand():
    class Sized:
        def __init__(self, count):
            self.count = count

        def __len__(self):
            return self.count

    assert [Quarantine(Sized(count)).allowed for count in (100, 5000, 70_000, 3_033_042)] == [0, 5, 70, MOST]


def test_looking_at_items_passes_over_broken_ones_only_if_allowed(source):
    lenient = fetch(source, 16, [3, 4, 12], quarantine=Quarantine(source, 4))
    assert np.array_equal(lenient[1], fetch(source, 16, [5])[0])
    assert np.array_equal(lenient[2], fetch(source, 16, [13])[0])
    with pytest.raises(DataError):
        fetch(source, 16, [3, 4])


def test_a_set_of_nothing_but_broken_images_is_refused(tmp_path):
    texts = open_source("auto", diffae_lmdb(tmp_path / "set", [b"text"] * 5), 16, 0, 0)
    with pytest.raises(DataError, match="every image is broken"):
        indices(texts, quarantine=Quarantine(texts, 9))


def test_a_training_run_ends_with_code_5_and_names_what_is_broken(launcher, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(16):
        picture(i).save(images / f"{i}.jpg")
    (images / "9.jpg").write_bytes(BAD[12])
    values = TINY | {"data": {"path": str(images), "px": 16, "threads": 1}}
    output = launcher.run(tmp_path / "run", config=write_config(tmp_path / "a.json", values), code=5)
    assert "error: cannot read or decode 1 of 16 images" in output
    assert "9.jpg" in output
    assert "Traceback" not in output
    assert "9.jpg" in (tmp_path / "run" / "quarantine.jsonl").read_text()


@pytest.mark.parametrize("name", ["grey", "palette", "CMYK", "16 bit", "sideways", "transparent"])
def test_other_kinds_of_images_are_converted_not_passed_over(tmp_path, name):
    image, options, kind = picture(0, 40, 60), {}, "png"
    if name == "sideways":
        exif = Image.Exif()
        exif[0x0112] = 6
        options, kind = {"exif": exif, "quality": 98}, "jpg"
    elif name == "16 bit":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif name == "transparent":
        image.putalpha(90)
    else:
        mode = {"grey": "L", "palette": "P", "CMYK": "CMYK"}[name]
        image, kind = image.convert(mode), "jpg" if name == "CMYK" else "png"
    image.save(tmp_path / f"0.{kind}", **options)
    quarantine = Quarantine(FolderSource(tmp_path), 0)
    assert fetch(FolderSource(tmp_path), 16, [0], quarantine=quarantine).std() > 5
    assert len(quarantine) == 0
    with open(tmp_path / f"0.{kind}", "rb") as file:
        height, width = image_size(np.frombuffer(file.read(), np.uint8))
    assert (height > width) == (name == "sideways")
