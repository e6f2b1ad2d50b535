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
OPERATIONS = ("noise_jump", "subset_mask", "recon_loss", "adagn_silu")
FILES = {
    path.stem.removeprefix("test_"): path for path in sorted((ROOT / "tests" / "kernels").glob("test_*.py"))
}


def interpreted(*arguments: str) -> subprocess.CompletedProcess:
    """Python with ``arguments`` under the interpreter, one thread, output kept."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_every_operation_has_its_file():
    assert set(OPERATIONS) < set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_the_kernels_pass(name, record_property):
    run = interpreted("-m", "pytest", str(FILES[name]), "-q", "-W", "ignore::RuntimeWarning", "--no-header")
    assert run.returncode == 0, run.stdout + run.stderr
    record_property("shown", f"{name}: {run.stdout.strip().splitlines()[-1]}")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_wrong_kernels_are_noticed(operation, record_property):
    run = interpreted("tests/kernels/mutants.py", operation)
    assert run.returncode == 0, run.stdout + run.stderr
    record_property("shown", run.stdout.strip())
