"""Small sets live decoded in memory: which, where, and with which pixels."""

import numpy as np
import pytest
import torch
from image_sets import cifar10, diffae_lmdb, encoded, picture
from test_data_exact import sample_log

from engine.data import resident
from engine.data.broken import Quarantine
from engine.data.draws import AUGMENTATIONS, VIEW_STREAMS, crop_boxes, view_draws
from engine.data.feeds import Reader
from engine.data.fetching import fetch
from engine.data.resident import DeviceStream, ResidentSource, choose, cut_and_resized, load
from engine.data.rooms import Rooms
from engine.data.rooms_source import RoomsSource
from engine.data.share import Share
from engine.data.sources import open_source
from engine.errors import UsageError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    pytest.importorskip("nvidia.dali")
    images = [encoded(picture(i, 30 + i, 44)) for i in range(20)]
    return open_source("auto", diffae_lmdb(tmp_path_factory.mktemp("sets") / "lmdb", images), 16, 0, 0)


def test_pixels_of_host_memory_are_those_of_reading_every_time(jpegs):
    held = load(jpegs, 16, CPU, threads=1)
    assert sample_log(held, augment="blur") == sample_log(jpegs, augment="blur")
    assert "GiB resident on the host" in held.describe()


def test_cut_views_of_pictures_are_those_of_reading_every_time(tmp_path):
    source = open_source("auto", cifar10(tmp_path), 32, 0, 0)
    held = load(source, 32, CPU, threads=1)
    assert sample_log(held, 32, augment="crop") == sample_log(source, 32, augment="crop")
    assert held.labels.tolist() == source.labels.tolist()


def test_broken_images_are_replaced_as_they_are_when_read(tmp_path):
    pytest.importorskip("nvidia.dali")
    images = [b"text" if i in (3, 8) else encoded(picture(i)) for i in range(20)]
    source = open_source("auto", diffae_lmdb(tmp_path / "set", images), 16, 0, 0)
    quarantine = Quarantine(source, 2)
    held = load(source, 16, CPU, 1, quarantine)
    assert set(quarantine.faults) == {3, 8}
    read = sample_log(source, augment="blur", quarantine=Quarantine(source, 2))
    assert sample_log(held, augment="blur", quarantine=quarantine) == read


@pytest.mark.parametrize("recipe", ["crop", "blur", "none"])
def test_a_stream_on_the_device_gathers_the_same_samples(tmp_path, recipe):
    source = open_source("auto", cifar10(tmp_path), 32, 0, 0)
    reader = Reader(ResidentSource(source, torch.from_numpy(source.images)), 32, 7, AUGMENTATIONS[recipe])
    share = Share(8, 0, 1, 8, 1)
    batch = DeviceStream(reader, share).run().batch()
    expected = reader.stream(share[0])
    assert batch["index"].tolist() == expected.indices.tolist()
    assert np.array_equal(batch["x_0"].numpy(), expected.images)
    assert set(batch) - {"x_0", "position", "index"} == (set(VIEW_STREAMS) if recipe == "crop" else set())


def test_views_cut_on_the_device_are_those_of_torchvision():
    functional = pytest.importorskip("torchvision.transforms.functional")
    images = torch.from_numpy(np.stack([np.asarray(picture(i, 32, 32)) for i in range(30)]))
    boxes = crop_boxes(view_draws(0, np.arange(30), 5).crop, np.full((30, 2), 32))
    made = cut_and_resized(images, boxes).float()
    for image, box, got in zip(images.permute(0, 3, 1, 2), boxes.tolist(), made, strict=True):
        expected = functional.resized_crop(image.float(), *box, [32, 32], antialias=True)
        assert (got.permute(2, 0, 1) - expected).abs().max() <= 0.51


def test_a_set_that_fits_is_taken_to_the_host_and_a_large_one_is_not(jpegs, monkeypatch):
    assert choose("auto", jpegs, 16, "blur", CPU).where == "host"
    monkeypatch.setattr(resident, "_free_bytes", lambda: 4 * len(jpegs) * 16 * 16 * 3 - 1)
    assert choose("auto", jpegs, 16, "blur", CPU).where == "off"
    monkeypatch.setattr(resident, "_free_bytes", lambda: 1 << 40)
    monkeypatch.setattr(resident, "LARGEST", 100)
    assert choose("auto", jpegs, 16, "blur", CPU).where == "off"


def test_a_set_is_shared_by_the_ranks_of_a_host(jpegs, monkeypatch):
    monkeypatch.setattr(resident, "_free_bytes", lambda: 4 * len(jpegs) * 16 * 16 * 3)
    assert choose("auto", jpegs, 16, "blur", CPU, ranks_here=1).where == "host"
    assert choose("auto", jpegs, 16, "blur", CPU, ranks_here=2).where == "off"


def test_images_whose_views_are_cut_at_their_own_size_are_not_taken(jpegs):
    assert choose("auto", jpegs, 16, "crop", CPU).where == "off"
    with pytest.raises(UsageError, match=r"data\.resident=host: the recipe crop cuts"):
        choose("host", jpegs, 16, "crop", CPU)


def test_pictures_in_memory_are_not_copied():
    assert choose("auto", RoomsSource(Rooms(16, 0, 10)), 16, "crop", CPU).where == "off"


def test_the_memory_of_a_gpu_needs_one(jpegs):
    with pytest.raises(UsageError, match=r"data\.resident=device needs a GPU"):
        choose("device", jpegs, 16, None, CPU)


def test_fetching_from_memory_gives_what_fetching_from_the_source_gives(jpegs):
    held = load(jpegs, 16, CPU, threads=1)
    assert np.array_equal(fetch(held, 16, [3, 1, 19]), fetch(jpegs, 16, [3, 1, 19]))
