"""The quiet screen: one block that says what will run, one bar, and nothing else unless something is wrong.

Rank 0 speaks, the others are silent (``RANK``, as launchers set it). Where standard output is no terminal, or
``NO_COLOR`` is set, or the terminal is a dumb one, there are no colours and no frames, and the bar becomes a
plain line every ten seconds or so.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 140


def is_speaker() -> bool:
    """Whether this process is the one that writes to the screen."""
    return int(os.environ.get("RANK", "0")) == 0


def block(rows: Sequence[tuple[str, str]], title: str) -> None:
    """Print what will run: rows of (what, "choice: reason").

    As ("attention", "torch SDPA: xformers is not installed").
    """
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for what, text in rows:
        grid.add_row(Text(what), Text(text))
    console = _console()
    if console.is_terminal:
        console.print(Panel(grid, title=Text(title), title_align="left", expand=False, box=box.ROUNDED))
    else:
        console.print(Text(title), grid, sep="\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """Print rows of results; numbers are set to the right, floats to four significant digits."""
    body = Table(title=Text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD)
    for i, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        body.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        body.add_row(*(Text(_short(cell)) for cell in row))
    _console().print(body)


def line(text: str) -> None:
    """Print one line as it is."""
    _console().print(Text(text), soft_wrap=True)


def warn(text: str) -> None:
    """Print one warning to standard error, above the bar if there is one (the bar redirects it)."""
    if is_speaker():
        print(f"warning: {text}", file=sys.stderr, flush=True)


class Progress:
    """The bar, or plain lines, of a training run; a context manager.

    The rate is taken from one :meth:`report` to the next, where the loop has just read its metrics and so
    waited for the device: between them the host runs ahead and its clock says nothing.

    Args:
        total: steps of the whole run.
        images: images per step, over all ranks.
        start: steps done before.
        show: names of metrics to print, in this order; None for all single numbers.
        plain_seconds: least time between two plain lines; the first and the last are always printed.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        total: int,
        images: int,
        start: int = 0,
        show: Sequence[str] | None = None,
        plain_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._images, self._show, self._clock = total, images, show, clock
        self._plain_seconds, self._printed = plain_seconds, -float("inf")
        self._step, self._since, self._waited = start, clock(), 0.0
        self._seconds_per_step = 0.0
        self._console = _console()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal and not self._console.quiet:
            columns = (
                BarColumn(24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.description}"),
            )
            self._bar = Bar(*columns, console=self._console, refresh_per_second=4)
            self._task = self._bar.add_task("starting", total=self._total, completed=self._step)
            self._bar.start()
        self._since = self._clock()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around ``next(data)``: what it takes is counted as waiting for data."""
        begun = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - begun

    def advance(self, step: int) -> None:
        """Move the bar to ``step`` steps done; cheap, for every step."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=step)

    def report(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Show the metrics of ``step``.

        Returns:
            ``images_per_second`` and ``data_wait`` (share of time, 0..1) since the last call, to be logged.
        """
        now = self._clock()
        seconds, steps = max(now - self._since, 1e-9), step - self._step
        speed = {
            "images_per_second": steps * self._images / seconds,
            "data_wait": min(self._waited / seconds, 1.0),
        }
        self._note_pace(seconds / steps if steps else 0.0)
        self._step, self._since, self._waited = step, now, 0.0

        text = self._describe(step, speed, metrics)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif now - self._printed >= self._plain_seconds or step >= self._total:
            self._printed = now
            self._console.print(Text(f"step {step}/{self._total}  {text}"), soft_wrap=True)
        return speed

    def _note_pace(self, seconds_per_step: float) -> None:
        # Averaged, so that an evaluation between two reports does not throw the time to go about.
        first = self._seconds_per_step == 0.0
        self._seconds_per_step += (1.0 if first else 0.3) * (seconds_per_step - self._seconds_per_step)

    def _describe(self, step: int, speed: Mapping[str, float], metrics: Mapping[str, Any]) -> str:
        names = self._show if self._show is not None else list(metrics)
        values = [
            f"{name} {_short(metrics[name])}" for name in names if isinstance(metrics.get(name), int | float)
        ]
        to_go = _duration((self._total - step) * self._seconds_per_step)
        rate = f"{_short(speed['images_per_second'])} images/s"
        return "  ".join((rate, f"{to_go} to go", *values, f"data wait {speed['data_wait']:.0%}"))


@contextlib.contextmanager
def counting(total: int, what: str, plain_seconds: float = 10.0) -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` of something; gives the function that is told how many more are done.

    Where standard output is no terminal it is a line every ten seconds or so.
    """
    console, done, begun = _console(), 0, time.monotonic()
    printed = begun
    bar: Bar | None = None
    if console.is_terminal and not console.quiet:
        columns = (TextColumn(what), BarColumn(24), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
        bar = Bar(*columns, TimeRemainingColumn(), console=console, transient=True)
        task = bar.add_task(what, total=total)

    def tell(more: int) -> None:
        nonlocal done, printed
        done += more
        now = time.monotonic()
        if bar:
            bar.update(task, completed=done)
        elif now - printed >= plain_seconds:
            printed = now
            to_go = _duration((now - begun) / done * (total - done))
            console.print(Text(f"{what} {done}/{total}  {to_go} to go"), soft_wrap=True)

    with bar or contextlib.nullcontext():
        yield tell


NEEDLESS = {
    # Said on every machine that has a CUDA toolkit and no GPU; the first block names the device anyway.
    "torch.utils.cpp_extension": "No CUDA runtime",
    # Of SGD, for which bench.zero holds every stage to the weights of one rank.
    "DeepSpeed": "ZeRO with an untested optimizer",
}


def quiet_libraries() -> None:
    """Keep the chatter of DeepSpeed, torch and DALI to warnings, and on ranks above 0 to errors.

    Call it before they are imported.
    """
    level = logging.WARNING if is_speaker() else logging.ERROR
    for name in ("DeepSpeed", "torch", "torch.distributed", "nvidia.dali", "xformers"):
        logging.getLogger(name).setLevel(level)
    for name, needless in NEEDLESS.items():
        logging.getLogger(name).addFilter(partial(_is_needed, needless))
    if not is_speaker():
        warnings.simplefilter("ignore")  # rank 0 gives the same ones
    # DeepSpeed calls torch's collectives by names that torch is about to rename.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch\.distributed|deepspeed)\b")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorBoard loads TensorFlow where it is installed


def _is_needed(needless: str, record: logging.LogRecord) -> bool:
    return needless not in record.getMessage()


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Drop what the block prints to standard output, unless it raises.

    For DeepSpeed's set-up, whose bare prints have no level. Import deepspeed before: its logger keeps the
    stream that it finds.
    """
    held = io.StringIO()
    try:
        with contextlib.redirect_stdout(held):
            yield
    except BaseException:
        sys.stdout.write(held.getvalue())
        raise


def _console() -> Console:
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    console = Console(highlight=False, quiet=not is_speaker(), force_terminal=False if plain else None)
    if not console.is_terminal and not sys.stdout.isatty():
        console.width = PLAIN_WIDTH  # a file has no width of its own
    return console


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
