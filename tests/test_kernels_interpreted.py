"""The tests of the kernels in Triton's interpreter, and the mutants that they must notice.

Triton decides at import whether it interprets, so both run in processes of their own; what they print is
shown at the end.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "kernels"
OPERATIONS = ("noise_jump", "subset_mask", "recon_loss", "adagn_silu", "add_adagn_silu", "adagn_silu_cpu")
# Files that share a process, which takes seconds to start.
GROUPS = (
    ("adagn_silu",),
    ("recon_loss", "indexing"),
    ("add_adagn_silu",),
    ("noise_jump", "subset_mask", "refusals", "adagn_silu_cpu"),
    ("registration",),
    ("training",),
)


def interpreted(*arguments: str) -> subprocess.CompletedProcess:
    """Python with ``arguments`` under the interpreter, one thread, output kept."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_every_file_and_operation_is_in_a_group():
    grouped = [name for group in GROUPS for name in group]
    assert sorted(grouped) == sorted(path.stem.removeprefix("test_") for path in FOLDER.glob("test_*.py"))
    assert set(OPERATIONS) < set(grouped)


@pytest.mark.parametrize("group", GROUPS, ids=", ".join)
def test_the_kernels_pass(group, record_property):
    files = [str(FOLDER / f"test_{name}.py") for name in group]
    run = interpreted("-m", "pytest", *files, "-W", "ignore::RuntimeWarning")
    assert run.returncode == 0, run.stdout + run.stderr
    record_property("shown", f"{', '.join(group)}: {run.stdout.strip().splitlines()[-1]}")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_wrong_kernels_are_noticed(operation, record_property):
    run = interpreted("tests/kernels/mutants.py", operation)
    assert run.returncode == 0, run.stdout + run.stderr
    record_property("shown", run.stdout.strip())
