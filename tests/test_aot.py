"""Every kernel compiles for A100 and H100 on a machine without a GPU, and costs no more than recorded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.aot import EXPECTED, Row, _widths, table

ROOT = Path(__file__).resolve().parent.parent
# Image-sized data flows through these; the others write a few numbers per sample or group.
WIDE_LOADS = ("noise_jump", "subset_mask", "recon_loss", "adagn_silu_stats", "adagn_silu_sums")
WIDE_BOTH = (
    "noise_jump",
    "subset_mask",
    "subset_mask_own",
    "recon_loss",
    "adagn_silu_stats_add",
    "adagn_silu_apply",
    "adagn_silu_dx",
    "adagn_silu_dx_add",
)


def by_name(rows: list[dict]) -> dict[tuple[str, str, str], Row]:
    return {(row["kernel"], row["dtype"], row["arch"]): Row(**row) for row in rows}


def compiled() -> list[dict]:
    """What ``python -m kernels.aot`` says here, in a process that does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "kernels.aot", "--json"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_kernels_spill_nothing_move_images_in_wide_accesses_and_take_no_more_registers_than_recorded():
    pytest.importorskip("triton")
    rows, recorded = by_name(compiled()), by_name(json.loads(EXPECTED.read_text()))
    assert set(rows) == set(recorded)
    assert {name for name, row in rows.items() if row.spill_bytes} == set()

    main = {name: row for name, row in rows.items() if row.kernel in WIDE_LOADS + WIDE_BOTH}
    assert {row.kernel for row in main.values()} == set(WIDE_LOADS + WIDE_BOTH)
    assert {name for name, row in main.items() if row.load_bits < 128 or row.narrow} == set()
    assert {name for name, row in main.items() if row.kernel in WIDE_BOTH and row.store_bits < 128} == set()

    taken = {name: (row.registers, recorded[name].registers) for name, row in rows.items()}
    assert {name: counts for name, counts in taken.items() if counts[0] > counts[1]} == {}


def test_widths_are_read_from_the_disassembly():
    sass = "LDG.E.64.CONSTANT R4, [R2] ; LDG.E.U8 R1, [R2] ; @P0 LDG.E R3 ; STG.E.64 [R6], R4 ; LDGSTS.E.128"
    assert _widths(sass) == (128, 64, 1)


def test_the_table_is_markdown():
    row = Row("noise_jump", "fp32", "sm_90", 62, 0, 0, 128, 128, 0)
    assert table([row]).splitlines()[2] == "| noise_jump | fp32 | sm_90 | 62 | 0 | 0 | 128 | 128 | 0 |"
