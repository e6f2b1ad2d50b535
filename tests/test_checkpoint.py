"""Checkpoints survive what happens to disks and processes."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import checkpoint
from engine.checkpoint import latest, remove_stale, save, verify
from engine.errors import CheckpointError, UsageError
from engine.runlock import run_lock

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


def write(run: Path, step: int, keep: int = 2, config_hash: str = "c0ffee") -> Path:
    tensors = {"model": {"w": torch.full((40,), float(step))}, "optimizer": {"m": torch.arange(8) + step}}
    return save(run, step, tensors, {"seed": 3, "note": f"at {step}"}, config_hash, keep)


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_was_saved_is_loaded(tmp_path):
    path = write(tmp_path, 1000)
    found = latest(tmp_path)
    assert path == found.path == tmp_path / "checkpoints" / "step_00001000"
    assert (found.step, found.config_hash, found.state) == (1000, "c0ffee", {"seed": 3, "note": "at 1000"})
    assert torch.equal(found.load("model")["w"], torch.full((40,), 1000.0))
    assert found.load("optimizer")["m"].dtype == torch.int64
    with pytest.raises(CheckpointError, match=r"no 'ema' \(it holds: model, optimizer\)"):
        found.load("ema")


def test_views_shared_and_channels_last_tensors_keep_their_values(tmp_path):
    flat = torch.arange(24.0)
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    named = {
        "head": flat[:12].view(3, 4),
        "tail": flat[12:],
        "tied": flat[:12].view(3, 4),
        "turned": flat[:12].view(3, 4).t(),
        "image": image,
        "scalar": torch.tensor(7, dtype=torch.int64),
        "half": torch.randn(3).bfloat16(),
        "empty": torch.zeros(0, 4),
    }
    save(tmp_path, 1, {"model": named}, {}, "h")
    loaded = latest(tmp_path).load("model")
    assert loaded.keys() == named.keys()
    assert all(
        torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype
        for name, tensor in named.items()
    )


def test_a_run_without_checkpoints_starts_from_nothing(tmp_path):
    assert latest(tmp_path / "never") is None
    (tmp_path / "checkpoints").mkdir()
    assert latest(tmp_path) is None


def test_the_newest_of_those_kept_is_found_and_older_ones_are_gone(tmp_path):
    for step in (1, 2, 3, 4):
        write(tmp_path, step, keep=3)
    assert steps(tmp_path) == ["step_00000002", "step_00000003", "step_00000004"]
    assert latest(tmp_path).step == 4
    with pytest.raises(ValueError, match="at least 2"):
        write(tmp_path, 5, keep=1)


def cut(keep):
    return lambda file: os.truncate(file, int(file.stat().st_size * keep))


def flip(file, at=0.5):
    content = bytearray(file.read_bytes())
    content[int((len(content) - 1) * at)] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "harm",
    [cut(0), cut(0.5), cut(0.99), flip, os.remove],
    ids=["empty", "half", "shortened", "flipped", "missing"],
)
def test_any_damage_to_the_newest_is_named_and_the_next_is_taken(tmp_path, capsys, name, harm):
    write(tmp_path, 1)
    harm(write(tmp_path, 2) / name)
    assert latest(tmp_path).step == 1
    warning = capsys.readouterr().err
    assert warning.startswith("warning: checkpoint skipped:")
    assert warning.count("\n") == 1
    assert name in warning
    assert "step_00000002" in warning


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_bit_anywhere_loads_as_something_else(tmp_path, name):
    good = write(tmp_path, 1)
    before = verify(good)
    for at in torch.linspace(0, 1, 40).tolist():
        bad = tmp_path / "bad" / good.name
        shutil.copytree(good, bad)
        flip(bad / name, at)
        try:
            found = verify(bad)  # a bit of the manifest's white space may flip harmlessly
            assert found == dataclasses.replace(before, path=bad)
            assert name == "manifest.json"
        except CheckpointError:
            pass
        shutil.rmtree(bad)


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_with_every_reason(tmp_path):
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    os.remove(older / "manifest.json")
    flip(newer / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is corrupt.*manifest\.json is missing.*move them away"
    ):
        latest(tmp_path)


def test_a_checkpoint_under_another_step_or_of_another_format_is_refused(tmp_path):
    path = write(tmp_path, 1)
    moved = path.rename(path.with_name("step_00000009"))
    with pytest.raises(CheckpointError, match="manifest is that of step 1"):
        verify(moved)
    manifest = json.loads((moved / "manifest.json").read_text())
    (moved / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(CheckpointError, match="written in format 2, this version reads format 1"):
        verify(moved)


def test_a_damaged_checkpoint_of_the_same_step_is_replaced_and_a_valid_one_left_alone(tmp_path):
    flip(write(tmp_path, 5) / "model.safetensors")
    written = write(tmp_path, 5).stat().st_ino
    assert latest(tmp_path).step == 5
    assert write(tmp_path, 5).stat().st_ino == written
    assert write(tmp_path, 5, config_hash="other").stat().st_ino != written
    assert steps(tmp_path) == ["step_00000005"]


def test_a_damaged_later_checkpoint_does_not_push_out_a_good_one(tmp_path):
    write(tmp_path, 1)
    os.remove(write(tmp_path, 9) / "manifest.json")
    write(tmp_path, 2)
    os.remove(tmp_path / "checkpoints" / "step_00000002" / "state.json")
    assert latest(tmp_path).step == 1


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from engine import checkpoint
from tests.test_checkpoint import write

def dying(function):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

for moment in range(1, 15):
    run, calls = Path(sys.argv[1]) / str(moment), 0
    write(run, 1)
    write(run, 2)
    if not (child := os.fork()):
        checkpoint.write_tensors = dying(checkpoint.write_tensors)
        os.fsync, os.replace, shutil.rmtree = dying(os.fsync), dying(os.replace), dying(shutil.rmtree)
        write(run, 3)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.thorough
def test_a_process_killed_at_any_moment_of_a_save_leaves_the_old_or_the_new_checkpoint(tmp_path):
    # Killed before calls 1-2 (write tensors), 3-5 (sync files), 6-7 (sync manifest, directory), 8 (rename),
    # 9-10 (sync parents), 11 (clean up), 12-13 (prune); there is no call 14.
    result = run_python(KILLED, tmp_path)
    assert [int(code) for code in result.stdout.split()] == [-signal.SIGKILL] * 13 + [0], result.stderr
    for moment in range(1, 15):
        run = tmp_path / str(moment)
        found = latest(run)
        assert found.step == (3 if moment > 8 else 2)
        assert torch.equal(found.load("model")["w"], torch.full((40,), float(found.step)))
        write(run, 4)
        assert [name for name in steps(run) if name.startswith(".tmp")] == []


def test_the_manifest_comes_last_and_the_rename_after_every_sync(tmp_path, monkeypatch):
    events = []
    real_sync, real_replace = checkpoint._sync, os.replace
    monkeypatch.setattr(checkpoint, "_sync", lambda path: (events.append(path.name), real_sync(path)))
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append("rename"), real_replace(old, new)))
    path = write(tmp_path, 1)
    assert sorted(events[:3]) == sorted(set(FILES) - {"manifest.json"})
    assert events[3] == "manifest.json"
    assert events[4].startswith(".tmp")
    assert events[5:] == ["rename", "checkpoints", tmp_path.name]
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)


def test_a_full_disk_is_one_clear_error_and_costs_nothing_that_was_saved(tmp_path):
    write(tmp_path, 1)
    old_limit, old_handler = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old_limit[1]))
    try:
        with pytest.raises(CheckpointError, match="step 2 was not saved"):
            save(tmp_path, 2, {"model": {"w": torch.zeros(10_000)}}, {}, "h")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert steps(tmp_path) == ["step_00000001"]
    assert latest(tmp_path).step == 1


def test_training_goes_on_when_an_old_checkpoint_cannot_be_removed(tmp_path, monkeypatch, capsys):
    write(tmp_path, 1)
    write(tmp_path, 2)

    def refuse(path):
        raise PermissionError("read-only")

    monkeypatch.setattr(checkpoint, "_discard", lambda path: refuse(path) if path.exists() else None)
    write(tmp_path, 3)
    assert "could not be removed" in capsys.readouterr().err
    assert latest(tmp_path).step == 3


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path):
    parent = tmp_path / "checkpoints"
    gone, alive, mine = (
        parent / f".tmp_{pid}_step_00000001" for pid in (2**22 + 1, os.getppid(), os.getpid())
    )
    for path in (gone, alive, mine):
        path.mkdir(parents=True)
    remove_stale(tmp_path)
    assert [path.exists() for path in (gone, alive, mine)] == [False, True, False]


def test_a_second_run_in_a_directory_is_refused_and_names_the_first(tmp_path):
    with run_lock(tmp_path / "run"):
        other = run_python(
            "import sys\nfrom engine.runlock import run_lock\nwith run_lock(sys.argv[1]): pass",
            tmp_path / "run",
        )
        assert other.returncode != 0
        assert f"in use by process {os.getpid()} on" in other.stderr
        with pytest.raises(UsageError, match="in use"), run_lock(tmp_path / "run"):
            pass
    with run_lock(tmp_path / "run"):
        pass


def test_the_lock_of_a_dead_process_is_taken_over_even_if_its_pid_lives_again(tmp_path):
    died = run_python(
        "import os, sys\nfrom engine.runlock import run_lock\nwith run_lock(sys.argv[1]): os._exit(9)",
        tmp_path,
    )
    lock = tmp_path / "run.lock"
    assert died.returncode == 9
    assert lock.exists()
    with run_lock(tmp_path):
        record = json.loads(lock.read_text())
        assert record["pid"] == os.getpid()
    assert not lock.exists()
    lock.write_text(json.dumps({**record, "pid": os.getppid(), "started": "1"}))
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize(
    "content", ['{"pid": 1, "host": "elsewhere", "started": "1"}', '{"pid"'], ids=["other host", "cut off"]
)
def test_a_lock_that_cannot_be_judged_by_its_pid_is_judged_by_its_heartbeat(tmp_path, content):
    lock = tmp_path / "run.lock"
    lock.write_text(content)
    with pytest.raises(UsageError, match=r"elsewhere|unknown"), run_lock(tmp_path):
        pass
    long_ago = lock.stat().st_mtime - 3600
    os.utime(lock, (long_ago, long_ago))
    with run_lock(tmp_path):
        pass


def test_a_run_directory_that_cannot_be_written_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match="cannot write to the run directory"),
        run_lock(tmp_path / "file" / "run"),
    ):
        pass
