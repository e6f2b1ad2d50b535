"""Three thousand steps, killed again and again, end where an undisturbed run ends, in constant memory."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from launching import Launcher, Rank, steps_of

from engine.verify import state, state_hash

pytestmark = [pytest.mark.faults, pytest.mark.thorough, pytest.mark.timeout(1500)]
STEPS, KILLS = 3000, 12
# Without the diffusion loss a step takes a quarter of the time; reading, saving and averaging are all there.
OPTIONS = (f"train.steps={STEPS}", "loss.weight=0", "log.every=50", "log.save_every=100")
MEGABYTE = 1 << 20


def resident(process: Rank) -> int:
    """Bytes of a process' memory."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096


def undisturbed(launcher: Launcher, run: Path) -> list[int]:
    """Train straight on; the memory at every hundred steps from 500 on."""
    (process,) = launcher.start(run, *OPTIONS)
    memory: dict[int, int] = {}
    while process.poll() is None:
        if (done := max(steps_of(run), default=0)) >= 500 and done not in memory:
            memory[done] = resident(process) if process.poll() is None else 0
        time.sleep(0.2)
    assert process.wait() == 0, process.output()
    return [bytes for step, bytes in sorted(memory.items()) if step < STEPS]


def supervised(launcher: Launcher, run: Path, draws: random.Random) -> int:
    """Start, kill at a random moment, start again, until it is done; how often it was killed at work."""
    kills = 0
    while True:
        (process,) = launcher.start(run, *OPTIONS)
        if kills < KILLS:
            begun, reached = time.monotonic(), max(steps_of(run), default=0)
            until = reached + draws.choice([100, 200, 300])
            while process.poll() is None and max(steps_of(run), default=0) < until:
                assert time.monotonic() - begun < 300
                time.sleep(0.05)
            time.sleep(draws.uniform(0, 1))
            process.send(signal.SIGKILL)
        code = process.wait(600)
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, process.output()
        kills += 1


def test_three_thousand_steps_under_random_kills_end_as_if_undisturbed_in_constant_memory(launcher, tmp_path):
    memory = undisturbed(launcher, tmp_path / "undisturbed")
    assert len(memory) > 10
    assert max(memory[-5:]) - max(memory[:5]) < 16 * MEGABYTE, memory
    kills = supervised(launcher, tmp_path / "killed", random.Random(5))
    assert kills >= KILLS // 2
    assert state_hash(state(tmp_path / "killed")) == state_hash(state(tmp_path / "undisturbed"))
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == STEPS // 50, "every step is logged once"
