"""Metrics that go to Weights & Biases, against a module that notes what it is told."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from training import TINY, write_config

from engine.config_file import load
from engine.errors import UsageError
from engine.loop import open_sinks
from engine.weights_and_biases import WeightsAndBiases


class FakeRun:
    """Notes calls in their order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.calls.append(("define", (name, step_metric)))

    def log(self, values: dict[str, float]) -> None:
        self.calls.append(("log", values))

    def finish(self) -> None:
        self.calls.append(("finish", None))


@pytest.fixture
def started(monkeypatch) -> list[dict[str, Any]]:
    """Arguments of every start; each run notes under "run"."""
    starts: list[dict[str, Any]] = []

    def init(**given: Any) -> FakeRun:
        starts.append({**given, "run": FakeRun()})
        return starts[-1]["run"]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return starts


def test_it_gets_the_same_numbers_with_the_step_as_their_axis(tmp_path, started):
    sink = WeightsAndBiases("rooms", tmp_path, {"seed": 3})
    sink.write(5, {"loss": 0.5, "by": [1.0, None, 3.0]})
    sink.close()
    assert started[0]["project"] == "rooms"
    assert started[0]["config"] == {"seed": 3}
    assert started[0]["run"].calls == [
        ("define", ("step", None)),
        ("define", ("*", "step")),
        ("log", {"step": 5, "loss": 0.5, "by/00": 1.0, "by/02": 3.0}),
        ("finish", None),
    ]


def test_a_training_that_goes_on_continues_its_run_and_another_directory_is_another_run(tmp_path, started):
    for directory in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        WeightsAndBiases("rooms", directory, {})
    first, again, other = started
    assert first["id"] == again["id"] != other["id"]
    assert again["resume"] == "allow"


def test_a_run_opens_it_only_when_asked(tmp_path, started):
    for overrides in ([], ["log.wandb=rooms"]):
        config = load(write_config(tmp_path / "tiny.json", TINY), overrides)
        for sink in open_sinks(config, tmp_path, 0):
            sink.close()
    assert [start["project"] for start in started] == ["rooms"]


def test_without_the_package_and_without_a_login_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=r"pip install 'diffsiam\[wandb\]'"):
        WeightsAndBiases("rooms", tmp_path, {})

    def refuse(**_: Any) -> None:
        raise RuntimeError("no API key\nmore")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(UsageError, match="no API key; `wandb login`, or WANDB_MODE=offline") as caught:
        WeightsAndBiases("rooms", tmp_path, {})
    assert "\n" not in str(caught.value)
