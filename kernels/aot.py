"""Compile every kernel for A100 and H100 without a GPU, and read what the machine code costs.

    python -m kernels.aot [--json]

Each row is a kernel as the engine launches it on its main path (128-px images; 128 channels for adagn_silu):
registers a thread, bytes spilled, shared memory, the widest access to global memory and
the number of accesses below 32 bits (a main path has none). Widths come from the disassembly, registers from
the binary, spills from ptxas: Triton's wheel brings the tools.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 90)
EXPECTED = Path(__file__).with_name("aot_expected.json")
CHANNELS, PIXELS, GROUPS, DIM = 128, 128 * 128, 32, 512
ACCESS = re.compile(r"\b(LDG|STG|LDGSTS)\.E((?:\.\w+)*)")


@dataclass(frozen=True)
class Case:
    """One kernel with the types and constants of one launch."""

    kernel: str
    dtype: str
    function: Any
    pointers: dict[str, str]  # argument -> type it points to
    constants: dict[str, Any]
    warps: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """What one compilation gave. Widths in bits; ``narrow`` counts accesses below 32 bits."""

    kernel: str
    dtype: str
    arch: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    load_bits: int
    store_bits: int
    narrow: int


def cases() -> Iterator[Case]:
    """Every kernel in every dtype of the main path."""
    for dtype in ("bf16", "fp32"):
        yield from _image_cases(dtype)
        yield from _mask_cases(dtype)
        yield from _adagn_cases(dtype)


def _image_cases(dtype: str) -> Iterator[Case]:
    import triton.language as tl

    from kernels.noise_jump import op as noise_jump
    from kernels.noise_jump.kernel import _noise_jump_kernel
    from kernels.philox import STREAM_NOISE
    from kernels.recon_loss import op as recon_loss
    from kernels.recon_loss.kernel import _recon_loss_kernel, _recon_loss_sum_kernel

    i64 = dict.fromkeys(("level_ptr", "time_ptr", "seed_ptr", "position_ptr"), "i64")
    tables = dict.fromkeys(("alpha_bar_ptr", "shift_ptr", "weight_ptr"), "fp64")
    common = {"CHANNELS": 3, "X_PACKED": True, "STREAM": STREAM_NOISE}
    fusion = {"enable_fp_fusion": False}
    for source in ("u8", dtype):
        pointers = {"x_0_ptr": source, "out_ptr": dtype, "eps_ptr": "fp32", **i64, **tables}
        constants = {
            **common,
            "FROM_BYTES": source == "u8",
            "OUT_PACKED": True,
            "RETURN_EPS": False,
            "BLOCK": noise_jump.BLOCK,
        }
        yield Case(
            "noise_jump",
            f"{source}->{dtype}",
            _noise_jump_kernel,
            pointers,
            constants,
            noise_jump.WARPS,
            fusion,
        )

    images = dict.fromkeys(("eps_theta_ptr", "g_ptr", "gradient_ptr"), dtype)
    packed = {"EPS_THETA_PACKED": True, "G_PACKED": True}
    for with_gradient in (True, False):
        pointers = {"x_0_ptr": "u8", "partial_ptr": "fp32", **images, **i64, **tables}
        constants = {
            **common,
            **packed,
            "FROM_BYTES": True,
            "WITH_GRADIENT": with_gradient,
            "BLOCK": recon_loss.BLOCK,
            "ACC": tl.float32,
        }
        name = "recon_loss" if with_gradient else "recon_loss_value"
        yield Case(name, dtype, _recon_loss_kernel, pointers, constants, recon_loss.WARPS, fusion)
    if dtype == "fp32":
        values = dict.fromkeys(
            ("partial_ptr", "loss_ptr", "frozen_ptr", "x_0_error_ptr", "x_0_error_frozen_ptr"), "fp32"
        )
        constants = {"STEPS": 1, "BLOCK": recon_loss.SUM_BLOCK, "ACC": tl.float32}
        yield Case("recon_loss_sum", dtype, _recon_loss_sum_kernel, {**values, **i64, **tables}, constants, 1)


def _mask_cases(dtype: str) -> Iterator[Case]:
    from kernels.subset_mask.kernel import _subset_mask_kernel
    from kernels.subset_mask.op import launch_shape

    block, warps = launch_shape(DIM)
    pointers = {"z_ptr": dtype, "out_ptr": dtype, "k_ptr": "i64", "subset_of_ptr": "i64"}
    for own in (False, True):
        name = "subset_mask_own" if own else "subset_mask"
        yield Case(name, dtype, _subset_mask_kernel, pointers, {"OWN": own, "BLOCK": block}, warps)


def _adagn_cases(dtype: str) -> Iterator[Case]:
    import triton.language as tl

    from kernels.adagn_silu import kernel, op

    tile = {"C": CHANNELS, "ACC": tl.float32, **op.tiling(CHANNELS, PIXELS)}
    width = CHANNELS // GROUPS
    chunk = tile["BLOCK_P"] * tile["TILES"]
    merging = op.merging(PIXELS // chunk, width)
    merge_warps = merging.pop("num_warps")
    merge = {"C": CHANNELS, "WIDTH": width, **merging, "ACC": tl.float32}
    images = dict.fromkeys(
        ("x_ptr", "y_ptr", "dy_ptr", "dx_ptr", "time_ptr", "z_ptr", "dtime_ptr", "dz_ptr"), dtype
    )
    images |= dict.fromkeys(("residual_ptr", "sum_ptr", "dsum_ptr"), dtype)
    partial = ("mean_ptr", "m_2_ptr", "partial_mean_ptr", "partial_m_2_ptr", "rstd_ptr", "s_1_ptr", "s_2_ptr")
    results = ("weight_ptr", "bias_ptr", "dweight_ptr", "dbias_ptr", "mean_1_ptr", "mean_2_ptr")
    pointers = {**images, **dict.fromkeys((*partial, *results), "fp32")}
    both = {"HAS_TIME": True, "HAS_Z": True}
    whole = {**tile, **both, "WIDTH": width}
    stages = (
        ("stats", kernel._adagn_stats_kernel, {**tile, "HAS_RESIDUAL": False}, op.WARPS),
        ("stats_add", kernel._adagn_stats_kernel, {**tile, "HAS_RESIDUAL": True}, op.WARPS),
        ("merge", kernel._adagn_merge_kernel, {**merge, "CHUNK": chunk, "EPS": 1e-5}, merge_warps),
        ("apply", kernel._adagn_apply_kernel, whole, op.WARPS),
        ("sums", kernel._adagn_sums_kernel, whole, op.WARPS),
        ("reduce", kernel._adagn_reduce_kernel, {**merge, **both}, merge_warps),
        ("dx", kernel._adagn_dx_kernel, {**whole, "HAS_DSUM": False}, op.WARPS),
        ("dx_add", kernel._adagn_dx_kernel, {**whole, "HAS_DSUM": True}, op.WARPS),
    )
    for name, function, constants, warps in stages:
        yield Case(f"adagn_silu_{name}", dtype, function, pointers, constants, warps)


def compile_case(case: Case, arch: int) -> Row:
    """Compile for one architecture and read the result.

    Raises:
        RuntimeError: Triton interprets in this process, so that there is nothing to compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("kernels.aot: unset TRITON_INTERPRET, nothing is compiled under it")
    names = case.function.arg_names
    signature, divisible = {}, []
    for name in names:
        if name in case.constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*" + case.pointers[name]
            divisible.append(name)
        else:
            signature[name] = "i32"
            if name not in ("blocks", "chunks", "eps_theta_channel", "eps_theta_pixel"):
                divisible.append(name)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = ASTSource(fn=case.function, signature=signature, constexprs=case.constants, attrs=attributes)
    options = {"num_warps": case.warps, "enable_fp_fusion": True, **case.options}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    machine_code = _disassembled(compiled.asm["cubin"])
    loads, stores, narrow = _widths(machine_code)
    registers = int(re.findall(r"REG:(\d+)", machine_code)[0])
    spilled = _spills(compiled.asm["ptx"], arch)
    return Row(
        case.kernel,
        case.dtype,
        f"sm_{arch}",
        registers,
        spilled,
        compiled.metadata.shared,
        loads,
        stores,
        narrow,
    )


def _widths(sass: str) -> tuple[int, int, int]:
    """Widest load, widest store, and the number of accesses below 32 bits."""
    loads, stores, narrow = [0], [0], 0
    for kind, modifiers in ACCESS.findall(sass):
        bits = next(
            (int(m.lstrip("US")) for m in modifiers.split(".") if re.fullmatch(r"[US]?(8|16|64|128)", m)), 32
        )
        (stores if kind == "STG" else loads).append(bits)
        narrow += bits < 32
    return max(loads), max(stores), narrow


def _spills(ptx: str, arch: int) -> int:
    from triton.backends.nvidia.compiler import get_ptxas

    found = get_ptxas(arch)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(ptx)
        target = f"sm_{arch}a" if arch == 90 else f"sm_{arch}"
        command = [found.path, "-v", f"--gpu-name={target}", str(file), "-o", os.devnull]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(int(count) for count in re.findall(r"(\d+) bytes spill", report))


def _disassembled(binary: bytes) -> str:
    """Machine code and resources of a cubin."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def table(rows: list[Row]) -> str:
    """Rows as Markdown."""
    names = list(asdict(rows[0]))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(value) for value in asdict(row).values()) + " |" for row in rows]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the table, or the rows as JSON."""
    parser = argparse.ArgumentParser(prog="kernels.aot", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="a list of rows")
    options = parser.parse_args(arguments)
    rows = [compile_case(case, arch) for case in cases() for arch in ARCHITECTURES]
    print(json.dumps([asdict(row) for row in rows], indent=1) if options.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
