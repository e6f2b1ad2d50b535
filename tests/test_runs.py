"""``diffsiam runs``: listing, comparing, reproducing, pruning, on runs of seconds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from training import TINY, finish, start, start_python, write_config
from typer.testing import CliRunner

from engine.checkpoint import latest, verify
from engine.cli import app
from engine.config_file import from_dict
from engine.errors import CheckpointError, UsageError
from engine.history.pruning import superfluous
from engine.history.reading import open_run
from engine.history.reproducing import demand_same_inputs, differing_tensors, largest_difference


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a run, and one in a sweep that differs in seed and learning rate."""
    folder = tmp_path_factory.mktemp("runs")
    config = str(write_config(folder / "tiny.json", TINY))
    second = ["seed=1", "optimizer.lr=0.01", 'notes=["other"]']
    finish(
        start(["--config", config, f"run.dir={folder / 'first'}"]),
        start(["--config", config, f"run.dir={folder / 'sweep' / 'second'}", *second]),
    )
    return folder


@pytest.fixture
def copied(runs, tmp_path) -> Path:
    return Path(shutil.copytree(runs / "first", tmp_path / "first"))


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["runs", *map(str, arguments)])


def test_the_list_finds_runs_at_any_depth_with_state_and_last_loss(runs):
    first, second = json.loads(invoke("list", runs, "--json").stdout)
    assert (first["run"], second["run"]) == ("first", "sweep/second")
    assert (first["steps"], first["status"], first["saved"]) == ("6/6", "finished", 2)
    assert second["seed"] == 1
    assert first["loss"] == open_run(runs / "first").metrics[6]["loss"]
    shown = invoke("list", runs).stdout
    assert all(word in shown for word in ("sweep/second", "diffsiam", "rooms 16 px", "finished"))


def test_a_run_is_running_while_a_live_process_holds_it_and_stopped_where_it_did_not_end(copied):
    run = copied
    shutil.rmtree(run / "checkpoints" / "step_00000006")
    assert open_run(run).status == "stopped"
    started = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]
    lock = {"pid": os.getpid(), "host": os.uname().nodename, "started": started}
    (run / "run.lock").write_text(json.dumps(lock))
    assert open_run(run).status == "running"


def test_a_comparison_names_the_keys_that_differ_and_the_numbers_at_the_last_common_step(runs):
    compared = json.loads(invoke("compare", runs / "first", runs / "sweep" / "second", "--json").stdout)
    assert compared["config"] == {"seed": [0, 1], "optimizer.lr": [0.0001, 0.01]}
    assert list(compared["started from"]) == ["data fingerprint"]
    losses = [open_run(runs / name).metrics[6]["loss"] for name in ("first", "sweep/second")]
    assert compared["metrics at step 6"]["loss"] == losses
    shown = invoke("compare", runs / "first", runs / "sweep" / "second").stdout
    assert f"{losses[1] / losses[0] - 1:+.1%}" in shown


def test_equal_runs_have_no_difference(runs, copied):
    shown = invoke("compare", runs / "first", copied).stdout
    assert "config: no difference" in shown
    assert "started from: no difference" in shown


def test_reproducing_gives_the_same_tensors_to_the_bit(runs, tmp_path):
    """In a process of its own, as a user would: training ends its process group."""
    command = ["-m", "engine.cli", "runs", "reproduce", str(runs / "first"), "--out", str(tmp_path / "again")]
    (output,) = finish(start_python(command))
    assert "reproduced: step 6 is the same to the bit" in output
    old, new = open_run(runs / "first"), open_run(tmp_path / "again")
    assert (largest_difference(old, new) or (0, "", 0.0))[2] == 0


def test_preparing_writes_the_config_and_trains_nothing(runs, tmp_path):
    result = invoke("reproduce", runs / "first", "--out", tmp_path / "again", "--prepare")
    assert result.exit_code == 0, result.stderr
    assert f"--config {tmp_path / 'again' / 'config.json'}" in result.stdout.replace("\n", "")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    recorded = json.loads((runs / "first" / "config.json").read_text())
    assert written.pop("run") == recorded.pop("run") | {"dir": str(tmp_path / "again")}
    assert written == recorded


def test_other_images_are_no_reproduction(runs):
    found = latest(runs / "first")
    assert found is not None
    config = from_dict(found.state["config"])
    demand_same_inputs(config, found)
    other = from_dict({**found.state["config"], "seed": 5})
    with pytest.raises(UsageError, match="not the images of"):
        demand_same_inputs(other, found)


def test_a_difference_of_weights_and_metrics_is_found(runs):
    first, second = runs / "first", runs / "sweep" / "second"
    one, two = (verify(path / "checkpoints" / "step_00000006") for path in (first, second))
    assert differing_tensors(one, one) == {}
    assert len(differing_tensors(one, two)) > 10
    step, name, change = largest_difference(open_run(first), open_run(second)) or (0, "", 0.0)
    assert step > 0
    assert name not in ("images_per_second", "data_wait")
    assert change > 0.01


def test_pruning_says_what_would_go_and_removes_it_only_when_told(copied):
    old, new = sorted((copied / "checkpoints").iterdir())
    (copied / "checkpoints" / ".tmp_1_step_00000009").mkdir()
    (copied / "features").mkdir()
    said = invoke("prune", copied).stdout
    assert "would remove" in said
    assert old.exists()
    said = invoke("prune", copied, "--yes").stdout
    assert said.count("removed") == 2
    assert list((copied / "checkpoints").iterdir()) == [new]
    assert (copied / "features").exists()
    invoke("prune", copied, "--yes", "--features")
    assert not (copied / "features").exists()
    assert verify(new).step == 6


def test_pruning_keeps_the_newest_that_is_whole_and_nothing_if_none_is(copied):
    old, new = sorted((copied / "checkpoints").iterdir())
    (new / "model.safetensors").write_bytes(b"cut off")
    assert superfluous(open_run(copied), 1, False) == [new]
    (old / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="none is removed"):
        superfluous(open_run(copied), 1, False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "nowhere"), "no such folder"),
        (("compare", "nowhere", "nowhere"), "no run there"),
        (("compare", "nowhere"), "two runs or more"),
        (("reproduce", "nowhere"), "no checkpoint there"),
        (("prune", "nowhere"), "no run there"),
    ],
)
def test_what_is_no_run_is_one_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
