"""The oracle reads every factor of a room, and its weights are those that its card describes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from engine import oracle as module
from engine.data.rooms import BRIGHTNESS, FACTORS, LEVELS, VERSION, Rooms, render
from engine.errors import CheckpointError, UsageError
from engine.oracle import ASSETS, Oracle, accuracy, batch, degrade, load_oracle, write

torch.set_num_threads(1)
SIZES = (16, 24, 32)


def card(px: int) -> dict:
    return json.loads((ASSETS / f"oracle_rooms{px}.json").read_text())


def unseen(px: int, count: int) -> Rooms:
    """Rooms that no oracle was trained on: another seed."""
    return Rooms(px, seed=987, count=count)


@pytest.mark.parametrize("px", SIZES)
def test_every_factor_is_read_in_98_of_100_rooms(px):
    read = accuracy(load_oracle(px), unseen(px, 1_000))
    assert list(read) == [factor.name for factor in FACTORS]
    assert min(read.values()) >= 0.98


@pytest.mark.parametrize("px", SIZES)
def test_slightly_noised_and_blurred_rooms_are_still_read(px):
    read = accuracy(load_oracle(px), unseen(px, 1_000), strength=0.5)
    assert min(read.values()) >= 0.85


@pytest.mark.parametrize("px", SIZES)
def test_an_edit_of_one_factor_is_read_as_that_edit(px):
    rooms, oracle = unseen(px, 200), load_oracle(px)
    before = rooms.factors(np.arange(200))
    after = before.copy()
    factor = np.arange(200) % len(FACTORS)
    after[np.arange(200), factor] = (before[np.arange(200), factor] + 1) % LEVELS[factor]
    images = torch.from_numpy(render(after, px)).permute(0, 3, 1, 2) / 127.5 - 1
    assert (oracle.read(images).numpy() == after).mean() >= 0.99


@pytest.mark.parametrize("px", SIZES)
def test_the_card_tells_how_the_oracle_was_made_and_how_well_it_reads(px):
    told = card(px)
    assert told["rooms"] == VERSION
    assert told["factors"] == {factor.name: list(factor.values) for factor in FACTORS}
    assert min(told["accuracy"].values()) >= 0.98
    assert f"--px {px} --steps {told['steps']} --seed {told['seed']}" in told["command"]
    assert (ASSETS / f"oracle_rooms{px}.safetensors").stat().st_size == told["bytes"] <= 600_000


def test_reading_gives_a_level_of_every_factor():
    levels = load_oracle(16).read(torch.rand(5, 3, 16, 16) * 2 - 1)
    assert levels.shape == (5, len(FACTORS))
    assert levels.dtype == torch.int64
    assert ((levels >= 0) & (levels < torch.from_numpy(LEVELS))).all()


def test_a_loaded_oracle_is_frozen_single_precision_and_in_evaluation_mode():
    oracle = load_oracle(16)
    assert not oracle.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in oracle.parameters())


def test_a_size_without_an_oracle_names_those_there_are():
    with pytest.raises(UsageError, match=r"40 px.*16, 24, 32"):
        load_oracle(40)


def test_a_folder_without_oracles_says_so(tmp_path):
    with pytest.raises(UsageError, match="none"):
        load_oracle(16, tmp_path)


@pytest.fixture
def copied(tmp_path):
    """A folder with copies of the oracle for 16 px and of its card."""
    for suffix in ("safetensors", "json"):
        shutil.copy(ASSETS / f"oracle_rooms16.{suffix}", tmp_path)
    return tmp_path


def test_damaged_weights_are_refused(copied):
    weights = copied / "oracle_rooms16.safetensors"
    stored = bytearray(weights.read_bytes())
    stored[-1] ^= 1
    weights.write_bytes(stored)
    with pytest.raises(CheckpointError, match="sha256"):
        load_oracle(16, copied)


@pytest.mark.parametrize("change", [{"rooms": "rooms@0"}, {"factors": {}}])
def test_an_oracle_of_other_rooms_is_refused(copied, change):
    path = copied / "oracle_rooms16.json"
    path.write_text(json.dumps(card(16) | change))
    with pytest.raises(CheckpointError, match=r"train it again"):
        load_oracle(16, copied)


def test_what_is_written_is_what_is_loaded(tmp_path):
    torch.manual_seed(0)
    oracle = Oracle(px=20).half().float().eval()
    write(oracle, tmp_path, {"rooms": VERSION, "factors": module._factor_table()})
    images = torch.rand(4, 3, 20, 20)
    for ours, loaded in zip(oracle(images), load_oracle(20, tmp_path)(images), strict=True):
        torch.testing.assert_close(ours, loaded, rtol=0, atol=0)


def test_degrading_is_repeatable_and_mild():
    images, _ = batch(unseen(16, 64), 0, 64)
    seen = [degrade(images, torch.Generator().manual_seed(1)) for _ in range(2)]
    torch.testing.assert_close(*seen, rtol=0, atol=0)
    assert 0.01 < (seen[0] - images).square().mean().sqrt() < 0.15
    nothing = degrade(images, torch.Generator(), strength=0.0)
    torch.testing.assert_close(nothing, images)


def test_the_brightness_jitter_is_a_fraction_of_a_step_between_values():
    bright = np.array([level for (level,) in BRIGHTNESS.values()])
    assert module.LARGEST_JITTER < (bright[1:] / bright[:-1] - 1).min() / 5


@pytest.fixture
def command():
    app = module.typer.Typer()
    app.command()(module.main)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_an_oracle_that_reads_badly_is_not_written_and_fails(command, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HELD_OUT", 100)
    result = command("--px", 16, "--steps", 2, "--out", tmp_path)
    assert result.exit_code == 1
    assert "quilt" in result.output
    assert not list(tmp_path.iterdir())


def test_an_oracle_that_reads_well_enough_is_written_with_its_card(command, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HELD_OUT", 100)
    monkeypatch.setattr(module, "REQUIRED_ACCURACY", 0.0)
    assert command("--px", 17, "--steps", 2, "--seed", 4, "--out", tmp_path).exit_code == 0
    assert load_oracle(17, tmp_path).px == 17
    assert json.loads((tmp_path / "oracle_rooms17.json").read_text())["seed"] == 4


def test_a_size_that_cannot_be_drawn_ends_with_exit_code_2(command):
    result = command("--px", 8, "--steps", 1)
    assert result.exit_code == 2
    assert "16 to 128" in result.output
