"""The forecast for GPUs that are not here: its arithmetic, its command, its errors."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from training import ROOT, TINY, environment, write_config
from typer.testing import CliRunner

from engine.cli import app
from engine.communication import Collective, collectives
from engine.config_file import from_dict
from engine.cost import Cost, Prices, build_networks, measure
from engine.errors import UsageError
from engine.forecast import plan
from engine.memory import Setting, at_peak, largest_micro_batch
from engine.operations import Operation, Operations
from engine.scaling import Assumptions, Device, Gpu, Load, gpus, step_time, travel
from engine.step import choose_policy

ROUND = Gpu("round", tflops=100, memory_gb=10, bandwidth_gbs=1000, link_gbs=100, network_gbs=10)
BF16 = TINY | {"train": TINY["train"] | {"precision": "bf16"}}
IDEAL = Assumptions(math=1, memory=1, fusion=1, launch_us=0, link=1, latency_us=0, overlap=1, node=8)


def load(before: list[Operation], after: list[Operation], sent: tuple[Collective, ...] = ()) -> Load:
    cost = Cost(1, {}, 0, 0, 0, 0, tuple(before), tuple(after), ())
    return Load(cost, 1, 0, 0, "adam", True, sent, True)


def test_an_operation_takes_the_longer_of_its_arithmetic_and_its_bytes():
    assert Device(100, 10).spend([Operation(200, 10), Operation(0, 30)]) == (2.0, 3.0)


def test_a_compiler_spares_bytes_of_element_wise_operations_alone():
    operations = [Operation(0, 10), Operation(0, 10, custom=True), Operation(1, 10)]
    assert Device(1e9, 10).spend(operations, fusion=0.5) == (0.0, 2.5)


def test_gradients_travel_beside_the_backward_pass_as_long_as_it_lasts():
    backward = [Operation(int(1e12), 0)]  # 10 ms
    one_way = Collective("parameters", "all-gather", 1, 10**9)
    seen = []
    for size in (10**8, 10**9):
        gradients = Collective("gradients", "all-reduce", 1, size, hidden=True)
        time = step_time(load([], backward, (gradients, one_way)), ROUND, IDEAL, 2)
        seen.append((time.hidden, time.exchange))
    assert seen[0] == pytest.approx((0.001, 0.005))  # all of it, and the parameters' 5 ms
    assert seen[1] == pytest.approx((0.010, 0.005))


def test_beyond_a_node_rings_are_as_fast_as_all_its_ways_out_together():
    gather = Collective("parameters", "all-gather", 1, 8 * 10**9)
    inside, outside = (travel(gather, ROUND, IDEAL, world) for world in (8, 16))
    assert inside == pytest.approx(0.07)
    assert outside == pytest.approx(7.5 / 80)
    assert travel(gather, ROUND, replace(IDEAL, network_gbs=50), 16) == pytest.approx(0.075)


def test_a_host_that_launches_more_slowly_than_the_gpu_runs_is_waited_for():
    time = step_time(load([Operation(0, 1000)] * 100, []), ROUND, replace(IDEAL, launch_us=5), 1)
    assert time.total == pytest.approx(500e-6)
    assert time.bottleneck == "launches"


def test_the_largest_micro_batch_divides_the_share_and_leaves_the_global_batch_as_it_is():
    fits = [(part, 24 // part) for part in (1, 2, 3, 4, 6, 8)]
    assert largest_micro_batch(24, 1, lambda *parts: parts in fits) == 8
    assert largest_micro_batch(24, 12, lambda *parts: parts in fits) is None


@pytest.fixture(scope="module")
def tiny():
    return from_dict(BF16 | {"run": {"dir": "runs/tiny"}})


def test_two_counts_give_the_price_of_any_micro_batch(tiny):
    networks, policy = build_networks(tiny), choose_policy(tiny, torch.device("cpu"))
    costs = {n: measure(networks, tiny, policy, n, "cuda") for n in (2, 4, 8)}
    found = Prices(costs[2], costs[4]).of(8)
    assert found.total == costs[8].total
    assert found.forward == costs[8].forward
    assert found.kept == costs[8].kept
    assert found.peak == pytest.approx(costs[8].peak, rel=0.1)
    for phase in ("before", "after"):
        a, b = (sum(o.bytes for o in getattr(cost, phase)) for cost in (found, costs[8]))
        assert a == pytest.approx(b, rel=0.01)


def test_packed_copies_of_frozen_weights_are_in_the_peak(tiny, monkeypatch):
    monkeypatch.setattr("engine.memory.packed_bytes", lambda frozen: 8000)
    networks, policy = build_networks(tiny), choose_policy(tiny, torch.device("cpu"))
    cost = measure(networks, tiny, policy, 2)
    plain = Setting("adam", 0, 1, 1, torch.float32, on_host=True, packs=False)
    packing = replace(plain, packs=True)
    without, with_them = (sum(at_peak(networks, cost, s, process=0).values()) for s in (plain, packing))
    assert with_them - without == 8000 + 1000  # and an eighth in fragments


def test_what_is_counted_without_data_is_what_real_tensors_take():
    module, x = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1)), None
    with Operations(module) as seen:
        x = torch.zeros(32, 64)
        module(x).sum().backward()
    assert seen.flops == 2 * 32 * 256 * (64 * 2 + 1 * 3)  # nobody needs the gradient of x
    gradients = 4 * sum(p.numel() for p in module.parameters())
    assert seen.peak_beside_gradients < seen.peak <= seen.peak_beside_gradients + gradients
    assert seen.peak >= 4 * 32 * (64 + 2 * 256)


@pytest.fixture(scope="module")
def report(tiny):
    return plan(tiny, 4, gpus()["a100-40"], Assumptions())


def test_the_forecast_shares_one_batch_and_lets_another_grow(report):
    assert report["here"]["batch"] == report["here"]["gpus"] * report["here"]["micro"] == 8
    assert [row["gpus"] for row in report["same_batch"]] == [1, 2, 4, 8]
    assert {row["batch"] for row in report["same_batch"]} == {8}
    assert report["same_share"][-1]["gpus"] == 1024
    assert report["same_share"][-1]["batch"] == 2048
    alone = report["same_share"][0]
    assert alone["sent"] == 0
    assert alone["time"]["exchange"] == 0
    rates = [row["images_per_second"] for row in report["same_share"]]
    assert rates == sorted(rates)


def test_all_communication_is_forecast(report, tiny):
    row = report["here"]
    parameters = sum(p.numel() for p in build_networks(tiny).module.parameters())
    least = sum(c.sent(4) for c in collectives(parameters, (), 1, 1, 4))
    assert least < row["sent"] < 1.1 * least  # and batch statistics


def test_a_model_too_large_for_the_gpu_is_a_usage_error(tiny):
    small = replace(gpus()["a10"], memory_gb=1.0)
    with pytest.raises(UsageError, match="not even a micro-batch"):
        plan(tiny, 4, small, Assumptions())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpu", "tpu"], ["tpu", "a100-40"]),
        (["--gpus", "0"], ["--gpus 0"]),
        (["--gpus", "3"], ["train.batch_size"]),
        (["--assume", "maths=1"], ["maths", "math"]),
        (["--assume", "math=fast"], ["fast"]),
        (["--assume", "math=1.5"], ["0 to 1"]),
        (["--assume", "node=0"], ["node"]),
        (["train.precision=fp32"], ["train.precision"]),
        (["train.stpes=1"], ["train.steps"]),
    ],
)
def test_bad_input_is_one_line_with_exit_code_two(options, said, tmp_path):
    config = write_config(tmp_path / "tiny.json", BF16)
    done = CliRunner().invoke(app, ["plan", "--config", str(config), *options])
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1
    for words in said:
        assert words in done.stderr


def test_the_command_prints_json_with_what_it_assumed(tmp_path):
    config = write_config(tmp_path / "tiny.json", BF16)
    arguments = ["plan", "--config", str(config), "--gpus", "2", "--gpu", "a100-40", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--assume", "math=0.25"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["assumptions"]["math"] == 0.25
    assert report["gpu"]["tflops"] == 312
    assert report["here"]["time"]["bottleneck"]


def test_predicted_memory_is_within_15_percent_of_the_measured_peak():
    """Of a process that trains three steps of a model of 64 px whose activations are most of it."""
    frozen = ["frozen.base_channels=32", "frozen.channel_mult=[1,2,4]", "frozen.attention=[4]"]
    command = [sys.executable, "-m", "bench.peak", "--config", "configs/celeba64.json", "--json"]
    command += ["--batch", "8", "encoder.width=32", "train.precision=fp32", *frozen]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["predicted_bytes"] == pytest.approx(report["measured_bytes"], rel=0.15)
    assert report["parts"]["forward and backward"] > 0.3 * report["predicted_bytes"]
