"""The operations as contests: inputs of a training step, who computes them, and what they must give.

Each contest has the kernel, the eager reference and the compiled reference as contenders; all get the same
inputs, and all are held against the reference in float64 before anybody is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.shapes import Norm, Preset
from bench.traffic import ADAGN_BACKWARD, ADAGN_FORWARD, PHILOX_OPERATIONS, Traffic, eager_traffic, size
from diffsiam.schedule import Schedule
from kernels.adagn_silu import op as adagn_op
from kernels.adagn_silu import ref as adagn_ref
from kernels.noise_jump import ref as noise_ref
from kernels.noise_jump.op import noise_jump
from kernels.recon_loss import ref as loss_ref
from kernels.recon_loss.op import recon_loss
from kernels.subset_mask import ref as mask_ref
from kernels.subset_mask.op import subset_mask

SEED = 2**40 + 9
HALF = torch.bfloat16
ROUNDED = (2.0**-6, 2.0**-7)  # largest and root-mean-square error that bfloat16 results may show
EXACT = (5e-5, 1e-5)

Inputs = dict[str, Tensor]
Results = dict[str, Tensor]
Function = Callable[[Inputs], Results]


@dataclass(frozen=True)
class Contest:
    """One operation at one size.

    Attributes:
        count: how often a training step runs it.
        direction: "forward" or "forward+backward".
        make: inputs on a device, random; with an ``upstream`` gradient where there is a backward pass.
        leaves: names of the inputs whose gradients are asked for.
        kernel, eager: contenders, forward; the compiled one is ``torch.compile(eager)``. The ``upstream``
            gradient is that of their ``out``, ``upstream_sum`` that of their ``sum``.
        exact: the same in float64.
        bounds: largest and root-mean-square error allowed.
        traffic: bytes and operations.
        unlike: contenders that compute something else for the same purpose, without a gate.
    """

    operation: str
    title: str
    count: int
    direction: str
    make: Callable[[torch.device], Inputs]
    leaves: tuple[str, ...]
    kernel: Function
    eager: Function
    exact: Function
    bounds: tuple[float, float]
    traffic: Traffic
    unlike: dict[str, Function]


def run(forward: Function, inputs: Inputs, leaves: tuple[str, ...] = ()) -> Results:
    """What a contender gives for ``inputs``, and the gradients of ``leaves`` as ``d_NAME``."""
    if not leaves:
        with torch.no_grad():
            return forward(inputs)
    held = {name: inputs[name].detach().requires_grad_() for name in leaves}
    results = forward({**inputs, **held})
    ends = {"out": "upstream", "sum": "upstream_sum"}
    used = [results[end] for end, name in ends.items() if name in inputs]
    upstream = [inputs[name].to(results[end].dtype) for end, name in ends.items() if name in inputs]
    gradients = torch.autograd.grad(used, list(held.values()), upstream)
    values = {name: value.detach() for name, value in results.items()}
    return values | {f"d_{name}": g for name, g in zip(leaves, gradients, strict=True)}


def contests(preset: Preset, batch: int, operations: tuple[str, ...]) -> Iterator[Contest]:
    """All contests of a preset, the largest norms first."""
    if "adagn_silu" in operations:
        for norm in sorted(preset.norms, key=lambda n: (-n.px * n.px * n.channels, n)):
            yield _adagn(norm, preset.norms[norm], batch, backward=norm.trained)
    if "noise_jump" in operations:
        yield _noise(preset, batch, HALF)
        yield _noise(preset, batch, torch.float32)
    if "subset_mask" in operations:
        yield _mask(preset, batch)
    if "recon_loss" in operations:
        yield _loss(preset, batch)


def _traffic(
    least: int, kernel: int, flops: float, eager: Function, make: Any, leaves: tuple[str, ...] = ()
) -> Traffic:
    """With the eager reference's bytes counted on inputs without data."""
    inputs = make(torch.device("meta"))
    moved, launches = eager_traffic(partial(run, eager, inputs, leaves))
    return Traffic(least, kernel, moved, int(flops), launches)


# ------------------------------------------------------------------------------------------- adagn_silu


def adagn_inputs(norm: Norm, batch: int, device: torch.device) -> Inputs:
    """bfloat16 images, channels_last; parameters in float32 where they are trained, as under autocast."""
    shape = (batch, norm.channels, norm.px, norm.px)
    parameters = torch.float32 if norm.trained else HALF

    def image(scale: float, offset: float) -> Tensor:
        x = torch.randn(shape, device=device, dtype=HALF) * scale + offset
        return x.contiguous(memory_format=torch.channels_last)

    inputs = {"x": image(3, 2)}
    if norm.adds:
        inputs["residual"] = image(1, 0)
    if norm.trained:
        inputs["upstream"] = image(1, 0)
    if norm.used:
        inputs["upstream_sum"] = image(1, 0)
    for name in ("weight", "bias"):
        inputs[name] = torch.randn(norm.channels, device=device, dtype=parameters)
    for name, there in (("time", norm.time), ("z", norm.z)):
        if there:
            inputs[name] = torch.randn(batch, 2 * norm.channels, device=device, dtype=HALF)
    return inputs


def _adagn(norm: Norm, count: int, batch: int, backward: bool) -> Contest:
    conditions = (name for name in ("time", "z") if getattr(norm, name))
    names = ("x", *(("residual",) if norm.adds else ()), "weight", "bias", *conditions)
    make = partial(adagn_inputs, norm, batch)

    def results(plain: Any, adding: Any, inputs: Inputs) -> Results:
        arguments = {"groups": norm.groups, **{name: inputs[name] for name in names}}
        if not norm.adds:
            return {"out": plain(**arguments)}
        out, total = adding(**arguments)
        return {"out": out, "sum": total}

    kernel = partial(results, adagn_op.adagn_silu, adagn_op.add_adagn_silu)
    exact = partial(results, adagn_ref.adagn_silu, _add_rounded)

    def under_autocast(x: Tensor, **arguments: Any) -> Tensor:
        # A group norm computes and returns float32; the conv behind it casts back.
        return adagn_ref.adagn_silu(x.float() if norm.trained else x, **arguments).to(HALF)

    def add_under_autocast(x: Tensor, residual: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
        total = x + residual
        return under_autocast(total, **arguments), total

    eager = partial(results, under_autocast, add_under_autocast)

    leaves = names if backward else ()
    return Contest(
        "adagn_silu",
        f"{batch} x {norm.title}",
        count,
        "forward+backward" if backward else "forward",
        make,
        leaves,
        kernel,
        eager,
        exact,
        ROUNDED,
        _adagn_traffic(norm, batch, backward, eager, make, leaves),
        {},
    )


def _add_rounded(x: Tensor, residual: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
    """The exact result for a sum as its users see it: rounded, which is no error of the norm."""
    total = x + residual
    total = total + (total.to(HALF).to(total.dtype) - total).detach()
    return adagn_ref.adagn_silu(total, **arguments), total


def _adagn_traffic(
    norm: Norm, batch: int, backward: bool, eager: Function, make: Any, leaves: tuple[str, ...]
) -> Traffic:
    inputs = make(torch.device("meta"))
    image, pixels = size(inputs["x"]), norm.px * norm.px
    small = size(*(value for value in inputs.values() if value.dim() < 4))
    tiles = adagn_op.tiling(norm.channels, pixels)
    partial_sums = 2 * 4 * batch * norm.channels * -(-pixels // (tiles["BLOCK_P"] * tiles["TILES"]))
    least, kernel = 2 * image + small, 3 * image + 2 * small + 5 * partial_sums // 2
    flops = ADAGN_FORWARD
    if backward:
        least += 3 * image + 2 * small
        kernel += 5 * image + 4 * small + 2 * partial_sums
        flops += ADAGN_BACKWARD
    if norm.adds:  # one more is read, and the sum is written; backward, the gradient of its users is read
        passes = 2 + norm.used
        least, kernel, flops = least + passes * image, kernel + passes * image, flops + passes - 1
    return _traffic(least, kernel, flops * inputs["x"].numel(), eager, make, leaves)


# ------------------------------------------------------------------- noise_jump, subset_mask, recon_loss


def _names(batch: int, device: torch.device) -> Inputs:
    """Level, time and position of every sample, and the tables."""
    schedule = Schedule()
    time = torch.arange(batch, device=device) * 29 % 900
    tables = {name: getattr(schedule, name).to(device) for name in ("alpha_bar", "shift", "weight")}
    return {"level": time + 60, "time": time, "positions": torch.arange(batch, device=device), **tables}


def _photos(preset: Preset, batch: int, device: torch.device) -> Tensor:
    shape = (batch, preset.px, preset.px, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=device)


def _noise(preset: Preset, batch: int, dtype: torch.dtype) -> Contest:
    def make(device: torch.device) -> Inputs:
        return {"x_0": _photos(preset, batch, device), **_names(batch, device)}

    def jump(function: Any, dtype: torch.dtype, inputs: Inputs) -> Results:
        names = (inputs["level"], inputs["alpha_bar"], SEED, inputs["positions"])
        return {"out": function(inputs["x_0"], *names, dtype=dtype)[0]}

    def drawn_by_torch(inputs: Inputs) -> Results:
        a = inputs["alpha_bar"][inputs["level"]].float()[:, None, None, None]
        x = inputs["x_0"].permute(0, 3, 1, 2).float() / 127.5 - 1
        return {"out": (a.sqrt() * x + (1 - a).sqrt() * torch.randn_like(x)).to(dtype)}

    n = batch * 3 * preset.px**2
    moved = n * (1 + dtype.itemsize)
    eager = partial(jump, noise_ref.noise_jump, dtype)
    return Contest(
        "noise_jump",
        f"{batch} x 3 x {preset.px}² to {str(dtype).removeprefix('torch.')}",
        int(dtype == torch.float32),
        "forward",
        make,
        (),
        partial(jump, noise_jump, dtype),
        eager,
        partial(jump, noise_ref.noise_jump, torch.float64),
        ROUNDED if dtype == HALF else EXACT,
        _traffic(moved, moved, n * (PHILOX_OPERATIONS + 5), eager, make),
        {"torch_randn": drawn_by_torch},
    )


def _mask(preset: Preset, batch: int) -> Contest:
    def make(device: torch.device) -> Inputs:
        z = torch.randn(batch, preset.dim, device=device)
        subset_of = torch.arange(preset.dim, device=device) * preset.subsets // preset.dim + 1
        k = torch.arange(batch, device=device) * 5 % preset.subsets + 1
        return {"z": z, "k": k, "subset_of": subset_of, "upstream": torch.randn_like(z)}

    def mask(function: Any, inputs: Inputs) -> Results:
        return {"out": function(inputs["z"], inputs["k"], inputs["subset_of"], "hierarchical", True)}

    moved, eager = 4 * 4 * batch * preset.dim, partial(mask, mask_ref.subset_mask)
    return Contest(
        "subset_mask",
        f"{batch} x {preset.dim}, {preset.subsets} subsets, detached",
        1,
        "forward+backward",
        make,
        ("z",),
        partial(mask, subset_mask),
        eager,
        eager,
        (0.0, 0.0),
        _traffic(moved, moved, 4 * batch * preset.dim, eager, make, ("z",)),
        {},
    )


def _loss(preset: Preset, batch: int) -> Contest:
    def make(device: torch.device) -> Inputs:
        shape = (batch, 3, preset.px, preset.px)
        inputs = {"x_0": _photos(preset, batch, device), **_names(batch, device)}
        for name in ("eps_theta", "g"):
            x = torch.randn(shape, device=device, dtype=HALF)
            inputs[name] = x.contiguous(memory_format=torch.channels_last)
        return {**inputs, "upstream": torch.rand(batch, device=device) + 0.5}

    def loss(function: Any, inputs: Inputs) -> Results:
        names = [inputs[name] for name in ("level", "time", "alpha_bar", "shift", "weight")]
        images = (inputs["x_0"], inputs["eps_theta"], inputs["g"])
        values = function(*images, *names, SEED, inputs["positions"])._asdict()
        return {"out": values.pop("loss"), **values}

    n = batch * 3 * preset.px**2
    eager = partial(loss, loss_ref.recon_loss)
    # Bytes of x_0, two predictions and the gradient, which ours writes forward and scales backward.
    return Contest(
        "recon_loss",
        f"{batch} x 3 x {preset.px}²",
        1,
        "forward+backward",
        make,
        ("g",),
        partial(loss, recon_loss),
        eager,
        eager,
        ROUNDED,
        _traffic(n * 7, n * 11, n * (PHILOX_OPERATIONS + 14), eager, make, ("g",)),
        {},
    )
