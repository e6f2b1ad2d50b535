"""The benchmark of edits: equal images and counted calls before any time."""

import json

import pytest
import torch

from bench import edit
from engine.config_file import load


def test_a_figure_and_its_loop_make_equal_images_with_the_calls_that_are_needed(capsys):
    assert edit.main(["--moves", "1", "--repeats", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    calls = report["network_calls"]
    assert calls["ours"] == calls["loop"] == calls["needed"] == 2 + 2 * (1 + 7 * 4)
    assert calls["without_sharing"] == 2 + 70
    assert report["images"] == 70
    assert report["ratio"] == pytest.approx(
        report["ours_images_per_second"] / report["loop_images_per_second"]
    )


def test_unequal_images_are_not_timed(monkeypatch, capsys):
    loop = edit.Figure.loop
    monkeypatch.setattr(edit.Figure, "loop", lambda self: loop(self) + 0.1)
    assert edit.main(["--moves", "1"]) == 1
    assert "nothing was timed" in capsys.readouterr().err


def test_one_call_too_many_is_not_timed(monkeypatch):
    monkeypatch.setattr(edit.Figure, "needed_calls", lambda self: 59)
    report = edit.bench(load("configs/quickstart.json", edit.CHOSEN), 1, 1)
    assert report["equal"] is False
    assert "ratio" not in report


def test_a_config_without_diffusion_model_is_refused(capsys):
    assert edit.main(["loss.weight=0", "simsiam.weight=1"]) == 2
    assert "no diffusion model" in capsys.readouterr().err


def test_the_guidance_of_the_figure_is_alive():
    figure = edit.Figure(load("configs/quickstart.json", edit.CHOSEN), 1, torch.device("cpu"))
    found = figure.ours()
    assert (found[0, 0, 0, 0] - found[0, 0, 0, 4]).abs().max() > 1e-3
