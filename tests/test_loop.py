"""The training loop in this process: what it measures, saves and refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn
from training import TINY, differing, logged, write_config

from engine import run
from engine.checkpoint import verify
from engine.config_file import load
from engine.errors import NumericsError, UsageError
from engine.loop import unnoticed
from engine.numerics import demand_finite
from engine.parallel import Ranks
from engine.runlock import run_lock

Train = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, one_rank: Ranks) -> Train:
    """Train TINY with overrides in a directory of that name and return it."""

    def train(name: str, *overrides: str) -> Path:
        directory = tmp_path / name
        run.run(load(write_config(tmp_path / "tiny.json"), [f"run.dir={directory}", *overrides]))
        return directory

    return train


def steps(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (directory / "checkpoints").iterdir())


def test_measuring_gradients_changes_nothing_not_even_dropout(train):
    overrides = ("train.steps=2", "decoder.dropout=0.5", "train.accumulation=2")
    measured = train("measured", *overrides, "log.gradnorm_every=1")
    assert len(logged(measured, "grad_simsiam")) == 2
    assert differing(measured, train("plain", *overrides, "log.gradnorm_every=0"), 2) == []


def test_a_measurement_leaves_statistics_and_random_numbers_as_they_were():
    module, state = nn.BatchNorm1d(3), torch.get_rng_state()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with unnoticed(module, torch.device("cpu")):
        module(torch.randn(4, 3))
        assert not torch.equal(module.running_mean, before["running_mean"])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


def test_a_model_that_left_the_finite_numbers_is_not_saved_even_where_no_loss_is_logged(train, tmp_path):
    train("run", "train.steps=1")
    with pytest.raises(NumericsError, match="not finite after step 2, which is not saved"):
        train("run", "train.steps=9", "log.every=5", "log.save_every=1", "optimizer.lr=1e39")
    assert steps(tmp_path / "run") == [1]
    assert verify(tmp_path / "run" / "checkpoints" / "step_00000001").step == 1


def test_the_first_value_that_is_not_finite_is_named():
    model = {"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")]), "count": torch.tensor(3)}
    with pytest.raises(NumericsError, match="^b is not finite after step 7"):
        demand_finite(model, 7)


@pytest.mark.parametrize(("every", "drawn"), [(0, []), (2, [2, 3]), (5, [3])])
def test_grids_are_drawn_as_often_as_asked_for_and_at_the_end(train, every, drawn):
    grids = train("run", "train.steps=3", f"log.grid_every={every}") / "grids"
    assert sorted(path.name for path in grids.glob("*")) == [f"step_{step:08d}.png" for step in drawn]


def test_one_image_has_no_spread_to_log(train, capsys):
    record = train("run", "train.steps=1", "train.batch_size=1", "simsiam.weight=0") / "metrics.jsonl"
    assert "feature_std" not in record.read_text()
    assert "collapsing" not in capsys.readouterr().err


def test_a_run_goes_on_with_other_images_and_says_so(train, monkeypatch, capsys):
    train("run", "train.steps=1")
    source = run.open_source("rooms", None, 16, 0, 500)
    monkeypatch.setattr(type(source), "fingerprint", lambda self: "other")
    train("run", "train.steps=2")
    assert "the images are not those of the checkpoint" in capsys.readouterr().err


class TwoHosts(Ranks):
    """Rank 1 of two, whose peer found a checkpoint of step 7."""

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(7)

    def sum_on_host(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def test_ranks_that_find_different_checkpoints_refuse_to_start(tmp_path):
    with pytest.raises(UsageError, match="not every rank finds the same checkpoint.*all hosts share"):
        run._latest(tmp_path, TwoHosts(1, 2, torch.device("cpu")))


def test_a_directory_in_use_is_refused_and_the_other_ranks_leave_too(train, tmp_path, monkeypatch):
    with run_lock(tmp_path / "run"), pytest.raises(UsageError, match="is in use by process"):
        train("run")
    monkeypatch.setattr(Ranks, "any", lambda self, here: True)  # what rank 1 hears of rank 0's refusal
    with pytest.raises(UsageError, match="rank 0 could not lock"):
        run._lock(mock.Mock(), tmp_path, Ranks(1, 2, torch.device("cpu")))


def test_what_is_not_measured_under_zero_3_is_said(tmp_path):
    config = load(write_config(tmp_path / "tiny.json", TINY), ["parallel.zero=3"])
    assert any("gradient norms of the two losses are not measured" in text for text in run.cautions(config))
