"""What can happen to a run while it saves, and to its checkpoints between two runs."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from launching import Launcher, steps_of
from test_checkpoint import flip, run_python, write

from engine.checkpoint import latest, verify
from engine.errors import CheckpointError
from engine.verify import state, state_hash

pytestmark = [pytest.mark.faults]
thorough = pytest.mark.thorough
PHASES = ["begun", "model", "optimizer", "synced", "manifest", "complete", "renamed", "durable", "pruned"]
CORE = ("manifest", "renamed")


@pytest.fixture
def half(launcher: Launcher, tmp_path_factory) -> Path:
    """A copy of the toy task as it is after step 8: checkpoints 4 and 8."""
    if not (kept := launcher.folder / "half").exists():
        launcher.run(kept, fault="step:step=9:kill", code=-signal.SIGKILL)
        assert steps_of(kept) == [4, 8]
    return shutil.copytree(kept, tmp_path_factory.mktemp("half") / "run")


@pytest.mark.parametrize(
    "phase", [pytest.param(phase, marks=() if phase in CORE else thorough) for phase in PHASES]
)
def test_a_run_killed_in_any_phase_of_a_save_ends_as_if_nothing_had_happened(
    phase, launcher, straight, tmp_path
):
    launcher.run(tmp_path, "log.save_every=6", fault=f"save.{phase}:kill", code=-signal.SIGKILL)
    found = latest(tmp_path)
    assert (found.step if found else 0) in (0, 6)
    launcher.run(tmp_path, "log.save_every=6")
    assert state_hash(state(tmp_path)) == straight
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))


SWEEP = """
import os, random, signal, sys, time
from pathlib import Path
from tests.test_checkpoint import write
draws = random.Random(7)
for number in range(40):
    run = Path(sys.argv[1]) / str(number)
    write(run, 1)
    if not (child := os.fork()):
        step = 1
        while True:
            step += 1
            write(run, step)
    time.sleep(draws.uniform(0.001, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@thorough
def test_forty_kills_at_random_moments_never_leave_a_partial_state(tmp_path):
    done = run_python(SWEEP, tmp_path)
    assert done.returncode == 0, done.stderr
    reached = set()
    for number in range(40):
        found = latest(tmp_path / str(number))
        assert torch.equal(found.load("model")["w"], torch.full((40,), float(found.step)))
        assert found.state["note"] == f"at {found.step}"
        reached.add(found.step)
    assert len(reached) > 1, "the kills did not fall into different saves"


@pytest.mark.parametrize("size", [0, 1, "half", "less one"])
def test_a_torn_file_falls_back_to_the_one_before(size, tmp_path, capsys):
    write(tmp_path, 1)
    file = write(tmp_path, 2) / "model.safetensors"
    whole = file.stat().st_size
    os.truncate(file, {"half": whole // 2, "less one": whole - 1}.get(size, size))
    assert latest(tmp_path).step == 1
    assert "model.safetensors has" in capsys.readouterr().err


def test_a_run_whose_newest_checkpoint_is_damaged_resumes_from_the_next_and_ends_the_same(
    launcher, half, straight
):
    flip(half / "checkpoints" / "step_00000008" / "optimizer.safetensors")
    said = launcher.run(half)
    assert "checkpoint skipped" in said
    assert "step_00000004" in said
    assert state_hash(state(half)) == straight


@pytest.mark.parametrize("harm", ["missing", "empty", "twice", "of another run", "another config"])
def test_a_manifest_that_is_not_that_of_the_files_is_refused_with_the_reason(harm, tmp_path):
    path, other = write(tmp_path / "a", 3), write(tmp_path / "b", 3, config_hash="other")
    manifest = path / "manifest.json"
    values = json.loads(manifest.read_text())
    flip(other / "model.safetensors")
    if harm == "missing":
        manifest.unlink()
    elif harm == "empty":
        manifest.write_text("{}")
    elif harm == "twice":
        manifest.write_text(manifest.read_text() * 2)
    elif harm == "of another run":
        (other / "manifest.json").write_text(manifest.read_text())
        path = other
    else:
        manifest.write_text(json.dumps({**values, "config_hash": "other"}))
    with pytest.raises(CheckpointError, match=r"is missing|is damaged|is corrupt"):
        verify(path)


def test_nothing_valid_left_is_exit_code_4_with_every_reason_and_no_fresh_start(launcher, half):
    for step in (4, 8):
        os.truncate(half / "checkpoints" / f"step_{step:08d}" / "state.json", 5)
    said = launcher.run(half, code=4)
    assert said.count("state.json has 5 bytes") >= 3
    assert "move them away to start this run from the beginning" in said
    assert steps_of(half) == [4, 8]


FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from engine import checkpoint
real, count = checkpoint._write, 0
def full(*arguments):
    global count
    count += 1
    if count in {which}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        return real(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpoint._write = full
"""


def test_a_disk_that_is_full_for_one_save_costs_a_warning_and_nothing_else(launcher, straight, tmp_path):
    said = launcher.run(tmp_path, before=FULL.format(which="(2,)"))
    assert "checkpoint of step 8 was not saved" in said
    assert "training goes on (1 of 3 failures" in said
    assert steps_of(tmp_path) == [4, 12]
    assert state_hash(state(tmp_path)) == straight
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))


def test_a_disk_that_stays_full_ends_the_run_with_code_4_and_the_last_good_checkpoint(launcher, tmp_path):
    said = launcher.run(tmp_path, "log.save_every=2", before=FULL.format(which="range(2, 99)"), code=4)
    assert said.count("training goes on") == 2
    assert "error: checkpoint of step 8 was not saved" in said
    assert latest(tmp_path).step == 2


@pytest.mark.thorough
def test_two_ranks_leave_together_when_the_last_save_fails(launcher, tmp_path):
    said = launcher.run(tmp_path, "log.save_every=99", before=FULL.format(which="(1,)"), code=4, world=2)
    assert "step 12 was not saved" in said
    assert "rank 0 could not save step 12" in said


def test_a_log_that_cannot_be_written_is_said_once_and_training_goes_on(launcher, straight, tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    before = "from engine.metrics import JsonLines\nJsonLines._rewind = lambda self, step: None"
    said = launcher.run(tmp_path, before=before)
    assert said.count("metrics are not written, training goes on") == 1
    assert "No space left" in said
    assert state_hash(state(tmp_path)) == straight


def test_a_directory_that_vanishes_is_made_again_by_the_next_save(launcher, straight, tmp_path):
    run = tmp_path / "run"
    before = (
        "import shutil, engine.faults as f\nreal = f.point\n"
        f"f.point = lambda n, step=None: shutil.rmtree({str(run)!r}) if (n, step) == ('step', 6) "
        "else real(n, step)"
    )
    launcher.run(run, before=before)
    assert latest(run).step == 12
    assert state_hash(state(run)) == straight


def test_a_file_in_place_of_the_run_directory_is_refused(launcher, tmp_path):
    (tmp_path / "run").write_text("")
    assert "cannot write to the run directory" in launcher.run(tmp_path / "run", code=2)


def copies_then_dies(files: int) -> str:
    """A rename that is a copy, as object stores have it, cut off after some files of the second save."""
    return f"""
import os, shutil, signal
from pathlib import Path
real = os.replace
def copying(old, new):
    if not Path(old).is_dir() or "step_00000008" not in str(new):
        return real(old, new)
    os.mkdir(new)
    for number, file in enumerate(sorted(Path(old).iterdir())):
        if number == {files}:
            os.kill(os.getpid(), signal.SIGKILL)
        shutil.copy(file, new)
    shutil.rmtree(old)
os.replace = copying
"""


@pytest.mark.parametrize("files", [pytest.param(0, marks=thorough), 2, pytest.param(4, marks=thorough)])
def test_a_rename_that_is_a_copy_and_cut_off_is_passed_over(files, launcher, straight, tmp_path):
    launcher.run(tmp_path, before=copies_then_dies(files), code=-signal.SIGKILL)
    assert steps_of(tmp_path) == [4, 8]
    assert latest(tmp_path).step == 4
    launcher.run(tmp_path)
    assert state_hash(state(tmp_path)) == straight


def test_what_was_cut_off_does_not_count_among_the_checkpoints_that_are_kept(tmp_path):
    write(tmp_path, 1)
    os.truncate(write(tmp_path, 2) / "model.safetensors", 9)
    write(tmp_path, 3)
    assert steps_of(tmp_path) == [1, 3]


def test_training_goes_on_when_pruning_fails(launcher, straight, tmp_path):
    before = (
        "import shutil\nfrom engine import checkpoint\ndef refuse(path):\n"
        "    if path.exists(): raise PermissionError('read-only')\ncheckpoint._discard = refuse"
    )
    said = launcher.run(tmp_path, before=before)
    assert "old checkpoint" in said
    assert steps_of(tmp_path) == [4, 8, 12]
    assert state_hash(state(tmp_path)) == straight


def test_random_damage_to_two_of_three_checkpoints_leaves_the_third(tmp_path):
    draws = random.Random(3)
    for step in (1, 2, 3):
        write(tmp_path, step, keep=3)
    for step in (2, 3):
        flip(
            tmp_path / "checkpoints" / f"step_{step:08d}" / draws.choice(["model.safetensors", "state.json"])
        )
    assert latest(tmp_path).step == 1
