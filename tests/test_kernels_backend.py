"""kernels.backend of the config decides what the operations run, and the run says so."""

import json

import pytest
import torch
from training import TINY

from engine.config_file import load
from engine.errors import UsageError
from engine.step import choose_policy
from kernels import backend

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    yield lambda choice: load(str(path), [f"kernels.backend={choice}"])
    backend.set_backend("auto")


def what_is_said(config) -> str:
    return dict(choose_policy(config, CPU).reasons)["kernels"]


def test_a_cpu_runs_the_reference_and_says_why(config):
    assert what_is_said(config("auto")).startswith("reference: no ")
    assert what_is_said(config("reference")) == "reference: kernels.backend=reference"


def test_the_interpreter_runs_where_it_was_asked_for(config, monkeypatch):
    monkeypatch.setattr(backend, "INTERPRETED", True)
    monkeypatch.setattr(backend, "_INSTALLED", True)
    assert what_is_said(config("triton")).startswith("triton: Triton's interpreter")


def test_triton_on_a_cpu_without_the_interpreter_is_the_user_s_error(config, monkeypatch):
    monkeypatch.setattr(backend, "INTERPRETED", False)
    with pytest.raises(UsageError, match="kernels.backend=triton: .*TRITON_INTERPRET=1"):
        choose_policy(config("triton"), CPU)
