"""What a run builds before its first step."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
import torch
from training import TINY, write_config

from engine import run
from engine.build import build_frozen
from engine.config import Config
from engine.config_file import load
from engine.data.broken import Quarantine
from engine.data.sources import Source, open_source
from engine.errors import UsageError
from engine.parallel import Ranks
from engine.preempt import Preemption
from engine.step import choose_policy
from engine.tasks import Representation

CPU = torch.device("cpu")


def images_of(config: Config) -> Source:
    return open_source("rooms", None, config.data.px, config.seed, config.data.count)


def built(config: Config, monkeypatch: pytest.MonkeyPatch) -> Representation:
    """The task of a run whose policy keeps the frozen model in bfloat16, as on CUDA."""
    tasks = []
    policy = replace(choose_policy(config, CPU), autocast=torch.bfloat16, frozen_dtype=torch.bfloat16)
    monkeypatch.setattr(run, "choose_policy", lambda *_: policy)
    monkeypatch.setattr(run, "train", lambda config, task, *_: tasks.append(task))
    source = images_of(config)
    with Preemption() as preemption:
        run._train_and_report(config, source, None, Ranks(0, 1, CPU), preemption, mock.Mock())
    return tasks[0]


def test_a_decoder_starts_from_the_weights_of_the_file_and_not_from_rounded_ones(tmp_path, monkeypatch):
    config = load(write_config(tmp_path / "tiny.json", TINY), [f"run.dir={tmp_path}"])
    task = built(config, monkeypatch)
    decoder, frozen = task.build().decoder, build_frozen(config)
    assert {p.dtype for p in task.frozen.parameters()} == {torch.bfloat16}
    for ours, theirs in (
        (decoder.shift_middle_block, frozen.middle_block),
        (decoder.shift_output_blocks, frozen.output_blocks),
    ):
        started = ours.state_dict()
        for name, value in theirs.state_dict().items():
            assert torch.equal(started[name], value), name


def test_images_that_lose_nothing_are_no_ground_for_boundaries(tmp_path):
    one_image = ["subsets.choice=profile", "data.count=1"]
    config = load(write_config(tmp_path / "tiny.json", TINY), one_image)
    source = images_of(config)
    with pytest.raises(UsageError, match=r"all images are equal.*; use subsets\.choice=time_tied"):
        run._boundaries(config, build_frozen(config), source, Ranks(0, 1, CPU), Quarantine(source))
