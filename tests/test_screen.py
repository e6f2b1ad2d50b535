"""The quiet screen."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from engine import screen

ROOT = Path(__file__).resolve().parent.parent
ROWS = [("device", "cpu: no CUDA device found"), ("attention", "torch SDPA: xformers is for CUDA")]


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_block_gives_each_choice_with_its_reason_on_one_line(capsys):
    screen.block(ROWS, "DiffSiam")
    lines = [text.rstrip() for text in capsys.readouterr().out.splitlines()]
    assert lines == [
        "DiffSiam",
        "device     cpu: no CUDA device found",
        "attention  torch SDPA: xformers is for CUDA",
    ]


def test_text_with_brackets_is_printed_as_it_is(capsys):
    screen.block([("files", "[bold]x[/] and [0, 1)")], "[t]")
    screen.table(["[name]"], [["[/red]"]])
    screen.line("[dim]y")
    out = capsys.readouterr().out
    assert all(text in out for text in ("[bold]x[/] and [0, 1)", "[t]", "[name]", "[/red]", "[dim]y"))


def test_a_table_shows_every_cell(capsys):
    screen.table(["set", "accuracy"], [["CIFAR-10", 0.123456], ["rooms", 1]], "linear probe")
    out = capsys.readouterr().out
    assert all(text in out for text in ("linear probe", "CIFAR-10", "0.1235", "rooms", "accuracy"))


def test_warnings_go_to_standard_error(capsys):
    screen.warn("something [odd]")
    captured = capsys.readouterr()
    assert captured.err == "warning: something [odd]\n"
    assert captured.out == ""


def test_other_ranks_are_silent(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    screen.block(ROWS, "t")
    screen.table(["a"], [["b"]])
    screen.line("x")
    screen.warn("x")
    with screen.Progress(2, 8) as progress:
        progress.report(2, {"loss": 1.0})
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_progress_measures_rate_time_to_go_and_waiting_between_reports(capsys):
    clock = Clock()
    with screen.Progress(100, images=32, clock=clock) as progress:
        for step in range(1, 11):
            with progress.waiting():
                clock.now += 0.05
            clock.now += 0.15
            progress.advance(step)
        speed = progress.report(10, {"loss": 0.5, "loss_by_t": [1.0, None]})
    assert speed == {"images_per_second": pytest.approx(160), "data_wait": pytest.approx(0.25)}
    assert capsys.readouterr().out == "step 10/100  160 images/s  0:18 to go  loss 0.5  data wait 25%\n"


def test_plain_lines_come_every_ten_seconds_and_at_the_end(capsys):
    clock = Clock()
    with screen.Progress(30, images=1, clock=clock) as progress:
        for step in range(1, 31):
            clock.now += 1
            progress.report(step, {})
    steps = [text.split()[1] for text in capsys.readouterr().out.splitlines()]
    assert steps == ["1/30", "11/30", "21/30", "30/30"]


def test_a_resumed_run_counts_only_its_own_steps(capsys):
    clock = Clock()
    with screen.Progress(100, images=10, start=90, clock=clock) as progress:
        clock.now += 5
        assert progress.report(95, {})["images_per_second"] == pytest.approx(10)
    assert "0:05 to go" in capsys.readouterr().out


def test_on_a_terminal_there_is_one_bar_with_the_same_text(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(
        screen, "_console", lambda: Console(file=stream, force_terminal=True, width=160, highlight=False)
    )
    with screen.Progress(10, images=4, clock=Clock()) as progress:
        progress.advance(3)
        progress.report(5, {"loss": 0.25})
        print("warning: above the bar", file=sys.stderr)
    assert "5/10" in stream.getvalue()
    assert "loss 0.25" in stream.getvalue()
    assert "warning: above the bar" in stream.getvalue()


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_who_wants_no_colour_gets_plain_lines_on_a_terminal_too(monkeypatch, variable):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def shown() -> str:
        stream = Terminal()
        with contextlib.redirect_stdout(stream):
            screen.block(ROWS, "DiffSiam")
            with screen.Progress(1, images=1, clock=Clock()) as progress:
                progress.report(1, {})
        return stream.getvalue()

    assert "\x1b" in shown()
    monkeypatch.setenv(*next(iter(variable.items())))
    assert "\x1b" not in shown()
    assert "╭" not in shown()
    assert "step 1/1" in shown()


def test_what_is_muted_comes_back_when_it_fails(capsys):
    with screen.muted():
        print("chatter")

    def fail():
        with screen.muted():
            print("the last words")
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert capsys.readouterr().out == "the last words\n"


def test_importing_it_costs_neither_torch_nor_deepspeed():
    result = run_python(
        "import sys, engine.screen; print({'torch', 'deepspeed', 'numpy'} & set(sys.modules))"
    )
    assert result.stdout == "set()\n", result.stderr


DEEPSPEED = """
from engine.screen import muted, quiet_libraries
quiet_libraries()
import torch, deepspeed
from deepspeed.utils import logger
from engine.parallel import start_ranks, stop_ranks
torch.set_num_threads(1)
model = torch.nn.Linear(4, 4)
autocast = {"enabled": True, "dtype": "bfloat16"}
zero = {"stage": 1, "reduce_bucket_size": 1000}  # by default it takes gigabytes
config = {"train_batch_size": 2, "zero_optimization": zero, "torch_autocast": autocast}
adam = torch.optim.AdamW(model.parameters())
with muted():
    start_ranks()  # without what DeepSpeed would compile first
    engine, *_ = deepspeed.initialize(model=model, optimizer=adam, config=config)
engine.backward(engine(torch.randn(2, 4)).square().mean())
engine.step()
logger.info("chatter")
logger.warning("a real warning")
engine.destroy()
stop_ranks()
"""


def test_deepspeed_says_nothing_but_real_warnings():
    pytest.importorskip("deepspeed")
    result = run_python(DEEPSPEED, DS_ACCELERATOR="cpu")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    (said,) = result.stdout.splitlines()
    assert said.endswith("a real warning")
