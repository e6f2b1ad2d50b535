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
    "adagn_silu_apply",
    "adagn_silu_dx",
)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "kernels.aot", "--json"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [Row(**row) for row in json.loads(run.stdout)]


def name_of(row: Row) -> str:
    return f"{row.kernel} {row.dtype} {row.arch}"


def test_nothing_spills(rows):
    assert {name_of(row) for row in rows if row.spill_bytes} == set()


def test_images_move_in_128_bit_accesses_and_never_below_32(rows):
    main = [row for row in rows if row.kernel in WIDE_LOADS + WIDE_BOTH]
    assert {row.kernel for row in main} == set(WIDE_LOADS + WIDE_BOTH)
    assert {name_of(row) for row in main if row.load_bits < 128 or row.narrow} == set()
    assert {name_of(row) for row in main if row.kernel in WIDE_BOTH and row.store_bits < 128} == set()


def test_no_kernel_takes_more_registers_than_recorded(rows):
    recorded = {name_of(row): row for row in (Row(**row) for row in json.loads(EXPECTED.read_text()))}
    assert {name_of(row) for row in rows} == set(recorded)
    grown = {
        name_of(row): (row.registers, recorded[name_of(row)].registers)
        for row in rows
        if row.registers > recorded[name_of(row)].registers
    }
    assert grown == {}


def test_widths_are_read_from_the_disassembly():
    sass = "LDG.E.64.CONSTANT R4, [R2] ; LDG.E.U8 R1, [R2] ; @P0 LDG.E R3 ; STG.E.64 [R6], R4 ; LDGSTS.E.128"
    assert _widths(sass) == (128, 64, 1)


def test_the_table_is_markdown():
    row = Row("noise_jump", "fp32", "sm_90", 62, 0, 0, 128, 128, 0)
    assert table([row]).splitlines()[2] == "| noise_jump | fp32 | sm_90 | 62 | 0 | 0 | 128 | 128 | 0 |"
