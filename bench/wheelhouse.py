"""Gather the wheels that a GPU machine without internet may lack: ``python -m bench.wheelhouse``.

For Linux on x86-64 and a Python of choice, whatever machine this runs on. torch, Triton and the CUDA
libraries are taken to be there; DALI (1 GB) is left out. There, install with
``pip install --no-index --no-deps --target DIR wheelhouse/*.whl`` and put DIR on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

LARGEST_MIB = 64
# glibc versions that wheels name; pip matches each tag exactly.
PLATFORMS = ("manylinux1", "manylinux2014", *(f"manylinux_2_{minor}" for minor in (5, 12, 17, 24, 27, 28)))
FROM_SDIST = "deepspeed==0.19.8"  # pyproject.toml pins it; it publishes no wheels
WITH_NEEDS = ("pydantic>=2.10,<3", "typer>=0.15,<1", "rich>=13.9,<16", "hjson", "msgpack", "py-cpuinfo")
ALONE = ("ninja", "einops", "lmdb", "xformers==0.0.35")  # would fetch torch, or need nothing


def pip(*arguments: str, **environment: str) -> None:
    """Run pip of this Python.

    Raises:
        subprocess.CalledProcessError: it failed; its own words are on the screen.
    """
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    subprocess.run(command, check=True, env=os.environ | environment)


def gather(directory: Path, python: str) -> list[Path]:
    """Fill ``directory``, which is emptied first, with wheels for CPython ``python`` ("3.12")."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    into = ["--dest", str(directory), "--only-binary=:all:", "--implementation=cp"]
    into += [f"--python-version={python}", *(f"--platform={name}_x86_64" for name in PLATFORMS)]
    pip("download", *into, *WITH_NEEDS)
    pip("download", "--no-deps", *into, *ALONE)
    # Without its compiled operations it is pure Python, and builds without torch.
    pip("wheel", "--no-deps", f"--wheel-dir={directory}", FROM_SDIST, DS_BUILD_OPS="0")
    return sorted(directory.glob("*.whl"))


def main(arguments: list[str]) -> int:
    """Gather, list, and return the exit code: 1 if the wheels are not what such a machine can take."""
    parser = argparse.ArgumentParser(prog="bench.wheelhouse", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default="3.12", help="of the GPU machine (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("wheelhouse"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    wheels = gather(options.out, options.python)
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:7.2f} MiB  {wheel.name}")
    total = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{total:7.2f} MiB  {len(wheels)} wheels in {options.out}")
    if foreign := [wheel.name for wheel in wheels if not wheel.stem.endswith(("any", "x86_64"))]:
        print(f"error: not for x86-64: {', '.join(foreign)}", file=sys.stderr)
    if total > LARGEST_MIB:
        print(f"error: more than {LARGEST_MIB} MiB", file=sys.stderr)
    return int(bool(foreign) or total > LARGEST_MIB)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
