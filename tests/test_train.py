"""Runs of engine/train.py as a user starts them: exact resume, ranks, signals, errors."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training import (
    ROOT,
    TINY,
    differing,
    distance,
    environment,
    finish,
    logged,
    start,
    tensors,
    write_config,
)

# Adam's first steps are signs of gradients: where one is near 0, the order of a sum decides which.
ROUNDING = 2e-3


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """Six steps on one rank, without a stop."""
    directory = tmp_path_factory.mktemp("straight")
    config = write_config(directory / "tiny.json")
    finish(start(["--config", str(config), f"run.dir={directory / 'run'}"]))
    return directory


@pytest.fixture(scope="module")
def run(launcher, straight):
    """Ranks of the same config, forked from a process that has loaded torch: they need not import it."""

    def run(directory: Path, *overrides: str, world: int = 1, code: int = 0) -> str:
        return launcher.run(directory, *overrides, world=world, code=code, config=straight / "tiny.json")

    return run


def test_a_resumed_run_is_bit_identical_to_a_straight_one_and_logging_changes_nothing(
    run, straight, tmp_path
):
    run(tmp_path, "log.gradnorm_every=1", "train.steps=3", "log.every=2")
    assert "3 to 6" in run(tmp_path, "log.gradnorm_every=1")
    assert differing(straight / "run", tmp_path, 6) == []


@pytest.fixture(scope="module")
def two_ranks(run, straight) -> Path:
    """The same six steps on two ranks with ZeRO 1."""
    run(straight / "two_ranks", world=2)
    return straight / "two_ranks"


def test_two_ranks_compute_what_one_rank_computes(straight, two_ranks):
    # Not feature_std: it is the mean over ranks of each rank's own spread, and half a batch spreads less.
    for name in ("loss", "loss_with_g", "loss_frozen", "simsiam"):
        assert logged(two_ranks, name) == pytest.approx(logged(straight / "run", name), abs=1e-4), name


def test_two_ranks_resume_bit_identically_from_their_own_checkpoint(run, two_ranks, tmp_path):
    run(tmp_path, "train.steps=3", world=2)
    run(tmp_path, world=2)
    assert differing(two_ranks, tmp_path, 6) == []


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.thorough), 3])
def test_zero_stages_two_and_three_resume_bit_identically_and_on_one_rank(run, tmp_path, stage):
    options = (f"parallel.zero={stage}", "train.steps=4", "log.save_every=2")
    straight, resumed, one = (tmp_path / name for name in ("straight", "resumed", "one"))
    run(straight, *options, world=2)
    run(resumed, *options, "train.steps=2", world=2)
    shutil.copytree(resumed, one)
    run(resumed, *options, world=2)
    assert differing(straight, resumed, 4) == []
    run(one, *options, "parallel.zero=0")
    assert distance(straight, one, 4) < ROUNDING


@pytest.mark.thorough
def test_sigterm_saves_and_leaves_and_the_run_goes_on_as_if_nothing_had_happened(run, straight, tmp_path):
    arguments = ["--config", str(straight / "tiny.json"), f"run.dir={tmp_path}", "log.save_every=100"]
    process = start([*arguments, "train.steps=100000"])
    metrics = tmp_path / "metrics.jsonl"
    until = time.monotonic() + 120
    while (
        not (metrics.exists() and metrics.read_text().strip())
        and process.poll() is None
        and time.monotonic() < until
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output = finish(process)[0]
    assert "run the same command to go on" in output
    step = max(int(path.name.removeprefix("step_")) for path in (tmp_path / "checkpoints").iterdir())
    reference = tmp_path / "reference"
    for directory in (tmp_path, reference):
        run(directory, "log.save_every=100", f"train.steps={step + 1}")
    assert differing(tmp_path, reference, step + 1) == []


def test_the_deepspeed_launcher_runs_it_on_two_ranks(straight, tmp_path):
    launcher = Path(sys.executable).with_name("deepspeed")
    arguments = ["--config", str(straight / "tiny.json"), f"run.dir={tmp_path}", "train.steps=2"]
    command = [
        str(launcher),
        "--quiet",
        "--num_gpus",
        "2",
        "--master_port",
        "29731",
        "engine/train.py",
        *arguments,
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "2 ranks, ZeRO 1" in done.stdout
    assert tensors(tmp_path, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "configs/quickstart.json", "train.stpes=5"], ["train.stpes", "train.steps"]),
        (["--config", "configs/bedroom.json"], ["data.path", "frozen.weights", "quickstart.json"]),
        (["--config", "configs/nothing.json"], ["nothing.json", "configs/"]),
        (["--config", "configs/quickstart.json", "subsets.n=7"], ["subsets.n", "7"]),
    ],
)
def test_bad_input_ends_at_once_in_one_line_with_exit_code_two(arguments, said):
    began = time.monotonic()
    process = start(arguments)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert time.monotonic() - began < 5
    assert len(output.strip().splitlines()) == 1
    assert "Traceback" not in output
    for words in said:
        assert words in output


def test_a_run_refuses_to_go_on_with_another_model(run, straight):
    assert "encoder.dim: 64 -> 128" in run(straight / "run", "encoder.dim=128", code=2)


def test_a_pretrained_diffusion_model_becomes_the_frozen_model_of_a_run(launcher, run, tmp_path):
    pretraining = {key: value for key, value in TINY.items() if key in ("data", "train", "log")}
    architecture = {key: value for key, value in TINY["frozen"].items() if key != "weights"}
    values = pretraining | {"task": "diffusion", "frozen": architecture}
    config = write_config(tmp_path / "dm.json", values)
    launcher.run(tmp_path / "dm", "train.steps=2", "log.grid_every=2", config=config)
    assert (tmp_path / "dm" / "grids" / "step_00000002.png").exists()
    weights = f"frozen.weights={tmp_path / 'dm' / 'unet.safetensors'}"
    run(tmp_path / "run", weights, "train.steps=1")
    assert "blocks = 1" in run(tmp_path / "other", weights, "frozen.blocks=2", code=2)
