"""The Slurm tutorial's job script, run without Slurm: two tasks on this machine, asked to stop half-way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from manual.notebooks import ROOT, TUTORIALS, blocks

PAGE = TUTORIALS / "slurm.md"
ARGUMENTS = (
    "--config configs/quickstart.json data.count=64 train.steps=100000 train.batch_size=8 log.every=1 "
    "log.grid_every=0 report.factors=false report.page=false run.dir=run run.stop_code=75"
)
# Starts the tasks as srun would, asks them to stop when there are metrics, and ends with their code.
SRUN = """
import os, signal, subprocess, sys, time
def start(rank):
    place = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    return subprocess.Popen(sys.argv[1:], env=os.environ | place)
tasks = [start(rank) for rank in range(int(os.environ["SLURM_NTASKS"]))]
end = time.monotonic() + 240
def begun():
    return os.path.exists("run/metrics.jsonl") and os.path.getsize("run/metrics.jsonl")
while not begun() and time.monotonic() < end and all(task.poll() is None for task in tasks):
    time.sleep(0.2)
for task in tasks:
    if task.poll() is None:
        task.send_signal(signal.SIGUSR1)
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """
import sys
if sys.argv[1] == "show":
    print("127.0.0.1")
else:
    open("scontrol", "a").write(" ".join(sys.argv[1:]))
"""


def job_script() -> str:
    """The script as printed, but for what is trained."""
    (body,) = [body for kind, body, _ in blocks(PAGE.read_text()) if kind == "slurm"]
    text, count = re.subn(r'(?m)^export ARGUMENTS=".*"$', f'export ARGUMENTS="{ARGUMENTS}"', body)
    assert count == 1, "the script names its arguments once"
    return text


def run(folder: Path) -> list[str]:
    """What is wrong with the script, which trains on two ranks, saves when asked to stop, is queued again."""
    for name in ("engine", "configs", "kernels", "diffsiam"):
        (folder / name).symlink_to(ROOT / name)
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text(f'export PATH="{binaries}:{Path(sys.executable).parent}:$PATH"\n')
    for name, code in (("srun", SRUN), ("scontrol", SCONTROL)):
        (binaries / name).write_text(f"#!{sys.executable}\n{code}")
        (binaries / name).chmod(0o755)
    (folder / "job.sh").write_text(job_script())
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here", "SLURM_NTASKS": "2"}
    ended = subprocess.run(
        ["bash", "job.sh"],
        cwd=folder,
        env=os.environ | job | {"SLURM_NTASKS_PER_NODE": "2", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    said = (ended.stdout + ended.stderr)[-1500:]
    wrong = []
    if ended.returncode != 75:
        wrong.append(f"tutorials/slurm.md: the job ends with code {ended.returncode}, not 75: {said}")
    if not (folder / "scontrol").is_file() or (folder / "scontrol").read_text() != "requeue 7":
        wrong.append("tutorials/slurm.md: the job is not queued again")
    if "2 ranks" not in said or not list((folder / "run").glob("checkpoints/step_*")):
        wrong.append(f"tutorials/slurm.md: two ranks did not train and save: {said}")
    return wrong
