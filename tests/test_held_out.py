"""Held-out images are never trained on, and the loss on them depends on the model alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training import TINY, finish, start, write_config

import engine
from diffsiam.evaluation.held_out import held_out_loss
from diffsiam.schedule import Schedule
from diffsiam.weights import load_unet
from engine.build import build_schedule
from engine.config_file import load
from engine.data.held_out import split
from engine.data.rooms import Rooms
from engine.data.sources import FolderSource, RoomsSource
from engine.errors import UsageError
from kernels.noise_jump.ref import to_unit_range


@pytest.fixture
def folder(tmp_path) -> FolderSource:
    """Ten images in two classes."""
    for i in range(10):
        path = tmp_path / "ab"[i // 5] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(path)
    return FolderSource(tmp_path)


def test_a_folder_is_divided_and_every_class_is_on_both_sides(folder):
    train, held = split(folder, 4)
    items = [{part.item(i) for i in range(len(part))} for part in (train, held)]
    assert (len(train), len(held)) == (6, 4)
    assert not items[0] & items[1]
    assert len(items[0] | items[1]) == 10
    assert set(train.labels) == set(held.labels) == {0, 1}
    assert "4 held out" in train.describe()


def test_a_part_reads_its_own_items(folder):
    train, held = split(folder, 4)
    for part in (train, held):
        contents = part.read(np.arange(len(part)))
        for i, content in enumerate(contents):
            with open(part.item(i), "rb") as file:
                assert content.tobytes() == file.read()


def test_rooms_are_drawn_beyond_the_training_set_which_stays_as_it_is():
    source = RoomsSource(Rooms(16, 0, 100))
    train, held = split(source, 10)
    assert train is source
    assert held.rooms.first == 100
    assert len(held) == 10


def test_nothing_held_out_is_no_division_and_everything_is_refused(folder):
    assert split(folder, 0) == (folder, None)
    with pytest.raises(UsageError, match="data.held_out = 10"):
        split(folder, 10)


def test_a_model_that_knows_the_noise_loses_nothing_and_one_that_says_nothing_loses_its_variance():
    schedule, images = Schedule(), torch.randn(64, 3, 8, 8).clamp(-1, 1)

    def knowing(x_t, t):
        alpha_bar = schedule.at("alpha_bar", t)
        start = (t.new_zeros(1) + len(x_t) * seen[0]).item()
        x_0 = images[start : start + len(x_t)]
        seen[0] = (seen[0] + 1) % 2
        return (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()

    seen = [0]
    assert held_out_loss(knowing, schedule, images, 0, 10, batch_size=32).max() < 1e-3
    silent = held_out_loss(lambda x, t: torch.zeros_like(x), schedule, images, 0, 10)
    assert silent == pytest.approx(np.ones(10), abs=0.05)


def test_times_of_a_band_lie_in_it_and_are_the_same_every_time():
    seen: list[torch.Tensor] = []

    def record(x, t):
        seen.append(t)
        return x

    schedule, images = Schedule(), torch.zeros(20, 3, 8, 8)
    first = held_out_loss(record, schedule, images, 0, 10)
    assert np.array_equal(first, held_out_loss(record, schedule, images, 0, 10))
    for band, t in enumerate(seen[:10]):
        assert t.min() == 100 * band
        assert 100 * band + 90 <= t.max() < 100 * (band + 1)
        assert torch.equal(t, seen[10 + band])


def test_a_pretraining_run_logs_it_with_every_sheet(tmp_path):
    architecture = {key: value for key, value in TINY["frozen"].items() if key != "weights"}
    values = {"task": "diffusion", "data": TINY["data"] | {"held_out": 16}, "frozen": architecture}
    config = write_config(tmp_path / "dm.json", values | {"train": TINY["train"], "log": TINY["log"]})
    finish(
        start(["--config", str(config), f"run.dir={tmp_path / 'run'}", "train.steps=2", "log.grid_every=1"])
    )
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert len(record["held_out_loss_by_time"]) == 10
        assert record["held_out_loss"] == pytest.approx(np.mean(record["held_out_loss_by_time"]))


def test_the_shipped_diffusion_model_has_the_held_out_loss_that_its_card_states():
    assets = Path(engine.__file__).parent / "assets"
    config = load("configs/rooms_dm.json")
    rooms = Rooms(16, config.seed, config.data.count).held_out(64)
    images = to_unit_range(torch.from_numpy(rooms.images(np.arange(64))))
    unet = load_unet(assets / "rooms16.safetensors").eval()
    found = held_out_loss(unet, build_schedule(config), images, config.seed, bands=10)
    stated = json.loads((assets / "rooms16.json").read_text())["held_out"]
    assert found == pytest.approx(stated["loss_by_tenth_of_t"], rel=0.1)
    assert found.mean() == pytest.approx(stated["loss"], rel=0.05)
