"""Being asked to stop in every phase, by every signal, through every launcher; and going on exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import TOY, Launcher, free_port, steps_of
from training import ROOT, environment

from engine.verify import state, state_hash

pytestmark = [pytest.mark.faults]
thorough = pytest.mark.thorough


@pytest.fixture(scope="module")
def straight_on_two(launcher: Launcher, tmp_path_factory) -> str:
    """The same on two ranks."""
    run = tmp_path_factory.mktemp("straight_on_two")
    launcher.run(run, world=2)
    return state_hash(state(run))


@pytest.mark.parametrize(
    ("cuts", "more"),
    [
        ([1], ()),
        pytest.param([2], (), marks=thorough),  # during warm-up of the rate and of the average
        pytest.param([5], ("train.accumulation=2",), marks=thorough),
        pytest.param([10], (), marks=thorough),  # the end of an epoch of 40 images
        pytest.param([11], (), marks=thorough),
        pytest.param([3, 6], (), marks=thorough),  # twice within an epoch
        pytest.param([4, 11], ("optimizer.name=sgd", "optimizer.lr=0.01"), marks=thorough),
    ],
    ids=["first step", "warm-up", "accumulation", "end of epoch", "after it", "twice", "sgd"],
)
def test_a_run_cut_anywhere_ends_bit_identical_to_a_straight_one(cuts, more, launcher, straight, tmp_path):
    expected = straight
    if more:
        launcher.run(tmp_path / "straight", *more)
        expected = state_hash(state(tmp_path / "straight"))
    run = tmp_path / "run"
    for cut in cuts:
        assert f"stopped at step {cut}, saved" in launcher.run(run, *more, fault=f"step:step={cut}:term")
        assert steps_of(run)[-1] == cut
    launcher.run(run, *more)
    assert state_hash(state(run)) == expected


@thorough
def test_readers_threads_and_depth_change_nothing_on_the_way(launcher, straight, tmp_path):
    launcher.run(tmp_path, "data.workers=0", "data.prefetch=1", fault="step:step=5:term")
    launcher.run(tmp_path, "data.threads=3", "data.prefetch=4")
    assert state_hash(state(tmp_path)) == straight


def test_another_rate_is_announced_and_another_model_refused(launcher, tmp_path):
    launcher.run(tmp_path, "train.steps=2")
    assert "optimizer.lr: 0.001 -> 0.002" in launcher.run(tmp_path, "train.steps=3", "optimizer.lr=0.002")
    for change in ("subsets.n=8", "data.px=32", "train.batch_size=8"):
        said = launcher.run(tmp_path, change, code=2)
        assert "was trained with another config" in said
        assert change.partition("=")[0] in said


PHASES = {
    "data": "data:step=3-:sleep=3",
    "step": "step:step=3:sleep=3",
    "draw": "draw:sleep=600",
    "save.begun": "save.begun:sleep=3",
    "start": "start:sleep=3",
    "report": "report:sleep=600",
}
ENTERED = "import engine.faults as f\nreal = f._asked\ndef asked(name, step):\n    found = real(name, step)\n"
ENTERED += "    if found: print('entered', flush=True)\n    return found\nf._asked = asked"


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        pytest.param("data", signal.SIGTERM, marks=thorough),
        ("draw", signal.SIGTERM),
        pytest.param("step", signal.SIGUSR1, marks=thorough),
        pytest.param("save.begun", signal.SIGTERM, marks=thorough),
        pytest.param("start", signal.SIGINT, marks=thorough),
        pytest.param("report", signal.SIGTERM, marks=thorough),
    ],
)
def test_a_request_in_any_phase_is_heard_saved_and_forgotten(phase, number, launcher, straight, tmp_path):
    options = ("log.grid_every=6", "log.grid_images=2", "run.stop_code=75")
    (process,) = launcher.start(tmp_path, *options, fault=PHASES[phase], before=ENTERED)
    process.wait_for("entered")
    process.send(number)
    assert process.wait() == 75, process.output()
    said = process.output()
    assert f"{number.name}: stopping after this step" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))
    launcher.run(tmp_path, *options)
    assert state_hash(state(tmp_path)) == straight


# torch.compile as on a GPU; its compiler takes its time, in a process of the run's group as Inductor's do.
COMPILED = """
import dataclasses, os, subprocess, sys, torch
from engine import run
os.setsid()
choose, compiled, waits = run.choose_policy, torch.compile, [{seconds}]
run.choose_policy = lambda *given: dataclasses.replace(choose(*given), compile=True)
def compiler(graph, inputs):
    if waits:
        print("entered", flush=True)
        subprocess.run([sys.executable, "-c", f"import time; time.sleep({{waits.pop()}})"], check=True)
    return graph.forward
torch.compile = lambda function, **options: compiled(function, backend=compiler, **options)
"""


@thorough
def test_a_request_while_the_networks_are_compiled_is_heard_when_they_are(launcher, tmp_path):
    runs, options = [tmp_path / name for name in ("straight", "stopped")], ("train.steps=3",)
    launcher.run(runs[0], *options, before=COMPILED.format(seconds=0))
    (process,) = launcher.start(runs[1], *options, "run.stop_code=75", before=COMPILED.format(seconds=1))
    process.wait_for("entered")
    process.send(signal.SIGTERM)
    assert process.wait() == 75, process.output()
    assert "stopped at step 1, saved" in process.output()
    assert "Traceback" not in process.output()
    launcher.run(runs[1], *options, before=COMPILED.format(seconds=0))
    assert state_hash(state(runs[1])) == state_hash(state(runs[0]))


@thorough
def test_a_request_that_ends_the_compilers_too_is_no_failure(launcher, straight, tmp_path):
    (process,) = launcher.start(tmp_path, "run.stop_code=75", before=COMPILED.format(seconds=600))
    process.wait_for("entered")
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == 75, process.output()
    assert steps_of(tmp_path) == []
    assert "stopped: the request ended compilers too" in process.output()
    assert "Traceback" not in process.output()
    launcher.run(tmp_path)
    assert state_hash(state(tmp_path)) == straight


@thorough
def test_a_compiler_that_fails_by_itself_is_a_failure(launcher, tmp_path):
    broken = COMPILED.format(seconds=0) + "subprocess.run = lambda *_, **__: 1 / 0"
    assert "ZeroDivisionError" in launcher.run(tmp_path, before=broken, code=70)


def test_images_that_never_come_do_not_keep_a_run_from_saving(launcher, straight, tmp_path):
    before = """
import time
from engine import train
from engine.data import feeds, pipeline
train.PATIENCE_SECONDS = pipeline.CLOSE_SECONDS = 1.0
real = feeds.Reader.stream
def stalled(self, positions):
    if positions[0] >= 20:
        print("entered", flush=True)
        time.sleep(600)
    return real(self, positions)
feeds.Reader.stream = stalled
"""
    (process,) = launcher.start(tmp_path, before=before)
    metrics, until = tmp_path / "metrics.jsonl", time.monotonic() + 60
    while (not metrics.exists() or metrics.read_text().count("\n") < 4) and time.monotonic() < until:
        time.sleep(0.05)
    process.send(signal.SIGTERM)
    assert process.wait() == 0, process.output()
    assert steps_of(tmp_path)[-1] in (4, 5)  # the image graph looks one batch ahead
    launcher.run(tmp_path)
    assert state_hash(state(tmp_path)) == straight


@thorough
@pytest.mark.parametrize("who", ["rank 1", "all"])
def test_a_request_to_one_rank_or_to_all_stops_all_at_one_step(who, launcher, straight_on_two, tmp_path):
    fault = "step:rank=1:step=5:term" if who == "rank 1" else "step:step=5:term"
    said = launcher.run(tmp_path, world=2, fault=fault)
    assert "stopped at step 5, saved" in said
    assert steps_of(tmp_path)[-1] == 5
    launcher.run(tmp_path, world=2)
    assert state_hash(state(tmp_path)) == straight_on_two


def through(launch: list[str], run: Path, config: Path, *overrides: str, fault: str = "") -> subprocess.Popen:
    command = [*launch, "engine/train.py", "--config", str(config), f"run.dir={run}", *overrides]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(DIFFSIAM_FAULT=fault),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def torchrun(*options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"),
        *(f"--master_port={free_port()}", *options),
    ]


@thorough
@pytest.mark.parametrize("how", ["deepspeed", "torchrun", "torchrun with SIGUSR1"])
def test_a_request_to_the_launcher_reaches_the_ranks(how, launcher, straight_on_two, tmp_path):
    if how == "deepspeed":
        launch = [sys.executable, "-m", "deepspeed.launcher.launch", "--master_port", str(free_port())]
        launch += ["--world_info", WORLD_OF_TWO]
        number = signal.SIGTERM
    elif how == "torchrun":
        launch, number = torchrun("--shutdown-timeout=60"), signal.SIGTERM
    else:
        launch = torchrun("--shutdown-timeout=60", "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1")
        number = signal.SIGUSR1
    process = through(launch, tmp_path, launcher.config, fault="step:step=7-:sleep=1")
    until = time.monotonic() + 100
    while steps_of(tmp_path) != [4] and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    output = process.communicate(timeout=100)[0]
    assert "saved; run the same command to go on" in output, output[-3000:]
    assert steps_of(tmp_path)[-1] < 12
    launcher.run(tmp_path, world=2)
    assert state_hash(state(tmp_path)) == straight_on_two


# {"localhost": [0, 1]}, as the deepspeed command hands it to the launcher of each host.
WORLD_OF_TWO = "eyJsb2NhbGhvc3QiOiBbMCwgMV19"


def test_a_second_request_leaves_at_once_and_tears_no_file(launcher, straight, tmp_path):
    before = "from engine import preempt\npreempt.TOGETHER_SECONDS = 0.2\n" + ENTERED
    (process,) = launcher.start(tmp_path, fault="save.complete:sleep=600", before=before)
    process.wait_for("entered")
    process.send(signal.SIGTERM)
    time.sleep(0.5)
    process.send(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    launcher.run(tmp_path)
    assert state_hash(state(tmp_path)) == straight


def test_the_toy_is_small_and_still_everything_that_a_run_is(straight, launcher, tmp_path):
    assert TOY["decoder"]["dropout"] > 0, "the one draw that torch makes"
    assert TOY["train"]["steps"] * TOY["train"]["batch_size"] > TOY["data"]["count"], "more than one epoch"
    launcher.run(tmp_path)
    assert state_hash(state(tmp_path)) == straight, "the same twice"
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 4_000_000
    assert os.path.exists(tmp_path / "metrics.jsonl")
