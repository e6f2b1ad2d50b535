"""Losses and gradients that are no numbers, on any rank; losses that leap; and where they came from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from unittest import mock

import pytest
import torch
from launching import steps_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine import replay as replaying
from engine.errors import UsageError
from engine.metrics import Metrics
from engine.numerics import LAG, Flags, Skips, Spikes, Statistics, not_finite
from engine.parallel import Trainer
from engine.verify import state, state_hash

pytestmark = [pytest.mark.faults]
thorough = pytest.mark.thorough


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def skipped(run: Path) -> list[dict]:
    return lines_of(run / "skipped.jsonl")


@pytest.mark.parametrize(
    ("fault", "world", "more"),
    [
        ("loss:rank=1:step=5:nan", 2, ()),
        pytest.param("gradient:rank=0:step=5:inf", 2, (), marks=thorough),
        pytest.param("gradient:rank=1:step=5:nan", 2, ("parallel.zero=0",), marks=thorough),
        pytest.param("gradient:rank=1:step=5:nan", 2, ("parallel.zero=3",), marks=thorough),
        pytest.param("loss:step=5:inf", 1, ("optimizer.grad_clip=1",), marks=thorough),
        pytest.param("gradient:step=5:nan", 1, ("optimizer.name=sgd",), marks=thorough),
        pytest.param("gradient:step=0:nan", 1, ("optimizer.name=sgd",), marks=thorough),
        pytest.param("loss:step=5:nan", 1, ("train.accumulation=2",), marks=thorough),
    ],
)
def test_an_update_that_is_not_finite_on_any_rank_is_left_out_on_all(fault, world, more, launcher, tmp_path):
    said = launcher.run(tmp_path, *more, world=world, fault=fault)  # ranks whose weights differ are not saved
    at = int(fault.partition("step=")[2][0])
    assert said.count("the update is left out on all ranks") == 1
    assert skipped(tmp_path) == [{"step": at, "positions": [4 * at, 4 * at + 3]}]
    lines = lines_of(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if line.get("skipped")] == [at + 1]
    assert "loss" not in lines[at]
    assert all(math.isfinite(line["loss"]) for line in lines if line["step"] != at + 1)
    assert all(tensor.isfinite().all() for tensor in state(tmp_path).values())


def test_a_run_that_left_an_update_out_resumes_bit_identically(launcher, tmp_path):
    for name, faults in {
        "straight": ["loss:step=3:nan"],
        "cut": ["loss:step=3:nan,step:step=6:term", ""],
    }.items():
        for fault in faults:
            launcher.run(tmp_path / name, fault=fault)
    assert state_hash(state(tmp_path / "cut")) == state_hash(state(tmp_path / "straight"))


def test_too_many_end_the_run_with_code_3_and_a_dump_and_replay_blames_the_hardware(
    launcher, tmp_path, capsys
):
    said = launcher.run(tmp_path, "run.skips=2", world=2, fault="loss:rank=1:step=4-:nan", code=3)
    assert "3 of the last 100 updates were left out" in said
    assert "(steps 4, 5, 6)" in said
    assert f"diffsiam replay {tmp_path}" in said
    assert steps_of(tmp_path) == [4]
    assert replaying.replay(tmp_path) == "hardware"
    assert (
        "every step is finite here, from the same weights and the same images and noise"
        in capsys.readouterr().out
    )


@pytest.fixture
def dumped(launcher, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("dumped")
    launcher.run(run, "run.skips=2", fault="loss:step=4-:nan", code=3)
    return run


def test_replay_names_the_images_that_do_it_again(dumped, monkeypatch, capsys):
    real = replaying.Representation.loss

    def overflowing(self, forward, batch, metrics=None):
        guilty = (batch["position"] == 18).any() | (batch["position"] == 21).any()
        return real(self, forward, batch, metrics) * (math.nan if guilty else 1.0)

    monkeypatch.setattr(replaying.Representation, "loss", overflowing)
    assert replaying.replay(dumped) == "data"
    said = capsys.readouterr().out
    assert "it is 2 of them: image" in said or "it is 2 of them: room" in said
    assert "(position 18)" in said
    assert "(position 21)" in said


@thorough
def test_replay_blames_the_weights_when_other_images_fail_too(dumped, monkeypatch):
    monkeypatch.setattr(
        replaying, "load_model", lambda module, state, where: module.encoder.fc.weight.data.fill_(math.nan)
    )
    assert replaying.replay(dumped) == "weights"


@thorough
def test_replay_distrusts_a_machine_that_computes_two_results(dumped, monkeypatch):
    real, calls = replaying.Representation.loss, iter(range(1000))

    def unsteady(self, forward, batch, metrics=None):
        return real(self, forward, batch, metrics) * (1 + 1e-6 * next(calls))

    monkeypatch.setattr(replaying.Representation, "loss", unsteady)
    assert replaying.replay(dumped) == "hardware"


def test_without_a_dump_replay_says_when_there_is_one(tmp_path):
    with pytest.raises(UsageError, match="there is no dump; a run leaves one when it ends with exit code 3"):
        replaying.replay(tmp_path)


@thorough
def test_a_loss_that_leaps_is_logged_and_kept_and_changes_nothing(launcher, tmp_path):
    options = ("train.steps=22", "log.save_every=100")
    said = launcher.run(tmp_path / "leapt", *options, fault="loss:step=19:scale=1", before=LEAP)
    assert said.count("the loss leapt to") == 1
    assert "step 20: the loss leapt" in said
    assert steps_of(tmp_path / "leapt" / "leaps") == [20]
    launcher.run(tmp_path / "plain", *options)
    assert state_hash(state(tmp_path / "leapt")) == state_hash(state(tmp_path / "plain"))


# Only what is logged is a thousand times as large.
LEAP = """
from engine.metrics import Metrics
real, count = Metrics.add, 0
def add(self, name, value, n=1):
    global count
    count += name == "loss"
    real(self, name, value * 1e3 if name == "loss" and count == 20 else value, n)
Metrics.add = add
"""


def test_noise_is_no_leap_and_a_leap_is_no_history():
    spikes, generator = Spikes(), torch.Generator().manual_seed(0)
    values = (1 + 0.2 * torch.randn(200, generator=generator)).tolist()
    assert [value for value in values if spikes.leaps(value)] == []
    assert "the loss leapt to 1000, the median of the last 50 is 0.9" in (spikes.leaps(1000.0) or "")
    assert spikes.leaps(1000.0), "the first one did not become normal"
    assert Spikes().leaps(1e9) is None, "nothing to compare with"


@pytest.mark.parametrize(
    ("kind", "zero", "value"),
    [
        ("adam", 0, math.nan),
        ("sgd", 0, math.inf),
        ("adam", 1, math.inf),
        ("sgd", 2, math.nan),
        ("adam", 3, math.nan),
    ],
)
def test_a_skipped_update_leaves_parameters_state_and_statistics_as_they_were(one_rank, kind, zero, value):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    trainer = Trainer(module, kind, {"lr": 0.1}, one_rank, micro_batch=4, zero=zero)
    x = torch.randn(4, 3)

    def step(factor: float) -> float:
        trainer.backward(trainer.engine(x * factor).square().mean())
        return float(trainer.step())

    def everything() -> dict[str, torch.Tensor]:
        return {
            name: tensor.clone()
            for name, tensor in {**trainer.full_model(), **trainer.full_optimizer()}.items()
        }

    before = everything()
    assert step(value) == 1, "the first step, when torch's optimizers make their state"
    assert all(torch.equal(tensor, before[name]) for name, tensor in everything().items())
    assert step(1) == 0
    before = everything()
    assert step(value) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in everything().items())
    assert step(1) == 0
    assert all(tensor.isfinite().all() for tensor in everything().values())


def test_statistics_of_all_kinds_come_back():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm2d(2, momentum=None))
    statistics, before = Statistics(module), {n: b.clone() for n, b in module.named_buffers()}
    for buffer in module.buffers():
        buffer.add_(7) if buffer.dtype == torch.int64 else buffer.fill_(math.nan)
    statistics.settle(torch.ones(()))
    assert all(torch.equal(b, before[n]) for n, b in module.named_buffers())
    module[0].running_mean.fill_(2.0)
    statistics.settle(torch.zeros(()))
    module[0].running_mean.fill_(3.0)
    statistics.settle(torch.ones(()))
    assert module[0].running_mean.tolist() == [2.0] * 3
    Statistics(nn.Linear(2, 2)).settle(torch.ones(()))


def test_neither_the_flag_nor_the_statistics_are_read_while_training():
    module = nn.Sequential(nn.BatchNorm1d(3, device="meta"))  # a device without values: reading one raises
    statistics = Statistics(module)
    flag = not_finite([torch.zeros(5, device="meta"), torch.zeros(2, 2, device="meta")])
    statistics.settle(flag)
    metrics = Metrics("meta")
    metrics.add("loss", torch.zeros((), device="meta"), 4)
    metrics.settle(flag)
    with pytest.raises((NotImplementedError, RuntimeError)):
        metrics.flush()


class Reads(TorchDispatchMode):
    """Counts values that leave tensors for Python: on a GPU each waits for all work before it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(keywords or {}))


def test_a_flag_is_read_once_and_eight_steps_later():
    flags = Flags()
    for step in range(20):
        with Reads() as reads:
            flags.send(step, torch.tensor(float(step == 5)))
            assert reads.count == 0, "a flag that is sent is not read"
            found = flags.arrived()
        assert reads.count == len(found)
        assert found == ([(step - LAG, step - LAG == 5)] if step >= LAG else [])
    with Reads() as reads:
        assert flags.arrived(0) == [(step, False) for step in range(12, 20)]
        assert flags.arrived(0) == []
    assert reads.count == LAG


def test_a_step_of_training_reads_nothing_of_its_own(one_rank):
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    trainer = Trainer(module, "adam", {"lr": 0.1}, one_rank, micro_batch=4, zero=0)
    skips = Skips(None, 4, allowed=1)
    for step in range(2 * LAG):
        with Reads() as reads:
            trainer.backward(trainer.engine(torch.randn(4, 3)).square().mean())
            skips.note(step, trainer.step())
        assert reads.count == (step >= LAG), "but the flag of eight steps ago"


class Event:
    """Stands for CUDA's: remembers how many copies were under way when somebody waited for it."""

    made: list[Event] = []

    def __init__(self):
        self.made.append(self)

    def record(self):
        self.behind = None

    def synchronize(self):
        self.behind = len(self.made) - 1 - self.made.index(self)


def test_the_host_waits_only_for_a_copy_that_was_started_eight_steps_ago(monkeypatch):
    monkeypatch.setattr(Event, "made", [])
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory, **options: torch.zeros(*size, **options))
    flags = Flags(Event)
    for step in range(20):
        flag = torch.zeros(())
        flag = mock.Mock(wraps=flag, is_cuda=True, dtype=flag.dtype, detach=lambda flag=flag: flag)
        flags.send(step, flag)
        flags.arrived()
    assert [event.behind for event in Event.made] == [LAG] * (20 - LAG) + [None] * LAG


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=thorough)])
def test_too_many_end_the_run_within_eight_steps_though_nothing_is_logged_or_saved(world, launcher, tmp_path):
    options = ("train.steps=40", "log.every=1000", "log.save_every=1000", "run.skips=2")
    said = launcher.run(tmp_path, *options, world=world, fault="loss:rank=0:step=3-:nan", code=3)
    assert "(steps 3, 4, 5)" in said, "and not those of the end"
    assert said.count("the update is left out on all ranks") == 3
    assert [line["step"] for line in skipped(tmp_path)] == [3, 4, 5]
    assert steps_of(tmp_path / "dump") == [5 + 1 + LAG]
    assert steps_of(tmp_path) == []


def test_skips_between_two_log_lines_are_counted_in_the_second_although_a_save_saw_them(launcher, tmp_path):
    launcher.run(tmp_path, "log.every=6", fault="loss:step=2:nan,loss:step=8:nan")
    assert [line.get("skipped") for line in lines_of(tmp_path / "metrics.jsonl")] == [1.0, 1.0]


def test_one_number_that_is_not_finite_among_all_gradients_is_seen():
    gradients = [torch.ones(4), torch.ones(3, 3)]
    assert not_finite(gradients) == 0
    for value in (math.nan, math.inf, -math.inf):
        gradients[1][2, 1] = value
        assert not_finite(gradients) == 1


def test_means_forget_a_skipped_step_whatever_it_added():
    metrics = Metrics("cpu")
    for value, flag in ((1.0, 0.0), (math.nan, 1.0), (3.0, 0.0)):
        metrics.add("loss", torch.tensor(value), 2)
        metrics.add_by("by", torch.tensor([0, 1]), torch.tensor([value, value]), 3)
        metrics.settle(torch.tensor(flag))
    assert metrics.flush() == {"loss": 2.0, "by": [2.0, 2.0, None]}


def test_only_skips_within_the_window_count_towards_the_end():
    skips = Skips(None, 8, allowed=1)
    for step in range(300):
        skips.note(step, torch.tensor(float(step in (10, 150, 290))))
        skips.read()
        assert not skips.too_many()
    assert skips.total == 3
    skips.note(300, torch.tensor(1.0))
    assert skips.read() == [300]
    assert skips.too_many()
    assert skips.recent == [290, 300]
