"""Several ranks are one: weights, optimizer memory, communication, resume. Gloo ranks, no GPU."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import ROOT, environment, tensors, write_config

from bench import zero
from engine.communication import collectives, norm_calls
from engine.cost import build_networks
from engine.memory import memory

WORLD, ACCUMULATION = 2, 2


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Every stage on two ranks, four steps of two micro-batches each."""
    train = {"steps": 4, "accumulation": ACCUMULATION}
    return zero.table((1, WORLD), zero.STAGES, train=train)


def of(rows: list[dict], world: int, stage: int) -> dict:
    return next(row for row in rows if (row["ranks"], row["zero"]) == (world, stage))


# A minute and more on its own; `make test-faults` runs it.
@pytest.mark.faults
@pytest.mark.thorough
def test_a_run_that_goes_on_on_4_2_1_and_4_ranks_through_all_stages_is_one_run_on_one_rank():
    """20 steps of engine.run, every leg from the checkpoint of the leg before."""
    found = zero.chain()
    assert found["steps"] == 20
    assert max(found["model"], found["ema"]) < zero.SAME
    assert found["optimizer"] < 10 * zero.SAME  # momentum: the sum of ten gradients


def test_every_stage_comes_to_the_weights_of_one_rank_which_have_moved(rows):
    for row in rows:
        assert row["difference"] < zero.SAME, (row["ranks"], row["zero"])
        assert row["moved"] > 10 * zero.SAME


def test_the_optimizer_s_state_shrinks_with_the_ranks_as_the_plan_says(rows):
    networks = build_networks(zero.config())
    for stage in zero.STAGES:
        measured = [of(rows, world, stage)["optimizer_bytes"] for world in (1, WORLD)]
        planned = [
            memory(networks, "sgd", stage, world, torch.float32)["optimizer state"] for world in (1, WORLD)
        ]
        assert measured == pytest.approx(planned, rel=1e-3)  # partitions are filled up to equal sizes
        assert (measured[1] < 0.51 * measured[0]) == (stage > 0)


def test_what_ranks_send_is_what_the_plan_says(rows):
    config = zero.config(train={"accumulation": ACCUMULATION})
    networks = build_networks(config)
    norms = [8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64] * 2 + [32, 32, 16] * 2
    for stage in zero.STAGES:
        planned = collectives(
            sum(p.numel() for p in networks.module.parameters()), norms, stage, ACCUMULATION, WORLD
        )
        sent = of(rows, WORLD, stage)["sent_bytes"]
        assert sent == pytest.approx(sum(c.sent(WORLD) for c in planned), rel=1e-4), stage
        assert of(rows, 1, stage)["sent_bytes"] == 0


def test_reduction_goes_on_beside_the_backward_pass_from_stage_1(rows):
    assert [of(rows, WORLD, stage)["overlap"] for stage in zero.STAGES] == [False, True, True, True]


def test_a_ring_sends_a_whole_twice_for_an_all_reduce_and_once_for_a_gather():
    for stage, times in ((0, 2), (1, 3), (3, 2)):
        found = collectives(1000, (), stage, 1, 4)
        assert sum(c.sent(4) for c in found) == pytest.approx(times * 0.75 * 4000)
    assert collectives(1000, (8,), 1, 1, 1) == []


def test_batch_norms_that_are_evaluated_send_nothing():
    module = torch.nn.BatchNorm1d(4)
    with norm_calls(module) as channels:
        module(torch.randn(3, 4))
        module.eval()(torch.randn(3, 4))
    module.train()(torch.randn(3, 4))
    assert channels == [4]


def test_two_nodes_train_as_one_run(tmp_path):
    """Two launchers of one rank each meet on loopback, as on two hosts without ssh between them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hosts = tmp_path / "hostfile"
    hosts.write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    config = write_config(tmp_path / "two.json", zero.VALUES | {"run": {"dir": str(tmp_path / "run")}})
    launcher = Path(sys.executable).with_name("deepspeed")
    nodes = []
    for node in range(2):
        command = [str(launcher), "--quiet", "--hostfile", str(hosts), "--no_ssh", "--node_rank", str(node)]
        command += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
        command += ["engine/train.py", "--config", str(config), "train.steps=2"]
        nodes.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [node.communicate(timeout=250)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert "2 ranks, ZeRO 1" in outputs[0]
    assert outputs[1].count("step 2/2") == 0  # only rank 0 speaks
    assert tensors(tmp_path / "run", 2)
