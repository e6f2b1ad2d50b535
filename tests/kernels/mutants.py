"""Wrong versions of every kernel, each of which the tests must notice.

    python tests/kernels/mutants.py noise_jump

A mutant is a copy of the ``kernels`` package in which one piece of text is replaced. The operation's test
file runs against the copy, up to its first failure; an unchanged copy must survive. Each run is a fork of one
process that has imported torch and Triton already.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import numba
import pytest
import torch
import torch._dynamo  # here, so that no fork has to: the operations load it at their first call
import triton  # noqa: F401
from wrong_kernels import MUTANTS

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent.parent / "kernels"
NOT_OURS = 99
os.environ["NUMBA_OPT"] = "0"  # the CPU's loops need not be fast here, but soon
numba.config.reload_config()


def outcome(operation: str, file: str, old: str, new: str, chosen: str = "") -> str:
    """What became of one mutant: "killed", "SURVIVED", or why it is none; ``chosen`` picks tests by name."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(PACKAGE, Path(folder, "kernels"), ignore=shutil.ignore_patterns("__pycache__"))
        source = Path(folder, "kernels", file)
        text = source.read_text()
        if text.count(old) != 1:
            return f"STALE: {text.count(old)} times {old!r} in {file}"
        source.write_text(text.replace(old, new))
        child = os.fork()
        if child == 0:
            os._exit(run_tests(operation, folder, chosen))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {0: "SURVIVED", 1: "killed", NOT_OURS: "NOT IMPORTED"}.get(status, f"BROKEN: exit code {status}")


def run_tests(operation: str, folder: str, chosen: str) -> int:
    """pytest's exit code for the operation's file against the package in ``folder``, without output."""
    sys.path.insert(0, folder)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # loading them takes longer than most mutants live
    import kernels

    if not kernels.__file__.startswith(folder):
        return NOT_OURS
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    return int(pytest.main([str(TESTS / f"test_{operation}.py"), "-x", "-q", "-k", chosen]))


def main(operation: str) -> int:
    """Print every mutant and its fate; 1 if one is not killed."""
    torch.set_num_threads(1)
    control = outcome(operation, "__init__.py", '"""Pure', '"""Very pure', chosen="five")
    if control != "SURVIVED":
        print(f"{operation}: the kernels as they are fail their own tests here ({control})")
        return 1
    fates = [(what, outcome(operation, *rest)) for what, *rest in MUTANTS[operation]]
    for what, fate in fates:
        print(f"{operation}: {fate:8} {what}", flush=True)
    killed = sum(fate == "killed" for _, fate in fates)
    print(f"{operation}: {killed} of {len(fates)} wrong versions noticed")
    return int(killed < len(fates))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
