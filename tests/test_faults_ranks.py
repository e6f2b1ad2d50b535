"""Ranks that die, hang, come late, or compute something else than the others."""

from __future__ import annotations

import os
import signal
import time
from unittest import mock

import pytest
import torch

from engine.errors import RankError
from engine.hang import whereabouts
from engine.keeper import bit_sums, late, name_odd
from engine.peers import Peer, is_of_ranks, lost, missing, this_process

pytestmark = [pytest.mark.faults]
thorough = pytest.mark.thorough
SEEN = "step:rank=1:step=5:"


@pytest.mark.parametrize(
    ("action", "its_code"),
    [("kill", -signal.SIGKILL), pytest.param("raise", 70, marks=thorough)],
)
def test_a_rank_that_dies_ends_the_others_with_code_6_and_its_name(action, its_code, launcher, tmp_path):
    first, second = launcher.start(tmp_path, world=2, fault=SEEN + action)
    assert second.wait() == its_code
    assert first.wait() == 6, first.output()
    assert f"error: rank 0 lost the others: rank 1 (process {second.pid}) is gone" in first.output()
    assert "Traceback" not in first.output()
    assert not (tmp_path / "run.lock").exists() or launcher.run(tmp_path, "train.steps=5", world=2)


def test_a_rank_that_hangs_ends_the_others_in_time_with_step_collective_and_stacks(launcher, tmp_path):
    first, second = launcher.start(tmp_path, "run.timeout=6", world=2, fault=SEEN + "stop")
    assert first.wait() == 6, first.output()
    said = first.output()
    assert "rank 0 has not moved for 6 s in step 5, waiting for other ranks in all_reduce" in said
    assert "engine/parallel.py" in said
    assert f"rank 1 (process {second.pid}) is stopped" in said
    stacks = (tmp_path / "hang_rank0.txt").read_text()
    assert "Thread 0x" in stacks
    assert "in train" in stacks
    assert second.poll() is None
    second.send(signal.SIGKILL)
    assert second.wait() == -signal.SIGKILL


@thorough
def test_a_rank_that_hangs_by_itself_says_where(launcher, tmp_path):
    first, second = launcher.start(tmp_path, "run.timeout=6", world=2, fault=SEEN + "sleep=600")
    assert (first.wait(), second.wait()) == (6, 6)
    assert "not in a collective but at engine/faults.py" in second.output()


@thorough
def test_a_hang_while_starting_has_the_longer_limit_and_ends_too(launcher, tmp_path):
    said = launcher.run(tmp_path, "run.timeout=1", "run.timeout_slow=9", fault="start:sleep=600", code=6)
    assert "has not moved for 9 s in starting, not in a collective" in said


@thorough
def test_a_rank_that_never_arrives_is_said(launcher, tmp_path):
    only = launcher.start(tmp_path, "run.timeout=1", "run.timeout_slow=1", world=2, before=ALONE)
    assert only[0].wait() == 6, only[0].output()
    assert "not all 2 ranks arrived" in only[0].output()


ALONE = """
import os
from engine import run
if os.environ["RANK"] == "1":
    os._exit(0)
run.LATER_SECONDS = 3.0
"""


@thorough
def test_a_straggler_is_named_and_the_run_goes_on(launcher, tmp_path):
    fault = "data:rank=1:step=2-5:sleep=0.7"
    said = launcher.run(tmp_path, "log.every=6", "log.save_every=100", world=2, fault=fault)
    assert said.count("rank 1 is late: ready after") == 1
    assert "rank 0 is late" not in said


def test_weights_that_differ_are_found_within_the_configured_steps(launcher, tmp_path):
    fault = "weights:rank=1:step=5:add=0.001"
    options = ("parallel.zero=0", "run.compare_every=2", "log.save_every=100", "log.every=100")
    said = launcher.run(tmp_path, *options, world=2, fault=fault, code=6)
    assert (
        "the ranks' weights differ at step 6: no more than half of the ranks agree, first in encoder" in said
    )
    assert not (tmp_path / "checkpoints").exists(), "a state that ranks disagree on is not saved"


@thorough
def test_weights_that_differ_are_never_saved_however_seldom_they_are_compared(launcher, tmp_path):
    fault = "weights:rank=1:step=5:add=0.001"
    launcher.run(tmp_path, "parallel.zero=0", "run.compare_every=0", world=2, fault=fault, code=6)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000004"]


def test_a_single_flipped_bit_changes_the_sum_and_an_order_does_not():
    weights = {"a": torch.randn(1000), "b": torch.randn(30, 5).bfloat16()}
    before = bit_sums(weights)
    assert torch.equal(bit_sums({"a": weights["a"].flip(0), "b": weights["b"].t()}), before)
    weights["a"].view(torch.int32)[17] ^= 1
    assert (bit_sums(weights) != before).tolist() == [True, False]


def test_the_ranks_that_differ_from_most_are_named():
    table = torch.tensor([[1, 2], [1, 2], [1, 3], [1, 2]])
    assert name_odd(table) == "rank 2 has others than the rest"
    assert name_odd(table[1:3]) == "no more than half of the ranks agree"


def test_only_a_rank_that_the_others_wait_for_is_late():
    assert late([0.1, 0.1, 9.0], 10) == [(2, "ready after 9.0 of the last 10.0 s, the fastest after 0.1 s")]
    assert late([9.0, 8.0], 10) == [], "all wait for their data"
    assert late([0.01, 0.05], 10) == []


def test_a_dead_and_an_unburied_process_are_gone_and_this_one_is_not():
    pid = os.fork()
    if not pid:
        os._exit(0)
    try:
        while (process := mock.Mock(pid=pid)) and open(f"/proc/{pid}/stat").read().rpartition(")")[2][
            1
        ] != "Z":
            time.sleep(0.01)
        unburied = Peer(this_process().host, process.pid, None)
        assert unburied.state() == "gone"
    finally:
        os.waitpid(pid, 0)
    assert this_process().state() is None
    assert missing([this_process(), unburied], 0) == f"rank 1 (process {pid}) is gone"
    assert "all ranks of this host are alive" in missing([this_process()], 0)
    assert Peer("elsewhere", 1, None).state() is None


def test_failures_of_talking_are_told_from_others():
    assert is_of_ranks(RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:9"))
    assert is_of_ranks(torch.distributed.DistBackendError("NCCL error"))
    assert not is_of_ranks(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_of_ranks(ValueError("gloo"))
    error = lost(RuntimeError("Connection reset by peer"), 3, [this_process()])
    assert isinstance(error, RankError)
    assert error.exit_code == 6
    assert "\n" not in str(error)


def test_a_process_outside_a_collective_says_its_own_line():
    assert "not in a collective but at" in whereabouts(0)
