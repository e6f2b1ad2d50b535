"""Machines as they are: no network, odd clocks and places, two runs in one directory, readers that die."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest
from image_sets import noisy_folder
from launching import Rank, steps_of
from test_checkpoint import write
from training import logged

from engine import verify
from engine.checkpoint import verify as verified
from engine.config_file import load
from engine.data.broken import Quarantine
from engine.data.sources import open_source
from engine.errors import CheckpointError, UsageError
from engine.faults import parse
from engine.processes import status_of
from engine.verify import different, state, state_hash

pytestmark = [pytest.mark.faults]
thorough = pytest.mark.thorough


OFFLINE = """
import socket
real = socket.socket.connect
def connect(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
        raise AssertionError(f"tried to reach {address}")
    return real(self, address)
socket.socket.connect = connect
"""
CLOCK = """
import time
real, calls = time.time, 0
def jumping():
    global calls
    calls += 1
    return real() - (86400 if calls % 2 else 0)
time.time = jumping
"""
NOWHERE = """
import os, tempfile
from engine import loop
place = tempfile.mkdtemp()
os.chdir(place)
build = loop.build_loader
def late(*arguments):
    os.rmdir(place)
    return build(*arguments)
loop.build_loader = late
"""
PROXY = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://192.0.2.1:9")
SURROUNDINGS = {
    "all at once": (
        OFFLINE + CLOCK + NOWHERE,
        PROXY | {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "HOME": "/nonexistent"},
    ),
    "no network": (OFFLINE, PROXY),
    "a clock that jumps": (CLOCK, {}),
    "no working directory": (NOWHERE, {}),
    "no home": ("import os; os.environ.pop('HOME', None), os.environ.pop('USER', None)", {}),
    "plain C": ("", {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "TZ": "Asia/Kathmandu"}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "all at once" else thorough) for name in SURROUNDINGS]
)
def test_training_does_not_care_where_it_runs(name, launcher, straight, tmp_path):
    before, env = SURROUNDINGS[name]
    run = tmp_path / "a run of 日本 — with spaces"
    launcher.run(run, before=before, env=env)
    assert state_hash(state(run)) == straight
    assert all(0 < rate < 1e6 for rate in logged(run, "images_per_second")), "durations are of no wall clock"


def test_a_working_directory_that_is_gone_before_the_start_is_one_line(launcher, tmp_path):
    before = "import os, tempfile\nplace = tempfile.mkdtemp()\nos.chdir(place), os.rmdir(place)"
    said = launcher.run(tmp_path, before=before, code=2)
    assert said.strip() == ("error: the working directory does not exist any more; change to one that does")


def in_state(process: Rank, letter: str) -> None:
    """Wait until the system says that of a process: T stopped, Z dead and not buried."""
    until = time.monotonic() + 60
    while status_of(process.pid)[0] != letter:
        assert time.monotonic() < until, process.output()
        time.sleep(0.02)


def stopped(process: Rank) -> None:
    in_state(process, "T")


def test_a_second_run_in_a_directory_is_refused_while_the_first_trains_on(launcher, straight, tmp_path):
    (first,) = launcher.start(tmp_path, fault="step:step=2:stop")
    stopped(first)
    said = launcher.run(tmp_path, code=2)
    assert f"is in use by process {first.pid} on" in said
    first.send(signal.SIGCONT)
    assert first.wait() == 0, first.output()
    assert state_hash(state(tmp_path)) == straight


def test_the_lock_of_a_process_that_nobody_buried_is_taken_over(launcher, tmp_path):
    (first,) = launcher.start(tmp_path, fault="step:step=2:kill")
    lock = tmp_path / "run.lock"
    in_state(first, "Z")
    assert json.loads(lock.read_text())["pid"] == first.pid
    launcher.run(tmp_path, "train.steps=2")
    assert first.wait() == -signal.SIGKILL
    assert not lock.exists()


def test_the_lock_of_another_host_is_refused_and_removing_it_is_the_way(launcher, tmp_path):
    lock = tmp_path / "run.lock"
    lock.write_text(json.dumps({"pid": 1, "host": "another", "started": "1"}))
    said = launcher.run(tmp_path, code=2)
    assert "is in use by process 1 on another" in said
    assert f"remove {lock} only if you are sure that it is gone" in said
    lock.unlink()
    launcher.run(tmp_path, "train.steps=2")


@thorough
def test_a_run_whose_lock_is_removed_under_it_writes_nothing_beside_the_run_that_took_it(
    launcher, straight, tmp_path
):
    (robbed,) = launcher.start(tmp_path, fault="step:step=3:stop")
    stopped(robbed)
    lock = tmp_path / "run.lock"
    lock.unlink()
    (robber,) = launcher.start(tmp_path, "log.save_every=100", fault="step:step=2:stop")
    stopped(robber)
    robbed.send(signal.SIGCONT)
    assert robbed.wait() == 2, robbed.output()
    assert f"is held by process {robber.pid} on" in robbed.output()
    assert "step 4 is not saved, this run ends" in robbed.output()
    assert json.loads(lock.read_text())["pid"] == robber.pid, "the lock of another is not removed"
    assert steps_of(tmp_path) == []
    robber.send(signal.SIGCONT)
    assert robber.wait() == 0, robber.output()
    assert state_hash(state(tmp_path)) == straight


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twenty images of 24 px."""
    return noisy_folder(tmp_path_factory.mktemp("images"))


def test_a_list_of_broken_images_that_was_cut_off_is_read_as_far_as_it_goes(folder, tmp_path):
    source = open_source("folder", str(folder), 16, 0, 1)
    listed = tmp_path / "quarantine.jsonl"
    Quarantine(source, 5, listed).add(3, "cut off")
    with open(listed, "a") as file:
        file.write('{"index": 4, "it')
    assert list(Quarantine(source, 5, listed).faults) == [3]


def test_a_state_nested_beyond_reason_is_damage_and_a_config_a_usage_error(tmp_path):
    manifest = write(tmp_path, 1) / "manifest.json"
    manifest.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="manifest.json is damaged"):
        verified(manifest.parent)
    (tmp_path / "deep.json").write_text('{"data": ' + "[" * 100_000)
    with pytest.raises(UsageError, match=r"deep\.json"):
        load(tmp_path / "deep.json")


def test_a_checkpoint_is_data_whatever_its_files_hold(tmp_path):
    path = write(tmp_path, 1)
    (path / "model.safetensors").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(CheckpointError, match=r"model\.safetensors has"):
        verified(path)
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    "text", ["nonsense", "loss:nan:rank=1", "loss:rank=x:nan", ":kill", "loss:step=4:nann"]
)
def test_a_misspelt_fault_is_a_usage_error_and_no_fault(text):
    with pytest.raises(UsageError, match="is not POINT"):
        parse(text)


def test_a_fault_is_for_its_point_rank_and_steps(monkeypatch):
    (fault,) = parse("loss:rank=1:step=5-7:scale=1e3")
    monkeypatch.setenv("RANK", "1")
    assert [step for step in range(10) if fault.applies("loss", step)] == [5, 6, 7]
    assert not fault.applies("gradient", 5)
    assert not fault.applies("loss", None)
    monkeypatch.setenv("RANK", "0")
    assert not fault.applies("loss", 5)
    assert parse("save.begun:kill")[0].applies("save.begun", None)
    assert parse("loss:step=5-:nan")[0].applies("loss", 10**9)


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=thorough)])
def test_verify_resume_proves_it_with_the_config_at_hand(world, launcher, tmp_path, capsys, monkeypatch):
    def train(arguments, world, fault):  # what engine.verify does in a process that has loaded torch
        place = next(Path(item[8:]) for item in arguments if item.startswith("run.dir="))
        launcher.run(place, *arguments[2:], world=world, fault=fault)

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if world == 1:
        monkeypatch.setattr(verify, "_train", train)
    digest = verify.verify_resume(launcher.config, ["train.batch_size=8"], 4, 2, world, tmp_path)
    assert f"all 554 tensors of step 4 are bit-identical to the straight run's; sha256 {digest}" in (
        capsys.readouterr().out
    )
    assert list(tmp_path.iterdir()) == [], "its runs are removed"


def test_verify_resume_refuses_a_stop_that_is_none_and_a_config_that_is_wrong(launcher, tmp_path):
    with pytest.raises(UsageError, match="give a step between 1 and 3"):
        verify.verify_resume(launcher.config, [], 4, 4, 1)
    with pytest.raises(UsageError, match=r"train\.stpes"):
        verify.verify_resume(launcher.config, ["train.stpes=3"], 4, 2, 1)


def test_states_are_compared_by_every_bit(launcher, straight, tmp_path):
    launcher.run(tmp_path, "train.steps=2")
    one = state(tmp_path)
    other = {name: tensor.clone() for name, tensor in one.items()}
    assert different(one, other) == {}
    name = "model:encoder.conv1.weight"
    other[name].view(-1)[0] += 0.5
    assert different(one, other) == {name: pytest.approx(0.5, abs=1e-6)}
    assert state_hash(one) != state_hash(other)
    assert sys.byteorder == "little", "hashes are of little-endian machines"
