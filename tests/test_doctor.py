"""``diffsiam doctor``: what it finds, what it advises, when it fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from engine.cli import app
from engine.config import Config
from engine.doctor import machine, report, speed
from engine.doctor.choices import choices, requirements
from engine.doctor.packages import Package, packages
from engine.doctor.speed import Check
from engine.step import choose_policy

CPU = torch.device("cpu")
CUDA = torch.cuda.is_available()


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["doctor", "--quick", *arguments])


def examined(**changed: object) -> report.Examined:
    found = {"facts": [], "packages": [], "choices": [], "checks": {}, "load": 0.0} | changed
    return report.Examined(**found)  # type: ignore[arg-type]


def test_it_says_what_a_run_would_choose():
    policy = dict(choose_policy(Config(), CPU).reasons)
    found = {choice.name: choice.chosen for choice in choices(CPU)}
    assert {name: found[name] for name in policy} == policy
    assert set(found) == {*policy, "decoder", "optimizer"}


def test_for_programs_it_is_json_and_nothing_else():
    found = json.loads(invoke("--json").stdout)
    assert {fact["name"] for fact in found["facts"]} >= {"disk", "memory", "shared memory", "ranks"}
    assert {choice["name"] for choice in found["choices"]} >= {"attention", "kernels", "decoder", "optimizer"}
    assert found["speed"] == {}


def test_for_people_every_choice_has_its_reason():
    shown = invoke().stdout
    assert all(
        choice.chosen[:60] in shown for choice in choices(CPU if not CUDA else torch.device("cuda", 0))
    )


@pytest.mark.skipif(CUDA, reason="this machine has what is required")
def test_what_is_required_and_not_there_ends_it_with_code_2_and_the_reasons():
    result = invoke("--require", "cuda,triton,dali")
    assert result.exit_code == 2
    assert "cuda: torch sees no GPU" in result.stderr
    assert "triton: reference: no Triton on cpu" in result.stderr
    assert "dali" not in result.stderr
    assert result.stderr.startswith("error: ")


def test_what_is_required_and_there_is_no_error():
    assert invoke("--require", "dali, fused,deepspeed").exit_code == 0


def test_an_unknown_requirement_names_those_there_are_and_so_does_the_help():
    result = invoke("--require", "cdua")
    assert result.exit_code == 2
    text = " ".join(CliRunner().invoke(app, ["doctor", "--help"]).stdout.split())
    for name in requirements(CPU):
        assert name in result.stderr
        assert name in text


def test_a_decoder_that_is_missing_is_found_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    (decoder,) = [choice for choice in choices(CPU) if choice.name == "decoder"]
    assert not decoder.fast
    assert "pip install nvidia-dali" in decoder.advice
    assert "DALI" in requirements(CPU)["dali"]()


def test_packages_are_compared_with_what_the_project_asks_for():
    found = {package.name: package for package in packages()}
    assert found["torch"].fits
    assert found["torch"].extra == ""
    assert found["onnx"].extra == "onnx"
    assert "ruff" not in found
    old = Package("torch", ">=2.11,!=2.13.*", "2.13.0", "")
    assert not old.fits
    (advice,) = examined(packages=[old]).advice
    assert advice == "torch 2.13.0 does not fit: pip install 'torch>=2.11,!=2.13.*'"


def test_extras_that_are_not_there_are_offered_as_one_command_each():
    absent = [Package("a", "", None, "extra"), Package("b", "", None, "extra"), Package("c", "", "1", "else")]
    assert examined(packages=absent).advice == ["pip install 'diffsiam[extra]' adds a, b"]


def test_a_path_slower_than_what_it_replaces_is_told(capsys):
    slow = Check("kernels", 10.0, 20.0, "norms/s", "the reference")
    found = examined(checks={"kernels": slow, "disk": Check("disk", 9.5, 10.0, "MB/s", "enough")})
    report.show(found)
    shown = capsys.readouterr().out
    assert [line.split()[-1] for line in shown.splitlines() if "/s" in line] == ["slow", "ok"]
    assert found.advice == ["kernels: slower than the reference; `make bench` measures it at length"]


def test_a_check_that_fails_is_a_finding_and_not_the_end(monkeypatch, tmp_path):
    def broken(device: torch.device, folder: Path) -> Check:
        raise OSError("no space left")

    monkeypatch.setattr(speed, "CHECKS", (broken,))
    found = report.examine(CPU, tmp_path, quick=False)
    assert found.checks == {"broken": "OSError: no space left"}
    assert "broken: its check fails: OSError: no space left" in found.advice
    assert json.loads(json.dumps(report.to_dict(found)))["speed"]["broken"]["failure"]


def test_a_busy_machine_is_named_beside_its_speeds(capsys):
    check = Check("disk", 9.5, 10.0, "MB/s", "enough")
    report.show(examined(checks={"disk": check}, load=0.5))
    assert capsys.readouterr().err == ""
    report.show(examined(checks={"disk": check}, load=8.0))
    assert "not the speeds of an idle machine" in capsys.readouterr().err


@pytest.mark.parametrize("measure", speed.CHECKS, ids=lambda measure: measure.__name__)
def test_every_check_measures_both_sides(measure, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    check = measure(CPU, tmp_path)
    assert check.name == measure.__name__
    assert min(check.measured, check.expected) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_small_shared_memory_and_a_full_disk_come_with_advice(monkeypatch, tmp_path):
    usage = type("Usage", (), {"total": 64 << 20, "free": 1 << 20})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    advice = {fact.name: fact.advice for fact in machine.facts(tmp_path / "not" / "there")}
    assert "--shm-size" in advice["shared memory"]
    assert "less than" in advice["disk"]
