"""The side-by-side with the published step, and the gate in front of it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

import bench.step
import diffsiam.attention
import diffsiam.layers
from bench import rivals, timing
from bench.contenders import boundaries, build_rival, make_batch, rival_gradients, rival_phases, views_of
from bench.gate import Gate, comparable, compare, compare_rounded, take_gradients, wake
from bench.plain import Plain
from bench.rivals import Published
from bench.step import config_for, parse
from bench.timing import race, split
from diffsiam.schedule import Schedule
from diffsiam.subsets import Subsets, balanced_ends
from engine.build import build_frozen
from engine.config import Config
from engine.config_file import METHODS
from engine.errors import UsageError
from engine.step import choose_policy
from engine.tasks import Representation
from kernels.subset_mask.ref import subset_mask

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
TINY = {
    "method": "diffsiam",
    "frozen": {
        "weights": "random",
        "base_channels": 8,
        "channel_mult": [1, 2],
        "blocks": 1,
        "attention": [2],
    },
    "encoder": {"arch": "resnet10", "width": 8, "dim": 16},
    "subsets": {"n": 4},
    "simsiam": {"projector": "mlp2", "dim": 16, "hidden": 8},
    "data": {"source": "rooms", "px": 16},
    "train": {"batch_size": 8, "precision": "fp32"},
}


def config(tmp_path: Path, *overrides: str) -> Config:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return config_for(parse(["--config", str(path), *overrides]))


def our_gradients(config: Config, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Without DeepSpeed, which adds nothing to them on one rank."""
    frozen = build_frozen(config)
    frozen = None if frozen is None else wake(frozen)
    task = Representation(config, choose_policy(config, CPU), frozen, boundaries(config))
    module = wake(task.build())
    loss = task.loss(module, batch)
    loss.backward()
    return loss.detach(), take_gradients(module)


def gate(config: Config) -> Gate:
    batch = make_batch(config, CPU)
    with comparable():
        published = rival_gradients(build_rival(Published, config, CPU), batch, config.seed)
        return compare(our_gradients(config, batch), published)


@pytest.mark.parametrize(
    "overrides",
    [
        *[(f"method={method}",) for method in METHODS],
        ("jump.time=t_plus_k",),
        ("subsets.mask=sequential", "subsets.detach=false"),
        ("subsets.choice=profile", "decoder.init=frozen"),
        ("simsiam.projector=none", "encoder.arch=resnet18"),
    ],
)
def test_both_steps_compute_the_same_loss_and_gradients(tmp_path, overrides):
    agreement = gate(config(tmp_path, *overrides))
    assert agreement.green, str(agreement)
    assert agreement.cosine == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_plain_step_computes_the_published_loss_and_gradients(tmp_path, method):
    setting = config(tmp_path, f"method={method}")
    batch = make_batch(setting, CPU)
    with comparable():
        plain, published = (
            rival_gradients(build_rival(kind, setting, CPU), batch, setting.seed)
            for kind in (Plain, Published)
        )
    assert compare(plain, published).green


def test_the_plain_step_is_channels_last_all_through_and_waits_for_nothing(tmp_path):
    setting = config(tmp_path)
    plain, batch, layouts = build_rival(Plain, setting, CPU), make_batch(setting, CPU), []
    for network in plain.networks():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d) and module.in_channels > 3:
                assert module.weight.is_contiguous(memory_format=torch.channels_last)
                module.register_forward_pre_hook(
                    lambda _, x: layouts.append(x[0].is_contiguous(memory_format=torch.channels_last))
                )
    loss = plain.step(batch["x_0"], views_of(batch))
    assert isinstance(loss, Tensor)
    assert len(layouts) > 20
    assert all(layouts)


def shifted_masks(subsets: Subsets, device: torch.device) -> tuple[Tensor, Tensor]:
    seen, taught = MASKS(subsets, device)
    return seen, taught.roll(1, dims=1)


def undetached(subsets: Subsets, device: torch.device) -> tuple[Tensor, Tensor]:
    seen, taught = MASKS(subsets, device)
    return torch.zeros_like(seen), seen + taught


def scaled(name: str):
    def tables(config: Config, device: torch.device) -> dict[str, Tensor]:
        tables = TABLES(config, device)
        return tables | {name: 1.001 * tables[name]}

    return tables


MASKS, TABLES, ATTEND = rivals.mask_tables, rivals.noise_tables, rivals.attend


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ("mask_tables", shifted_masks),
        ("mask_tables", undetached),
        ("noise_tables", scaled("weight")),
        ("noise_tables", scaled("shift")),
        ("attend", lambda q, k, v: ATTEND(q, 1.01 * k, v)),
        ("_images", lambda x: x.permute(0, 3, 1, 2).float() / 128 - 1),
    ],
)
def test_a_step_that_computes_something_else_turns_the_gate_red(tmp_path, monkeypatch, what, wrong):
    monkeypatch.setattr(rivals, what, wrong)
    assert not gate(config(tmp_path)).green


def test_a_gradient_that_only_one_step_has_turns_the_gate_red():
    one = torch.tensor(1.0), {"encoder.a": torch.ones(2)}
    both = torch.tensor(1.0), {"encoder.a": torch.ones(2), "encoder.b": torch.ones(2)}
    assert compare(both, both).green
    assert "encoder.b" in compare(one, both).worst
    assert not compare(one, both).green


def test_a_loss_that_is_no_number_turns_the_gate_red():
    nan = torch.tensor(float("nan")), {"encoder.a": torch.full((2,), float("nan"))}
    assert not compare(nan, nan).green
    assert not compare_rounded(nan, nan).green


def test_rounding_of_bfloat16_passes_the_loose_gate_only():
    gradients = {"encoder.a": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    rounded = {name: g.bfloat16().float() for name, g in gradients.items()}
    a, b = (torch.tensor(1.0), gradients), (torch.tensor(1.001), rounded)
    assert compare_rounded(b, a).green
    assert not compare(b, a).green


def test_a_rounded_step_may_err_about_as_much_as_its_rival_and_no_more():
    generator = torch.Generator().manual_seed(0)
    exact, noise = torch.randn(1000, generator=generator), torch.randn(1000, generator=generator)
    reference, one, twice, thrice = (
        (torch.tensor(1 + 0.01 * share), {"encoder.a": exact + 0.1 * share * noise}) for share in range(4)
    )
    assert not compare_rounded(one, reference).green
    assert compare_rounded(one, reference, rival=one).green
    assert not compare_rounded(thrice, reference, rival=one).green
    assert not compare_rounded(thrice, reference, rival=twice).green  # 9 / 4 of its angle


@pytest.mark.parametrize(
    ("mask", "detach"), [("hierarchical", True), ("hierarchical", False), ("sequential", False)]
)
def test_mask_tables_are_the_subset_mask_and_its_gradient(mask, detach):
    subsets = Subsets(balanced_ends(12, 4), mask=mask, detach=detach)
    seen, taught = rivals.mask_tables(subsets, CPU)
    z, k = torch.randn(4, 12, requires_grad=True), torch.arange(1, 5)
    looked_up = z.detach() * seen[k] + z * taught[k]
    ours = subset_mask(z, k, subsets.subset_of_dim(), mask, detach)
    assert torch.equal(looked_up, ours)
    (ours_gradient,) = torch.autograd.grad(ours.sum(), z)
    assert torch.equal(ours_gradient, taught[k])


def test_noise_tables_are_those_of_the_schedule(tmp_path):
    tables = rivals.noise_tables(config(tmp_path), CPU)
    schedule = Schedule()
    for name, table in tables.items():
        torch.testing.assert_close(table, getattr(schedule, name).float(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", [Published, Plain])
@pytest.mark.parametrize("method", METHODS)
def test_a_rival_s_step_learns_and_averages(tmp_path, method, kind):
    setting = config(tmp_path, f"method={method}", "optimizer.lr=0.01", "train.ema_decay=0.5")
    rival, batch = build_rival(kind, setting, CPU), make_batch(setting, CPU)
    before = [p.detach().clone() for p in rival.module.parameters()]
    rival.step(batch["x_0"], views_of(batch))
    if isinstance(rival, Published):
        averages = [rival.average[name] for name, _ in rival.module.named_parameters()]
    else:
        averages = rival.average
    moved = 0
    for p, old, average in zip(rival.module.parameters(), before, averages, strict=True):
        moved += not torch.equal(p, old)
        torch.testing.assert_close(average, (old + p.detach()) / 2)
    assert moved > 0.9 * len(before)


def test_the_published_step_reads_its_loss(tmp_path):
    setting = config(tmp_path)
    published, batch = build_rival(Published, setting, CPU), make_batch(setting, CPU)
    assert isinstance(published.step(batch["x_0"], views_of(batch)), float)


class Work:
    """Two calls, one within the other."""

    def outer(self) -> None:
        time.sleep(0.02)
        self.inner()

    def inner(self) -> None:
        time.sleep(0.04)


def test_parts_of_a_step_are_timed_each_for_itself_and_left_as_they_were():
    work = Work()
    parts = split(
        lambda: (work.outer(), time.sleep(0.01)),
        {"outer": [(work, "outer")], "inner": [(work, "inner")]},
        3,
        CPU,
    )
    assert parts["inner"] > parts["outer"] > parts["rest"] > 9
    assert parts["outer"] < 39, "without the inner call"
    assert vars(work) == {}


@pytest.mark.parametrize("kind", [Published, Plain])
def test_the_parts_of_a_rival_s_step_are_its_networks_and_updates(tmp_path, kind):
    setting = config(tmp_path)
    rival, batch = build_rival(kind, setting, CPU), make_batch(setting, CPU)
    parts = split(lambda: rival.step(batch["x_0"], views_of(batch)), rival_phases(rival), 1, CPU)
    assert set(parts) == {"backward", "optimizer", "average", "frozen", "encoder", "decoder", "rest"}
    assert all(ms > 0 for ms in parts.values())


def test_the_peak_is_the_fastest_of_its_shapes(monkeypatch):
    seconds = iter([4.0, 1.0, 2.0, 3.0, 1.0, 1.0])
    monkeypatch.setattr(timing, "_shortest", lambda *_: next(seconds))
    monkeypatch.setattr(timing, "CONVOLUTIONS", {"cpu": ((1, 8, 4, 4),) * 4})
    monkeypatch.setattr(timing, "PRODUCTS", {"cpu": (10, 20)})
    assert timing.peaks(CPU, torch.float32) == {"convolution": 2 * 9 * 8 * 8 * 16, "product": 2 * 20**3}


def test_steps_take_turns_and_are_all_timed():
    order: list[str] = []
    timings = race({name: lambda name=name: order.append(name) for name in "ab"}, 10, 32, CPU)
    warm = 2
    assert "".join(order[2 * warm :]) == ("a" * 5 + "b" * 5) * 2
    assert all(t.p20_ms <= t.median_ms <= t.p80_ms for t in timings.values())
    assert timings["a"].images_per_second == pytest.approx(32_000 / timings["a"].median_ms)


def test_no_images_are_read_and_weights_are_random_where_the_config_names_none():
    bedroom = config_for(
        parse(["--config", str(ROOT / "configs" / "bedroom.json"), "--px", "64", "--batch", "8"])
    )
    assert (bedroom.data.source, bedroom.data.px, bedroom.train.batch_size) == ("rooms", 64, 8)
    assert bedroom.frozen.weights == "random"
    assert bedroom.decoder.dropout == 0
    quickstart = config_for(parse(["--config", str(ROOT / "configs" / "quickstart.json")]))
    assert quickstart.frozen.weights == "builtin:rooms16"


def test_a_batch_of_one_is_a_usage_error(tmp_path):
    assert config(tmp_path, "--batch", "2").train.batch_size == 2
    with pytest.raises(UsageError, match="--batch 2"):
        config(tmp_path, "--batch", "1")


def test_a_config_that_trains_the_diffusion_model_alone_is_a_usage_error():
    with pytest.raises(UsageError, match="task=diffusion"):
        config_for(parse(["--config", str(ROOT / "configs" / "rooms_dm.json")]))


SCRIPT = """
import json, sys, torch
torch.set_num_threads(1)
import bench.step, bench.rivals
from engine import screen
screen.quiet_libraries()
setting = bench.step.config_for(bench.step.parse(["--batch", "4", *sys.argv[1:]]))  # gated on eight
bench.timing.CONVOLUTIONS["cpu"], bench.timing.PRODUCTS["cpu"] = ((4, 64, 16, 16),), (64,)
ranks = bench.step.start_ranks()
good = bench.step.bench(setting, 5, ranks)
right = bench.rivals.mask_tables
bench.rivals.mask_tables = lambda *a: tuple(table.roll(1, dims=1) for table in right(*a))
bad = bench.step.bench(setting, 5, ranks)
bench.step.stop_ranks()
print(json.dumps([good, bad]))
"""


def test_the_real_step_under_bfloat16_is_timed_and_a_red_gate_is_not(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, "--config", str(path), "train.precision=bf16"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    good, bad = json.loads(result.stdout.splitlines()[-1])
    assert good["gate"]["green"]
    assert good["gate_fast"]["green"]
    for name in ("published", "plain"):
        assert good[f"ratio_{name}"] == pytest.approx(good[f"{name}_ms"] / good["ours_ms"])
    assert good["machine"]["plain"] == "eager"
    assert good["gate_plain_fast"]["green"]
    rate = good["flop_step"] / good["ours_ms"] * 1000
    assert good["share_of_peak"] == pytest.approx(rate / good["peaks"]["convolution"])
    assert 0 < good["peak_memory"]["ours"] < good["peak_memory"]["published"]
    parts = {"backward", "optimizer", "average", "frozen", "encoder", "decoder", "rest"}
    assert all(set(split) == parts for split in good["split"].values())
    assert not bad["gate"]["green"]
    assert not any(key.endswith("_ms") for key in bad)


def test_a_red_gate_is_exit_code_1_and_json_is_all_that_is_printed(tmp_path, monkeypatch, capsys):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    red = {"machine": {}, "gate": {"green": False}}
    monkeypatch.setattr(bench.step, "start_ranks", lambda: None)
    monkeypatch.setattr(bench.step, "bench", lambda *_: red)
    assert bench.step.main(["--config", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == red
    assert bench.step.main(["--config", "missing.json"]) == 2


def test_the_published_step_never_runs_an_operation_of_ours(tmp_path, monkeypatch):
    def ours(*_, **__):
        raise AssertionError("adagn_silu ran")

    setting = config(tmp_path)
    published, batch = build_rival(Published, setting, CPU), make_batch(setting, CPU)
    monkeypatch.setattr(diffsiam.layers, "adagn_silu", ours)
    monkeypatch.setattr(diffsiam.attention, "normed", ours)
    assert rival_gradients(published, batch, setting.seed)[0].isfinite()
