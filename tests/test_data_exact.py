"""The log of sample ids and pixels is the same for any ranks, readers, depth, start and storage."""

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
from image_sets import diffae_lmdb, encoded, picture

from engine.data.pipeline import Loader
from engine.data.sources import open_source

pytest.importorskip("nvidia.dali")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
COUNT, BATCH, STEPS = 22, 8, 7  # 56 samples: epochs end inside of batches


def opened(path, px: int = 16, split: str = "train"):
    return open_source("auto", path, px, 0, 0, split)


def sample_log(source, px: int = 16, steps: int = STEPS, batch: int = BATCH, **options) -> dict[int, str]:
    """By position: the item and a hash of the pixels of x_0 and both views."""
    world, log = options.get("world", 1), {}
    for rank in range(world):
        loader = Loader(source, px, 5, batch, **(options | {"rank": rank}))
        for _ in range(steps * options.get("accumulation", 1)):
            made = next(loader)
            for row, position in enumerate(made["position"].tolist()):
                pixels = b"".join(made[name][row].numpy().tobytes() for name in ("x_0", "view_1", "view_2"))
                log[position] = f"{made['index'][row]} {hashlib.sha256(pixels).hexdigest()}"
        loader.close()
    return log


@pytest.fixture(scope="module")
def images():
    return [encoded(picture(i, 20 + i % 7, 30 - i % 5), quality=95) for i in range(COUNT)]


@pytest.fixture(scope="module")
def database(tmp_path_factory, images):
    return diffae_lmdb(tmp_path_factory.mktemp("sets") / "lmdb", images)


@pytest.fixture(scope="module", params=["crop", "blur"])
def recipe(request):
    return request.param


@pytest.fixture(scope="module")
def whole(database, recipe):
    return sample_log(opened(database), augment=recipe, threads=1)


@pytest.mark.parametrize(
    "options",
    [
        {"world": 4},
        {"world": 2, "accumulation": 2, "threads": 3},
        {"depth": 1},
        {"depth": 7, "threads": 2},
    ],
    ids=str,
)
def test_ranks_readers_and_depth_change_nothing(database, recipe, whole, options):
    assert sample_log(opened(database), augment=recipe, **options) == whole


def test_processes_that_read_change_nothing(database):
    expected = sample_log(opened(database), augment="crop")
    assert sample_log(opened(database), augment="crop", workers=2, depth=4, start_step=0) == expected


@pytest.mark.parametrize("step", [1, 2, 3, 6])
def test_a_run_goes_on_at_any_step_across_ends_of_epochs(database, recipe, whole, step):
    resumed = sample_log(opened(database), augment=recipe, steps=STEPS - step, start_step=step)
    assert resumed == {position: entry for position, entry in whole.items() if position >= step * BATCH}


def test_every_epoch_holds_every_image_and_the_next_one_another_order(whole):
    order = [int(whole[position].split()[0]) for position in range(2 * COUNT)]
    assert sorted(order[:COUNT]) == sorted(order[COUNT:]) == list(range(COUNT))
    assert order[:COUNT] != order[COUNT:]


def three_ways(root: Path, folder: Path) -> list[Path]:
    """A folder, and its files in the same order in an LMDB and in a tar."""
    source = opened(folder)
    contents = [value.tobytes() for value in source.read(np.arange(len(source)))]
    with tarfile.open(root / "set.tar", "w") as archive:
        for i in range(len(source)):
            archive.add(source.item(i), arcname=Path(source.item(i)).relative_to(source.root))
    return [folder, diffae_lmdb(root / "set.lmdb", contents), root / "set.tar"]


def test_folder_database_and_tar_give_the_same_pixels(tmp_path, images, recipe, whole):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(images):
        (folder / f"{i}.jpg").write_bytes(image)
    for path in three_ways(tmp_path, folder):
        assert sample_log(opened(path), augment=recipe) == whole


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Unpacks some real images; skips where they are absent."""

    def unpack(name: str, keep) -> Path:
        archive = SHARED / f"{name}.tar.xz"
        if not archive.is_file():
            pytest.skip(f"real images are absent: {archive}")
        root = tmp_path_factory.mktemp(name)
        with tarfile.open(archive) as opened_archive:
            for member in opened_archive:
                if member.isfile() and keep(member.name):
                    opened_archive.extract(member, root, filter="data")
                if sum(1 for _ in root.rglob("*.jpg")) >= 60:
                    break
        return root

    return unpack


@pytest.mark.parametrize(("name", "px", "augment"), [("cifar10", 32, "crop"), ("rooms", 128, "blur")])
def test_real_images_give_the_same_pixels_from_folder_database_and_tar(shared, tmp_path, name, px, augment):
    root = shared(name, lambda member: not member.startswith("test"))
    folder = root / "rooms" if name == "rooms" else root
    logs = [
        sample_log(opened(path, px), px, steps=5, batch=16, augment=augment)
        for path in three_ways(tmp_path, folder)
    ]
    assert len(logs[0]) == 80
    assert logs[0] == logs[1] == logs[2]
