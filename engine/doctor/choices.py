"""Which implementation a run on this machine gets, and why, as the step and the data path decide it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.config import Config
from engine.doctor.packages import installed
from engine.step import choose_policy


@dataclass(frozen=True)
class Choice:
    """What is chosen for a part of the step.

    Attributes:
        chosen: with its reason.
        fast: whether it is the fast path of this engine.
        advice: how to get the fast path; "" where this is it.
    """

    name: str
    chosen: str
    fast: bool
    advice: str = ""


def choices(device: torch.device) -> list[Choice]:
    """All of them, as a run with ``auto`` everywhere would decide."""
    reasons = dict(choose_policy(Config(), device).reasons)
    cuda = device.type == "cuda"
    precise = reasons["precision"].startswith("bfloat16")
    attends = cuda and "xformers:" not in reasons["attention"]  # which is how one that fails is told
    triton = reasons["kernels"].startswith("triton")
    # Without a GPU there is one piece of advice for all of these, which the missing GPU itself gives.
    return [
        Choice("precision", reasons["precision"], precise),
        Choice("attention", reasons["attention"], attends, _install("xformers", "gpu", attends or not cuda)),
        Choice("kernels", reasons["kernels"], triton, _install("triton", "", triton or not cuda)),
        Choice("networks", reasons["networks"], cuda),
        _decoder(cuda),
        _optimizer(device),
    ]


def requirements(device: torch.device) -> dict[str, Callable[[], str]]:
    """name -> what stands in the way, "" for nothing: what ``--require`` takes."""
    by_name = {choice.name: choice for choice in choices(device)}
    cuda = device.type == "cuda"

    def of(name: str) -> Callable[[], str]:
        choice = by_name[name]
        return lambda: "" if choice.fast else choice.chosen + (f"; {choice.advice}" if choice.advice else "")

    def package(name: str) -> Callable[[], str]:
        return lambda: "" if installed(name) else f"{name} is not installed"

    return {
        "cuda": lambda: "" if cuda else "torch sees no GPU",
        "bf16": of("precision"),
        "xformers": of("attention"),
        "triton": of("kernels"),
        "compile": of("networks"),
        "dali": of("decoder"),
        "fused": of("optimizer"),
        "nccl": lambda: "" if cuda and torch.distributed.is_nccl_available() else "no NCCL without a GPU",
        "deepspeed": package("deepspeed"),
        "tensorboard": package("tensorboard"),
        "wandb": package("wandb"),
    }


def _install(package: str, extra: str, nothing_to_do: bool) -> str:
    if nothing_to_do:
        return ""
    what = f"'diffsiam[{extra}]'" if extra else package
    return f"pip install {what}" + (", it is there and does not work" if installed(package) else "")


def _decoder(cuda: bool) -> Choice:
    version = installed("nvidia-dali-cuda130")
    try:
        import nvidia.dali  # noqa: F401  (a wheel that is there may still not load)
    except Exception as error:
        problem = str(error).splitlines()[0][:80] if version else "not installed"
        chosen = f"none: DALI: {problem}; Rooms and images already at their size train without"
        return Choice("decoder", chosen, False, "pip install nvidia-dali-cuda130==2.4.0")
    where = "on the GPU (mixed decode)" if cuda else "on the CPU: no GPU"
    return Choice("decoder", f"DALI {version} {where}", True)


def _optimizer(device: torch.device) -> Choice:
    version = installed("deepspeed")
    if version is None:
        return Choice("optimizer", "none: DeepSpeed is not installed", False, "pip install deepspeed==0.19.8")
    trial = torch.zeros(2, device=device, requires_grad=True)
    trial.grad = torch.ones_like(trial)
    try:
        torch.optim.Adam([trial], fused=True).step()
    except Exception as error:
        problem = str(error).splitlines()[0][:80]
        return Choice("optimizer", f"fails: fused Adam on {device.type}: {problem}", False, "another torch")
    return Choice(
        "optimizer", f"torch's Adam, fused, in DeepSpeed {version}: one pass over all weights", True
    )
