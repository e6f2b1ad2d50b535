"""Being asked to stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.preempt import Preemption
from engine.processes import REQUESTS

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("number", REQUESTS)
def test_each_signal_sets_the_flag_says_one_line_and_does_nothing_else(number, capfd):
    with Preemption() as preemption:
        assert not preemption.requested()
        assert not preemption.agreed()
        os.kill(os.getpid(), number)
        assert preemption.requested()
        assert preemption.agreed()
    said = capfd.readouterr().err.strip()
    assert said.startswith(f"{number.name}: stopping after this step, saving")
    assert "\n" not in said


def test_only_rank_0_speaks(capfd, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.requested()
    assert capfd.readouterr().err == ""


def test_a_request_to_any_rank_is_agreed_by_all():
    with Preemption() as preemption:
        assert not preemption.agreed(lambda flag: flag + 0)
        assert preemption.agreed(lambda flag: flag + 1)  # the other rank's
        assert not preemption.requested()


def test_signals_that_arrive_together_are_one_request():
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.requested()


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in REQUESTS]
    with Preemption():
        assert [signal.getsignal(number) for number in REQUESTS] != before
    assert [signal.getsignal(number) for number in REQUESTS] == before


@pytest.mark.thorough
def test_a_second_request_ends_the_process_at_once():
    code = (
        "import time\nfrom engine import preempt\npreempt.TOGETHER_SECONDS = 0.1\n"
        "with preempt.Preemption():\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
        assert time.monotonic() - begun < 1
