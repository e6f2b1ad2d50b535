"""bench.gpu on a machine without a GPU: every phase runs small, and what fails is a row, not the end."""

import ast
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from image_sets import picture
from test_bench import TINY
from training import environment

import bench.kernels
from bench import cifar, contests, gpu, gpu_checks, gpu_steps, parts, wheelhouse
from bench.ablations import ABLATIONS, OTHER_LOSS
from bench.curve import compare
from bench.shapes import Norm, Preset, count_norms
from bench.traffic import eager_traffic
from diffsiam import layers
from diffsiam.decoder import Decoder
from diffsiam.unet import UNet, UNetConfig
from kernels.adagn_silu import ref

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
NORM = Norm(32, 8, time=True, z=True, trained=True)
ADDING = Norm(16, 8, time=False, z=False, trained=True, adds=True, used=True)
SMALL = Preset("small", 8, 32, 4, Counter({NORM: 3, Norm(8, 16, False, False, False): 2, ADDING: 1}))


def test_the_norms_of_a_preset_are_those_that_its_networks_run(monkeypatch):
    architecture = UNetConfig(8, (1, 2), blocks=1, attention=(2,))
    found = count_norms(architecture, 16, 16)
    seen: Counter = Counter()

    def note(x, weight, time, z, adds):
        seen[x.shape[1], x.shape[2], time is not None, z is not None, weight.requires_grad, adds] += 1

    def spy(x, groups, weight, bias, time=None, z=None, eps=1e-5):
        note(x, weight, time, z, adds=False)
        return ref.adagn_silu(x, groups, weight, bias, time, z, eps)

    def spy_adding(x, residual, groups, weight, bias, time=None, z=None, eps=1e-5):
        note(x, weight, time, z, adds=True)
        return ref.add_adagn_silu(x, residual, groups, weight, bias, time, z, eps)

    monkeypatch.setattr(layers, "adagn_silu", spy)
    monkeypatch.setattr(layers, "add_adagn_silu", spy_adding)
    frozen, decoder = UNet(architecture).requires_grad_(False), Decoder(architecture, 16)
    features = frozen.encode(torch.randn(1, 3, 16, 16), torch.tensor([3]))
    frozen.decode(features)
    decoder(features, torch.randn(1, 16))
    counted: Counter = Counter()
    for n, count in found.items():
        counted[n.channels, n.px, n.time, n.z, n.trained, n.adds] += count
    assert counted == seen


def test_norms_that_add_are_those_behind_a_residual_block_and_trained_ones_know_who_else_uses_the_sum():
    found = count_norms(UNetConfig(8, (1, 2), blocks=1, attention=()), 16, 16)
    frozen = Norm(8, 16, False, False, trained=False, adds=True)
    assert {norm: count for norm, count in found.items() if norm.adds} == {
        frozen: 2,  # downsampling, head
        replace(frozen, px=8): 1,
        replace(ADDING, trained=False, used=False): 1,
        ADDING: 1,  # upsampling, of which the skip is used
        replace(frozen, trained=True): 1,  # head
    }


def modules_behind(name: str, found: set[str] | None = None) -> set[str]:
    """All modules that importing ``name`` imports of ours, and the names of others."""
    found = set() if found is None else found
    path = ROOT / f"{name.replace('.', '/')}.py"
    if name in found or not path.exists():
        return found | {name}
    found.add(name)
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for other in names:
            found |= modules_behind(other, found)
    return found


def test_the_phases_for_bare_machines_import_torch_and_numpy_alone():
    for entry in ("bench.gpu", "bench.kernels", "bench.tune"):
        others = {name.split(".")[0] for name in modules_behind(entry)} - set(sys.stdlib_module_names)
        assert others == {"bench", "diffsiam", "kernels", "torch", "numpy"}, entry


def test_bytes_of_eager_operations_are_what_they_read_and_write_and_views_are_free():
    a, b = torch.empty(10, 4, device="meta"), torch.empty(10, 4, device="meta")
    assert eager_traffic(lambda: (a + b).T[:2].relu()) == (4 * (3 * 40 + 2 * 20), 2)


def test_a_fused_norm_moves_less_than_the_eager_one_and_no_less_than_it_must():
    for contest in contests.contests(SMALL, 2, bench.kernels.OPERATIONS):
        traffic = contest.traffic
        assert traffic.least <= traffic.kernel_bytes < traffic.eager_bytes


@pytest.fixture
def untimed(monkeypatch):
    """Contests run on the CPU, with the reference in the kernel's place and a clock that stands."""
    monkeypatch.setattr(
        bench.kernels, "_time", lambda *_: {"us": 2.0, "p20": 1.0, "p80": 3.0, "how": "graph"}
    )
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    every = contests.contests(SMALL, 2, bench.kernels.OPERATIONS)
    named = ((c.operation + " adding" * ("adds" in c.title), c) for c in every if c.count != 2)
    return dict(named)


def test_contenders_that_agree_with_float64_are_timed(untimed):
    for contest in untimed.values():
        row = bench.kernels.measure(contest, CPU)
        for name in bench.kernels.CONTENDERS:
            assert row[name]["gate"]["green"], (contest.operation, row[name])
            assert row[name]["us"] == 2


@pytest.mark.parametrize("operation", bench.kernels.OPERATIONS)
@pytest.mark.parametrize("factor", [1.05, float("nan")])
def test_a_contender_that_computes_something_else_is_not_timed(untimed, operation, factor):
    contest = untimed[operation]
    result = contest.kernel

    def wrong(inputs):
        values = result(inputs)
        return {**values, "out": values["out"] * factor}

    object.__setattr__(contest, "kernel", wrong)
    row = bench.kernels.describe(contest, "small") | bench.kernels.measure(contest, CPU)
    assert not row["kernel"]["gate"]["green"]
    assert "us" not in row["kernel"]
    assert row["eager"]["us"] == 2
    assert "RED" in bench.kernels.failures([row])[0]


def test_a_contender_that_breaks_takes_no_other_with_it(untimed):
    def broken(inputs):
        raise RuntimeError("no kernel image\nis available")

    contest = untimed["adagn_silu"]
    object.__setattr__(contest, "kernel", broken)
    row = bench.kernels.describe(contest, "small") | bench.kernels.measure(contest, CPU)
    assert bench.kernels.failures([row]) == [
        "small adagn_silu 2 x 32 x 8² time+z trained, kernel: RuntimeError: no kernel image"
    ]
    (total,) = bench.kernels.per_step([row])
    assert (total["count"], total["least"]) == (3, 3 * contest.traffic.least)
    assert "kernel" not in total
    assert total["eager"] == {"ms": pytest.approx(0.006), "timed": 3}
    assert "| not timed | 0.006 | 0.006 |" in bench.kernels.tables([row], 3e12)
    assert "| error | 2.0 | 2.0 |" in bench.kernels.tables([row], 3e12)


def test_the_kernels_phase_counts_bytes_on_a_cpu(tmp_path, monkeypatch):
    def in_this_process(name, arguments, limit):
        return parts.Part(name, bench.kernels.main(arguments[2:]), 1.0, "")

    monkeypatch.setattr(gpu_checks, "run", in_this_process)
    report = gpu.perform("kernels", tmp_path, 60)
    assert report["ok"], report
    assert {row["operation"] for row in report["rows"]} == set(bench.kernels.OPERATIONS)
    assert "cifar10" in gpu.show(report)


def test_the_tests_phase_says_why_it_skips(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_checks, "FOLDERS", ["tests/cuda/test_cuda_noise.py"])
    report = gpu.perform("tests", tmp_path, 60)
    assert report["ok"], report
    assert report["skipped"] == ["needs a CUDA device"]
    assert "skipped" in report["counts"]


def test_failed_tests_are_found_by_their_whole_names():
    output = "FAILED tests/a/test_b.py::test_c[(1, 2)-x y] - AssertionError: z - 1\nERROR tests/a/test_d.py\n"
    assert gpu_checks.FAILED.findall(output) == [
        ("tests/a/test_b.py::test_c[(1, 2)-x y]", "AssertionError: z - 1"),
        ("tests/a/test_d.py", ""),
    ]


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
import bench.levers, bench.curve, bench.step
from engine.parallel import start_ranks, stop_ranks
ranks = start_ranks()  # a process has one group of ranks: both share it
bench.step.start_ranks, bench.step.stop_ranks = lambda: ranks, lambda: None
arguments = ["--config", sys.argv[1]]
code = bench.levers.main([*arguments, "--steps", "2", "--out", sys.argv[2]])
code = code or bench.levers.main([*arguments, "--steps", "2", "--ablate", "--out", sys.argv[4]])
code = code or bench.curve.main([*arguments, "--steps", "3", "--out", sys.argv[3]])
stop_ranks()
sys.exit(code)
"""


def test_levers_and_curves_run_on_a_cpu(tmp_path):
    config, levers, curve, ablations = (tmp_path / f"{name}.json" for name in "abcd")
    config.write_text(json.dumps(TINY))
    command = [sys.executable, "-c", SCRIPT, *map(str, (config, levers, curve, ablations))]
    run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = json.loads(levers.read_text())["rows"]
    assert set(rows) == {"published", "plain, eager", "ours: reference, eager"}
    assert all(row["median_ms"] > 0 for row in rows.values())
    report = json.loads(ablations.read_text())
    pulled = {f"ours {name}" for name, lever in ABLATIONS.items() if lever.device != "cuda"}
    assert set(report["rows"]) == {"published", "ours as it is", *pulled}
    for name, row in report["rows"].items():
        assert row["median_ms"] > 0, row
        apart = name.endswith(OTHER_LOSS)  # the one that is another loss is not called the same
        assert name == "published" or row["gate"]["green"] != apart, name
    assert 0 < sum(row["share"] for row in report["operations"]) <= 1
    assert all(
        len(row["kernels"]) == 3 and row["green"] for row in json.loads(curve.read_text())["rows"].values()
    )


def test_phases_that_lack_packages_say_so_and_do_not_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_steps, "ENGINE", ("no_such_package",))
    for phase in ("step", "levers", "train"):
        report = gpu.perform(phase, tmp_path, 60)
        assert report["ok"]
        assert "needs no_such_package" in gpu.show(report)


def in_this_process(monkeypatch, codes: dict[str, int]):
    """Parts are noted, and leave what they would leave; returns their command lines by name."""
    seen: dict[str, list[str]] = {}
    report = {"config": "quickstart", "px": 16, "batch": 8, "rows": {}, "failures": []}
    left = {"step": report, "levers": report, "curve": {"steps": 3, "rows": {}}}
    left["cifar"] = {"rows": {}, "failed": []}

    def run(name, arguments, limit, environment=None):
        seen[name] = list(arguments)
        place = Path(arguments[arguments.index("--out") + 1])
        file = place / "cifar.json" if name == "cifar" else place
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(left[name.split()[0]]))
        return parts.Part(name, codes.get(name, 0), 1.0, "the last line")

    monkeypatch.setattr(gpu_steps, "run", run)
    return seen


def test_the_step_phases_compare_rivals_then_levers_and_curves(tmp_path, monkeypatch):
    seen = in_this_process(monkeypatch, {})
    report = gpu.perform("step", tmp_path, 60)
    assert report["ok"], report
    assert list(seen) == ["step quickstart", "curve"]
    assert "--ablate" not in seen["step quickstart"]
    assert report["curve"] == {"steps": 3, "rows": {}}
    assert gpu.perform("levers", tmp_path, 60)["ok"]
    assert "--ablate" in seen["levers quickstart"]
    assert "quickstart: 16 px" in gpu.show(report)
    assert {path.name for path in tmp_path.iterdir()} == {"step.json", "levers.json"}


def test_a_loss_curve_that_parts_fails_the_step_phase(tmp_path, monkeypatch):
    in_this_process(monkeypatch, {"curve": 1})
    report = gpu.perform("step", tmp_path, 60)
    assert not report["ok"]
    assert report["failed"] == ["curve: exit code 1: the last line"]


def test_cifar_is_trained_on_where_its_folder_is_given(tmp_path, monkeypatch, capsys):
    seen = in_this_process(monkeypatch, {})
    (tmp_path / "images").mkdir()
    assert gpu.main(["--phase", "train", "--out", str(tmp_path)]) == 0
    assert "needs --cifar FOLDER" in (tmp_path / "report.md").read_text()
    assert gpu.main(["--phase", "train", "--out", str(tmp_path), "--cifar", str(tmp_path / "images")]) == 0
    assert seen["cifar"][:4] == ["-m", "bench.cifar", "--data", str(tmp_path / "images")]
    assert json.loads((tmp_path / "train.json").read_text())["cifar"] == {"rows": {}, "failed": []}
    capsys.readouterr()
    assert gpu.main(["--phase", "train", "--out", str(tmp_path), "--cifar", str(tmp_path / "none")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "no such folder" in said


def test_cifar_runs_small_on_a_cpu_and_both_methods_are_measured(tmp_path):
    for part, images in (("train", 4), ("test", 17)):
        for c in range(5):
            folder = tmp_path / "images" / part / f"class_{c}"
            folder.mkdir(parents=True)
            for i in range(images):
                picture(100 * c + i, 32, 32).save(folder / f"{i}.jpg")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bench.cifar", "--data", str(tmp_path / "images"), "--out", str(out)]
    run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads((out / "cifar.json").read_text())
    assert list(report["rows"]) == list(cifar.METHODS)
    for row in report["rows"].values():
        assert row["steps"] == cifar.SMALL_STEPS
        found = cifar.accuracies(row["results"])
        assert {"linear", "knn", "few-shot 1 linear"} <= set(found)
        assert all(0 <= value <= 100 for value in found.values())


def test_both_methods_train_equally_long_by_the_clock_on_the_diffusion_model(tmp_path, monkeypatch):
    commands = {}

    def run(name, arguments, limit, environment=None):
        commands[name] = arguments
        given = dict(a.split("=", 1) for a in arguments if "=" in a)
        folder = Path(given["run.dir"])
        folder.mkdir()
        rate = {"literal": 256, "simsiam": 1280}.get(name.split(",")[0], 128)
        (folder / "metrics.jsonl").write_text(json.dumps({"images_per_second": rate}) + "\n")
        return parts.Part(name, 0, 1.0, "")

    monkeypatch.setattr(cifar, "run", run)
    monkeypatch.setattr(cifar, "evaluate_run", lambda *_: {})
    report = cifar.bench(tmp_path, tmp_path, 1000, 400, reduced=False)
    assert not report["failed"]
    assert report["diffusion"]["steps"] == 400
    steps = {name: row["steps"] for name, row in report["rows"].items()}
    assert steps == {"literal": 2000, "simsiam": 10000}
    model = f"frozen.weights={tmp_path / 'diffusion' / 'unet.safetensors'}"
    assert [name for name, arguments in commands.items() if model in arguments] == [
        "literal, rate",
        "literal",
    ]


def test_without_a_diffusion_model_simsiam_is_measured_alone(tmp_path, monkeypatch):
    def run(name, arguments, limit, environment=None):
        if name.startswith("diffusion"):
            return parts.Part(name, 3, 1.0, "error: the loss is not finite")
        folder = Path(next(a for a in arguments if a.startswith("run.dir="))[8:])
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(json.dumps({"images_per_second": 128}) + "\n")
        return parts.Part(name, 0, 1.0, "")

    monkeypatch.setattr(cifar, "run", run)
    monkeypatch.setattr(cifar, "evaluate_run", lambda *_: {})
    report = cifar.bench(tmp_path, tmp_path, 1000, 400, reduced=False)
    assert list(report["rows"]) == ["simsiam"]
    assert report["failed"] == ["diffusion, rate: exit code 3: error: the loss is not finite"]
    assert "FAILED diffusion" in cifar.table(report)


def test_a_phase_that_breaks_is_reported_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    def broken(out, clock):
        raise OSError("disk full")

    monkeypatch.setitem(gpu.PHASES, "tests", (broken, gpu_checks.show_tests))
    monkeypatch.setitem(gpu.PHASES, "train", (lambda *_, **__: {"ok": True}, lambda *_: "fine\n"))
    assert gpu.main(["--phase", "tests", "train", "--out", str(tmp_path)]) == 1
    assert "disk full" in json.loads((tmp_path / "tests.json").read_text())["broken"]
    report = (tmp_path / "report.md").read_text()
    assert "tests: FAILED" in report
    assert "train: passed" in report
    assert "FAILED: tests" in capsys.readouterr().out


def test_a_part_that_hangs_is_stopped_and_what_it_said_is_kept():
    part = parts.run("loop", ["-c", "import time; print('begun', flush=True); time.sleep(60)"], 1.5)
    assert part.code is None
    assert part.seconds < 20
    assert part.output.startswith("begun")
    assert parts.run("late", ["-c", ""], 0).output == "no time left"


def test_curves_that_part_are_red():
    same = [1.0, 0.5, 0.4]
    assert compare(same, same, (1e-6, 1e-6))["green"]
    assert not compare([1.0, 0.5, 0.5], same, (1e-2, 1e-2))["green"]
    assert not compare([float("nan")] * 3, same, (1e-2, 1e-2))["green"]


def test_the_wheelhouse_holds_the_versions_of_the_project():
    project = (ROOT / "pyproject.toml").read_text()
    pinned = [wheelhouse.FROM_SDIST, *wheelhouse.ALONE, *wheelhouse.WITH_NEEDS]
    for requirement in (r for r in pinned if "=" in r):
        assert f'"{requirement}"' in project
