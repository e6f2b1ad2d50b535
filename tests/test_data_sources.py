"""Sources: what a folder holds, in which order, under which labels; and rooms."""

import os

import numpy as np
import pytest
from PIL import Image

from engine.data import rooms_source
from engine.data import source as source_module
from engine.data.sources import FolderSource, RoomsSource, open_source
from engine.errors import DataError, UsageError


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in source_module.SUFFIXES:
            Image.new("RGB", (4, 3), "red").save(path)
        else:
            path.write_text("text")
    return root


def test_files_come_in_natural_order_at_any_depth(tmp_path):
    write(tmp_path, "b/img10.png", "b/img2.JPG", "a/x/1.webp", "a/1.bmp", "img1.jpeg")
    assert FolderSource(tmp_path).files == ["a/1.bmp", "a/x/1.webp", "b/img2.JPG", "b/img10.png", "img1.jpeg"]


def test_hidden_files_and_other_files_are_skipped(tmp_path):
    write(tmp_path, "1.png", ".hidden.png", ".cache/2.png", "notes.txt", "attributes.csv")
    assert FolderSource(tmp_path).files == ["1.png"]


def test_the_first_folder_is_the_label_in_natural_order(tmp_path):
    source = FolderSource(write(tmp_path, "class10/a.png", "class2/a.png", "class2/deep/b.png"))
    assert source.classes == ["class2", "class10"]
    assert source.labels.tolist() == [0, 0, 1]
    assert source.describe() == f"folder {tmp_path}: 3 images in 2 classes"


def test_without_a_folder_for_every_file_there_are_no_labels(tmp_path):
    source = FolderSource(write(tmp_path, "class/a.png", "b.png"))
    assert source.labels is None
    assert source.classes == []


def test_a_loop_of_symbolic_links_is_walked_once(tmp_path):
    write(tmp_path, "a/1.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert FolderSource(tmp_path).files == ["a/1.png"]


def test_contents_are_read_as_they_lie(tmp_path):
    source = FolderSource(write(tmp_path, "1.png", "2.jpg"))
    second, first = source.read(np.array([1, 0]))
    assert first.tobytes() == (tmp_path / "1.png").read_bytes()
    assert second.tobytes() == (tmp_path / "2.jpg").read_bytes()


def test_a_file_that_vanished_is_named(tmp_path):
    source = FolderSource(write(tmp_path, "1.png", "2.png"))
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png; No such file"):
        source.read(np.array([0, 1]))


@pytest.mark.parametrize("change", ["add", "remove", "rename", "resize"])
def test_the_fingerprint_changes_with_the_files(tmp_path, change):
    write(tmp_path, "a/1.png", "a/2.png")
    before = FolderSource(tmp_path).fingerprint()
    assert FolderSource(tmp_path).fingerprint() == before
    if change == "add":
        write(tmp_path, "a/3.png")
    elif change == "remove":
        (tmp_path / "a/2.png").unlink()
    elif change == "rename":
        (tmp_path / "a/2.png").rename(tmp_path / "a/4.png")
    else:
        os.truncate(tmp_path / "a/2.png", 10)
    assert FolderSource(tmp_path).fingerprint() != before


def test_a_fingerprint_does_not_depend_on_where_the_folder_lies(tmp_path):
    one, two = write(tmp_path / "one", "a/1.png"), write(tmp_path / "two", "a/1.png")
    assert FolderSource(one).fingerprint() == FolderSource(two).fingerprint()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"does not exist; .*nowhere; set data\.path"):
        FolderSource(tmp_path / "nowhere")


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    with pytest.raises(UsageError, match="is not a folder"):
        FolderSource(write(tmp_path, "1.png") / "1.png")


def test_a_folder_without_images_says_what_it_holds_and_what_is_read(tmp_path):
    write(tmp_path, "a.txt", "b.txt", "deep/c.gif", "README")
    with pytest.raises(UsageError, match=r"2 \.txt, 1 no suffix, 1 \.gif.*\.jpg \.jpeg \.png \.webp \.bmp"):
        FolderSource(tmp_path)


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(UsageError, match="it holds no files"):
        FolderSource(tmp_path)


@pytest.mark.parametrize(
    ("name", "path", "said"),
    [("folder", None, "set data.path=PATH"), ("lsun", "x", "use auto, rooms, folder, lmdb")],
)
def test_a_source_that_cannot_be_opened_says_what_to_set(name, path, said):
    with pytest.raises(UsageError, match=said):
        open_source(name, path, 16, 0, 10)


def test_rooms_are_the_same_however_they_are_read(monkeypatch):
    kept = open_source("rooms", None, 16, 5, 20)
    monkeypatch.setattr(rooms_source, "CACHE_BYTES", 0)
    drawn = open_source("rooms", None, 16, 5, 20)
    for indices in ([3, 1, 3], [1, 19]):
        expected = drawn.rooms.images(np.array(indices))
        assert np.array_equal(kept.read(np.array(indices)), expected)
        assert np.array_equal(drawn.read(np.array(indices)), expected)
    assert len(kept) == 20


def test_rooms_of_another_seed_size_or_part_have_another_fingerprint():
    rooms = open_source("rooms", None, 16, 0, 20).rooms
    sets = [rooms, rooms.held_out(20), type(rooms)(16, 1, 20), type(rooms)(32, 0, 20), type(rooms)(16, 0, 21)]
    assert len({RoomsSource(each).fingerprint() for each in sets}) == len(sets)
