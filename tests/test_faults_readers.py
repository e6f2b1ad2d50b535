"""Runs whose images other processes read: readers that die, stop, or are signalled with the run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from image_sets import noisy_folder
from launching import Launcher, Rank, steps_of

from engine.processes import is_alive
from engine.verify import state, state_hash

pytestmark = [pytest.mark.faults]
thorough = pytest.mark.thorough
# A session of its own, as a launcher gives it one: a signal to its group reaches it and its readers alone.
OWN_GROUP = "import os\nfrom engine.data import pipeline\nos.setsid()\npipeline.CLOSE_SECONDS = 2.0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twenty images of 24 px."""
    return noisy_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def options(folder) -> tuple[str, ...]:
    return ("data.source=folder", f"data.path={folder}", "data.workers=2", "data.resident=off")


@pytest.fixture(scope="module")
def straight_from_readers(launcher: Launcher, options, tmp_path_factory) -> str:
    """The hash of the end, read by this process itself and without a stop."""
    run = tmp_path_factory.mktemp("straight")
    launcher.run(run, *options, "data.workers=0")
    return state_hash(state(run))


def readers(process: Rank) -> list[int]:
    """The processes that read its images."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [pid for pid in map(int, listed) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def gone(pids: list[int], seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.1)
    return not any(map(is_alive, pids))


@pytest.fixture
def training(launcher, options, tmp_path):
    """A run under way that takes its time, and its readers."""

    def training(*more: str, fault: str = "step:step=2-:sleep=0.3") -> tuple[Rank, list[int]]:
        (process,) = launcher.start(tmp_path, *options, *more, fault=fault, before=OWN_GROUP)
        process.wait_for("step 1/")
        return process, readers(process)

    return training


def test_a_reader_that_is_killed_ends_the_run_with_the_set_it_read(training, folder):
    process, (first, second) = training("run.timeout=20", "train.steps=400")
    os.kill(first, signal.SIGKILL)
    assert process.wait() == 5, process.output()
    assert f"folder {folder}" in process.output()
    assert "Traceback" not in process.output()
    assert gone([first, second])


@thorough
def test_readers_that_hang_end_the_run_in_time_and_are_no_more(training):
    process, pids = training("run.timeout=6", "train.steps=400")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    assert process.wait() == 6, process.output()
    assert "has not moved for 6 s in step" in process.output()
    assert "not in a collective but at engine/" in process.output()
    assert gone(pids)


@thorough
def test_readers_that_hang_do_not_keep_a_run_from_saving(
    training, launcher, options, straight_from_readers, tmp_path
):
    process, pids = training()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1)
    process.send(signal.SIGTERM)
    assert process.wait(60) == 0, process.output()
    assert 0 < steps_of(tmp_path)[-1] < 12
    assert gone(pids)
    launcher.run(tmp_path, *options)
    assert state_hash(state(tmp_path)) == straight_from_readers


@thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_a_run_and_its_readers_at_once_is_saved_and_forgotten(
    number, training, launcher, options, straight_from_readers, tmp_path
):
    process, pids = training("run.stop_code=75")
    os.killpg(process.pid, number)
    assert process.wait(60) == 75, process.output()
    assert "saved; run the same command to go on" in process.output()
    assert "Traceback" not in process.output()
    assert 0 < steps_of(tmp_path)[-1] < 12
    assert gone(pids)
    launcher.run(tmp_path, *options)
    assert state_hash(state(tmp_path)) == straight_from_readers
