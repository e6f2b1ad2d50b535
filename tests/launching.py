"""Ranks of a run as processes that start in a moment, and die only by our hand or their own.

A process with torch and DeepSpeed loaded forks one child per rank; so a start costs what the run builds, not
what it imports. It ends its own children, by their pids, when they exceed their time, and with itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from training import ROOT, environment, write_config

WATCHDOG_SECONDS = 240.0  # on a machine that others use as well

# Small enough for a hundred runs: a step takes some tens of milliseconds of one core.
TOY = {
    "method": "diffsiam",
    "data": {"source": "rooms", "px": 16, "count": 40, "threads": 1},
    "frozen": {"weights": "random", "base_channels": 4, "channel_mult": [1], "blocks": 1, "attention": []},
    "encoder": {"arch": "resnet10", "width": 8, "dim": 16},
    "subsets": {"n": 4},
    "decoder": {"init": "frozen", "dropout": 0.1},
    "simsiam": {"projector": "mlp2", "dim": 8, "hidden": 4},
    "train": {"steps": 12, "batch_size": 4, "precision": "fp32", "ema_warmup": True},
    "optimizer": {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 3},
    "log": {"every": 1, "grid_every": 0, "save_every": 4, "tensorboard": False, "gradnorm_every": 0},
}

SERVER = """
import ctypes, json, os, signal, sys
sys.path.insert(0, {root!r})
import torch, torch._dynamo
torch.set_num_threads(1)
import deepspeed
import engine.run, engine.train, engine.verify, engine.replay
from engine.data import graph
from engine import checkpoint
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # with pytest, however that ends
print("ready", flush=True)

def serve(request):
    pid = os.fork()
    if pid:
        return pid
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    out = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0), os.dup2(out, 1), os.dup2(out, 2)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    code = 70
    try:
        exec(request["before"], {{}})
        engine.train.leave(engine.train.main(request["arguments"]))
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)

children = set()
for line in sys.stdin:
    request = json.loads(line)
    if "arguments" in request:
        answer = serve(request)
        children.add(answer)
    elif request["pid"] in children:
        found, status = os.waitpid(request["pid"], os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if found else None
        if found:
            children.discard(found)
    else:
        answer = "not mine"
    print(json.dumps([request["number"], answer]), flush=True)
for pid in children:
    os.kill(pid, signal.SIGKILL)
os._exit(0)
"""


@dataclass
class Rank:
    """One process: its pid, where it writes, and how it ended."""

    pid: int
    out: Path
    launcher: Launcher
    code: int | None = None
    started: float = field(default_factory=time.monotonic)

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self.launcher.ask({"pid": self.pid})
        return self.code

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def output(self) -> str:
        return self.out.read_text(errors="replace") if self.out.exists() else ""

    def wait(self, seconds: float = WATCHDOG_SECONDS) -> int:
        """The exit code; a process that takes longer is ended, and that is a failure of the test."""
        until = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                self.send(signal.SIGKILL)
                raise AssertionError(f"no end after {seconds:g} s\n{self.output()[-3000:]}")
            time.sleep(0.02)
        return code

    def wait_for(self, text: str, seconds: float = WATCHDOG_SECONDS) -> None:
        """Until it has written ``text``."""
        until = time.monotonic() + seconds
        while text not in self.output():
            assert self.poll() is None, f"ended with {self.code} before {text!r}\n{self.output()[-3000:]}"
            assert time.monotonic() < until, f"no {text!r} after {seconds:g} s\n{self.output()[-3000:]}"
            time.sleep(0.02)


class Launcher:
    """Starts ranks of engine/train.py; one a session."""

    def __init__(self, folder: Path):
        self.folder, self._ranks, self._count, self._asked = folder, [], 0, 0
        self.config = write_config(folder / "toy.json", TOY)
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER.format(root=str(ROOT))],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._server.stdout.readline() == "ready\n"

    def ask(self, request: dict) -> int | None:
        self._asked += 1
        self._server.stdin.write(json.dumps(request | {"number": self._asked}) + "\n")
        self._server.stdin.flush()
        while True:  # a test that was broken off may not have heard its answer
            number, answer = json.loads(self._server.stdout.readline())
            if number == self._asked:
                return answer

    def start(
        self,
        run: Path,
        *overrides: str,
        world: int = 1,
        fault: str = "",
        before: str = "",
        cwd: Path = ROOT,
        config: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> list[Rank]:
        """``world`` ranks of the toy task in ``run``; ``before``: code that each executes first."""
        arguments = ["--config", str(config or self.config), f"run.dir={run}", *overrides]
        shared = environment(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), **(env or {}))
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        if fault:
            shared["DIFFSIAM_FAULT"] = fault
        started = []
        for rank in range(world):
            self._count += 1
            out = self.folder / f"out_{self._count}.txt"
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            request = {"out": str(out), "env": shared | place, "cwd": str(cwd), "before": before}
            pid = self.ask(request | {"arguments": arguments})
            started.append(Rank(pid, out, self))
        self._ranks += started
        return started

    def run(self, run: Path, *overrides: str, code: int = 0, **options) -> str:
        """Outputs of all ranks of a run that must end with ``code``."""
        ranks = self.start(run, *overrides, **options)
        codes = [rank.wait() for rank in ranks]
        said = "\n".join(rank.output() for rank in ranks)
        assert codes == [code] * len(codes), f"{codes}\n{said[-4000:]}"
        return said

    def close(self) -> None:
        """End what is left, our own children only."""
        for rank in self._ranks:
            rank.send(signal.SIGKILL)
            with contextlib.suppress(AssertionError):
                rank.wait(5)
        self._server.stdin.close()
        self._server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def launching(folder: Path) -> Iterator[Launcher]:
    launcher = Launcher(folder)
    try:
        yield launcher
    finally:
        launcher.close()


def steps_of(run: Path) -> list[int]:
    """Steps of the checkpoints that lie there, damaged ones too."""
    return sorted(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*"))
