"""Every format in which the sets of the field lie on disk is recognised by its content and read in place."""

import io
import multiprocessing
import pickle
import tarfile

import lmdb
import numpy as np
import pytest
from image_sets import (
    CLASSES_10,
    celeba,
    cifar10,
    cifar100,
    diffae_lmdb,
    encoded,
    ffhq,
    lsun_lmdb,
    picture,
    sample,
    webdataset,
    write_lmdb,
)
from PIL import Image

from engine.data import held_out
from engine.data.fetching import fetch
from engine.data.sources import detect, open_source
from engine.errors import DataError, UsageError

JPEGS = [encoded(picture(i, 20, 30)) for i in range(6)]
WEBPS = [encoded(picture(i, 20, 30), "WEBP", quality=90) for i in range(6)]


def opened(path, split="train", px=16, source="auto"):
    return open_source(source, path, px, 0, 1, split)


def contents(source) -> list[bytes]:
    return [value.tobytes() for value in source.read(np.arange(len(source)))]


# LMDB


@pytest.mark.parametrize(
    ("key", "images"),
    [("256-%05d", JPEGS), ("256-%07d", WEBPS), ("None-%07d", WEBPS)],
    ids=["FFHQ", "LSUN Bedroom", "CelebA"],
)
def test_databases_of_diffae_are_read_whatever_their_keys_and_codec(tmp_path, key, images):
    source = opened(diffae_lmdb(tmp_path / "set.lmdb", images, key))
    assert source.name == "lmdb"
    assert contents(source) == images
    assert source.item(3).endswith(key % 3)
    assert "6 images, keys " + key in source.describe()
    assert fetch(source, 16, range(6)).shape == (6, 16, 16, 3)


@pytest.mark.parametrize("named", ["its folder", "data.mdb", "a single file"])
def test_a_database_may_be_named_by_folder_or_file(tmp_path, named):
    subdir = named != "a single file"
    path = diffae_lmdb(tmp_path / "set.lmdb", JPEGS, subdir=subdir)
    assert contents(opened(path / "data.mdb" if named == "data.mdb" else path)) == JPEGS


def test_keys_are_counted_from_the_file_not_listed(tmp_path):
    source = opened(diffae_lmdb(tmp_path / "set", JPEGS))
    assert len(pickle.dumps(source.scheme)) < 300


def test_of_several_sizes_the_smallest_that_is_large_enough_is_read(tmp_path):
    values = {f"{px}-{i:05d}".encode(): encoded(picture(i, px, px)) for px in (32, 64, 128) for i in range(3)}
    path = write_lmdb(tmp_path / "set", values | {b"length": b"3"})
    for px, read in ((16, 32), (64, 64), (100, 128), (256, 128)):
        assert opened(path, px=px).item(0).endswith(f"{read}-00000")


def test_the_original_lsun_is_read_by_its_own_keys(tmp_path):
    source = opened(lsun_lmdb(tmp_path / "bedroom_train_lmdb", WEBPS))
    assert source.name == "lsun"
    assert sorted(contents(source)) == sorted(WEBPS)
    assert "LSUN LMDB" in source.describe()
    assert source.labels is None


def test_lsun_unpacked_into_a_folder_gives_the_split_that_is_asked_for(tmp_path):
    lsun_lmdb(tmp_path / "bedroom_train_lmdb", WEBPS[:4])
    lsun_lmdb(tmp_path / "bedroom_val_lmdb", WEBPS[4:])
    assert len(opened(tmp_path)) == 4
    assert len(opened(tmp_path, "valid")) == 2
    with pytest.raises(UsageError, match="no databases of the split test among bedroom_train_lmdb"):
        opened(tmp_path, "test")


def test_a_database_with_other_keys_is_read_in_their_order(tmp_path):
    source = opened(
        write_lmdb(tmp_path / "set", {b"b/long name": JPEGS[1], b"a": JPEGS[0], b"__len__": b"2"})
    )
    assert contents(source) == JPEGS[:2]


def test_readers_are_forked_and_spawned_with_a_database_open(tmp_path):
    source = opened(diffae_lmdb(tmp_path / "set", JPEGS))
    assert contents(source) == JPEGS
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply(contents, (source,)) == JPEGS


def test_a_truncated_database_is_refused_before_it_is_mapped(tmp_path):
    path = diffae_lmdb(tmp_path / "set", [b"\xff" * 9000] * 6)
    file = path / "data.mdb"
    with open(file, "r+b") as opened_file:
        opened_file.truncate(file.stat().st_size // 2 // 4096 * 4096)
    with pytest.raises(UsageError, match=r"truncated: .* bytes; .*data\.mdb; copy it again"):
        opened(path)


def test_a_database_that_was_not_written_to_its_end_is_refused(tmp_path):
    path = write_lmdb(tmp_path / "set", {b"256-00000": JPEGS[0], b"length": b"9"})
    with pytest.raises(UsageError, match=r"length of 9, but has no key 256-00008"):
        opened(path)


def test_a_missing_key_is_an_empty_item(tmp_path):
    values = {f"256-{i:05d}".encode(): JPEGS[i] for i in (0, 2)}
    source = opened(write_lmdb(tmp_path / "set", values | {b"length": b"3"}))
    assert [len(value) > 0 for value in contents(source)] == [True, False, True]


def test_an_empty_database_says_so(tmp_path):
    with pytest.raises(UsageError, match="holds no images"):
        opened(write_lmdb(tmp_path / "set", {b"length": b"0"}))


def test_the_fingerprint_of_a_database_changes_with_what_is_in_it(tmp_path):
    one = opened(diffae_lmdb(tmp_path / "one", JPEGS))
    two = opened(diffae_lmdb(tmp_path / "two", JPEGS[:5]))
    assert one.fingerprint() == opened(tmp_path / "one").fingerprint() != two.fingerprint()


# CelebA and FFHQ


@pytest.mark.parametrize("inside", ["", "img_align_celeba"])
def test_celeba_comes_in_its_parts_with_attributes_and_crop(tmp_path, inside):
    path = celeba(tmp_path / "celeba") / inside
    sizes = {split: len(opened(path, split)) for split in ("train", "valid", "test", "all")}
    assert sizes == {"train": 8, "valid": 2, "test": 2, "all": 12}
    source = opened(path, "valid")
    assert source.name == "celeba"
    assert source.attribute_names == ["Bald", "Smiling", "Young"]
    assert source.attributes.tolist() == [[0, 0, 0], [1, 0, 0]]
    assert source.labels is None
    assert "2 images (valid), 3 attributes, cut to 128 x 128 at (57, 25)" in source.describe()


def test_the_crop_of_celeba_is_taken_before_resizing(tmp_path):
    source = opened(celeba(tmp_path))
    with Image.open(io.BytesIO(source.read(np.array([0]))[0].tobytes())) as image:
        cut = np.asarray(image.crop((25, 57, 153, 185)))
    assert np.array_equal(fetch(source, 128, [0])[0], cut)
    assert source.framing == "128 x 128 pixels from row 57, column 25, resized"
    assert held_out.split(source, 2)[0].framing == source.framing


def test_lists_of_celeba_as_csv_are_read_too(tmp_path):
    root = celeba(tmp_path)
    for name in ("list_eval_partition", "list_attr_celeba"):
        lines = (root / f"{name}.txt").read_text().splitlines()
        head = "image_id,partition" if "partition" in name else "image_id," + ",".join(lines[1].split())
        rows = [",".join(line.split()) for line in lines if ".jpg" in line]
        (root / f"{name}.txt").unlink()
        (root / f"{name}.csv").write_text("\n".join([head, *rows]))
    source = opened(root, "test")
    assert (len(source), list(source.attribute_names)) == (2, ["Bald", "Smiling", "Young"])


def test_a_list_of_parts_that_misses_an_image_is_named(tmp_path):
    listed = celeba(tmp_path) / "list_eval_partition.txt"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UsageError, match=r"does not name 000012\.jpg; .*list_eval_partition"):
        opened(tmp_path)


def test_attributes_beside_a_database_belong_to_its_images(tmp_path):
    root = celeba(tmp_path / "raw")
    path = diffae_lmdb(tmp_path / "celeba.lmdb", [encoded(picture(i)) for i in range(12)], "None-%07d")
    (root / "list_attr_celeba.txt").rename(path / "list_attr_celeba.txt")
    assert opened(path).attributes.shape == (12, 3)


@pytest.mark.parametrize("inside", ["", "thumbnails128x128"])
def test_the_thousands_of_ffhq_are_no_classes(tmp_path, inside):
    source = opened(ffhq(tmp_path) / inside)
    assert (source.name, len(source), source.labels) == ("ffhq", 5, None)
    assert [source.item(i)[-9:] for i in (0, 4)] == ["00000.png", "01001.png"]
    assert source.describe().startswith("FFHQ ")


# CIFAR


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_batches_of_cifar_are_those_of_torchvision(tmp_path, inside, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    cifar10(tmp_path)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    for split, train in (("train", True), ("test", False)):
        source, theirs = opened(tmp_path / inside, split), datasets.CIFAR10(tmp_path, train)
        assert np.array_equal(source.read(np.arange(len(source))), theirs.data)
        assert source.labels.tolist() == theirs.targets
        assert source.classes == theirs.classes == CLASSES_10
    assert len(opened(tmp_path, "all")) == 24


def test_cifar_100_has_its_fine_classes(tmp_path):
    source = opened(cifar100(tmp_path))
    assert (source.name, source.px, len(source.classes)) == ("cifar", 32, 100)
    assert source.labels.tolist() == [0, 7, 14, 21]


def test_a_batch_that_would_run_something_is_refused_and_runs_nothing(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    (cifar10(tmp_path) / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UsageError, match=r"no batch of CIFAR; .*data_batch_3; it names .*open"):
        opened(tmp_path)
    assert not (tmp_path / "touched").exists()


def test_a_cut_off_batch_is_named(tmp_path):
    file = cifar10(tmp_path) / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UsageError, match="test_batch"):
        opened(tmp_path, "test")


def test_cifar_as_folders_of_a_split_has_its_ten_classes(tmp_path):
    for split, count in (("train", 3), ("test", 1)):
        for name in ("cat", "ship"):
            for i in range(count):
                (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
                picture(i, 32, 32).save(tmp_path / split / name / f"{i}.jpg")
    assert [len(opened(tmp_path, split)) for split in ("train", "test", "all")] == [6, 2, 8]
    assert opened(tmp_path).classes == ["cat", "ship"]
    assert opened(tmp_path / "test").labels.tolist() == [0, 1]
    with pytest.raises(UsageError, match=r"split valid .*holds test, train"):
        opened(tmp_path, "valid")


def test_classes_called_like_a_split_among_others_are_classes(tmp_path):
    for name in ("train", "bus"):
        (tmp_path / name).mkdir()
        picture(0).save(tmp_path / name / "0.png")
    assert opened(tmp_path).classes == ["bus", "train"]


# Tar


def test_shards_are_read_in_place_in_their_order_with_their_classes(tmp_path):
    for shard in range(3):
        webdataset(tmp_path / f"{shard}.tar", [sample(4 * shard + i, (shard + i) % 3) for i in range(4)])
    before = sorted(path.name for path in tmp_path.iterdir())
    source = opened(tmp_path)
    assert source.name == "tar"
    assert contents(source) == [encoded(picture(i)) for i in range(12)]
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert source.item(5) == f"{tmp_path}/1.tar, member 000005.jpg"


def test_one_tar_of_a_folder_has_its_folders_as_classes(tmp_path):
    for name in ("cat", "ship"):
        (tmp_path / "set" / name).mkdir(parents=True)
        picture(0).save(tmp_path / "set" / name / "0.jpg")
    with tarfile.open(tmp_path / "set.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(tmp_path / "set", arcname=".")
    source = opened(tmp_path / "set.tar")
    assert sorted(source.classes) == ["cat", "ship"]
    assert sorted(contents(source)) == sorted(contents(opened(tmp_path / "set")))


def test_shards_named_after_splits_are_divided(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        webdataset(tmp_path / f"set-{split}-000.tar", [sample(i) for i in range(count)])
    assert [len(opened(tmp_path, split)) for split in ("train", "valid", "all")] == [3, 2, 5]


def test_links_and_paths_out_of_a_tar_lead_nowhere(tmp_path):
    path = webdataset(tmp_path / "set.tar", [("../../outside", {"jpg": JPEGS[0]})])
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    source = opened(path)
    assert contents(source) == [JPEGS[0]]
    assert not (tmp_path.parent.parent / "outside.jpg").exists()


def test_a_truncated_or_compressed_tar_is_refused(tmp_path):
    path = webdataset(tmp_path / "set.tar", [sample(i) for i in range(3)])
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as archive:
        archive.add(path, arcname="set")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UsageError, match=r"(truncated|cannot read a tar file).*set\.tar"):
        opened(path)
    with pytest.raises(UsageError, match=r"compressed"):
        opened(tmp_path / "zipped.tar")


# Detection


def test_each_kind_is_told_by_what_it_holds(tmp_path):
    made = {
        "lmdb": diffae_lmdb(tmp_path / "a", JPEGS),
        "celeba": celeba(tmp_path / "b"),
        "cifar": cifar10(tmp_path / "c"),
        "tar": webdataset(tmp_path / "d" / "0.tar", [sample(0)]).parent,
        "folder": ffhq(tmp_path / "e"),
    }
    assert {kind: detect(path) for kind, path in made.items()} == {kind: kind for kind in made}


def test_an_archive_that_must_be_unpacked_first_is_called_what_it_is(tmp_path):
    path = tmp_path / "bedroom_train_lmdb.zip"
    path.write_bytes(b"PK\x03\x04rest")
    with pytest.raises(UsageError, match=r"a zip archive; .*bedroom_train_lmdb\.zip"):
        opened(path)


def test_a_shard_that_vanishes_is_named(tmp_path):
    path = webdataset(tmp_path / "set.tar", [sample(0)])
    source = opened(path)
    path.unlink()
    with pytest.raises(DataError, match=r"set\.tar; No such file"):
        source.read(np.array([0]))


def test_lmdb_opens_one_environment_a_process(tmp_path):
    """LMDB itself refuses a second one."""
    path = diffae_lmdb(tmp_path / "set", JPEGS)
    first, second = opened(path), opened(path)
    assert contents(first) == contents(second)
    with pytest.raises(lmdb.Error):
        lmdb.open(str(path / "data.mdb"), subdir=False, readonly=True, lock=False)
