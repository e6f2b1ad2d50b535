"""Training statistics that cost the device no wait, and the files they are written to."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from engine import screen
from engine.errors import UsageError

Value = float | list[float | None]
Record = dict[str, Value]


class Metrics:
    """Means of what a step reports, summed on the device in float64 and read by :meth:`flush` in one copy.

    What is added waits until :meth:`settle` says whether its step counts. Between two flushes nothing waits
    for the device, so the host can run ahead of it. On several ranks every rank adds the same names.
    """

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        self._sums: dict[str, Tensor] = {}  # (2,): of values, of counts
        self._bins: dict[str, Tensor] = {}
        self._added: list[tuple[str, Tensor, int]] = []
        self._added_by: list[tuple[str, Tensor, Tensor, int]] = []

    def add(self, name: str, value: Tensor, count: int = 1) -> None:
        """Add a mean over ``count`` samples: a 0-d tensor on this device, of any dtype."""
        self._added.append((name, value.detach(), count))

    def add_by(self, name: str, bins: Tensor, values: Tensor, n_bins: int) -> None:
        """Add each of ``values`` (B,) to its bin of ``bins`` (B,), int64 in 0..n_bins-1: a mean per bin."""
        self._added_by.append((name, bins, values.detach(), n_bins))

    @torch.no_grad()
    def settle(self, skipped: Tensor | None = None) -> None:
        """Count what was added since the last call, or forget it where ``skipped`` (0-d, on this device) is
        not 0: a step whose update is left out must not spoil the means.
        """
        for name, value, count in self._added:
            if name not in self._sums:
                self._sums[name] = torch.zeros(2, dtype=torch.float64, device=self.device)
            term = torch.stack((value.double(), torch.ones_like(value, dtype=torch.float64)))
            self._sums[name].add_(_unless(skipped, term), alpha=count)
        for name, bins, values, n_bins in self._added_by:
            if name not in self._bins:
                self._bins[name] = torch.zeros(2, n_bins, dtype=torch.float64, device=self.device)
            values = values.double()
            terms = torch.stack((values, torch.ones_like(values)))
            self._bins[name].index_add_(1, bins, _unless(skipped, terms))
        self._added, self._added_by = [], []

    @torch.no_grad()
    def flush(self, reduce: Callable[[Tensor], Tensor] | None = None) -> Record:
        """Return the means since the last flush and start again: the one place that waits for the device.

        Args:
            reduce: sums a float64 tensor (m,) on this device over the ranks; None for one rank.

        Returns:
            name -> mean, weighted by count; for :meth:`add_by` name -> mean of each bin, None where a bin was
            empty. Names that nothing was added to are left out.
        """
        self.settle()
        names, binned = sorted(self._sums), sorted(self._bins)
        if not names and not binned:
            return {}
        parts = [*(self._sums[name] for name in names), *(self._bins[name].flatten() for name in binned)]
        packed = torch.cat(parts)
        numbers = (reduce(packed) if reduce else packed).tolist()

        torch._foreach_zero_([*self._sums.values(), *self._bins.values()])
        return self._unpack(numbers, names, binned)

    def _unpack(self, numbers: list[float], names: list[str], binned: list[str]) -> Record:
        record: Record = {}
        at = 2 * len(names)
        for i, name in enumerate(names):
            if count := numbers[2 * i + 1]:
                record[name] = numbers[2 * i] / count
        for name in binned:
            n = self._bins[name].shape[1]
            sums, counts = numbers[at : at + n], numbers[at + n : at + 2 * n]
            at += 2 * n
            if any(counts):
                record[name] = [s / c if c else None for s, c in zip(sums, counts, strict=True)]
        return record


class Sink(Protocol):
    """Where records go."""

    def write(self, step: int, record: Mapping[str, Value]) -> None:
        """Keep the values of one step."""

    def close(self) -> None:
        """Write out what is still held."""


class JsonLines:
    """``metrics.jsonl``: one object a line, ``{"step": ..., name: value, ...}``, flushed at once.

    NaN and infinity become null, so that every JSON reader takes the file.

    Args:
        path: the file; created with its directory, or appended to.
        step: the step this run starts from. Lines of later steps, and a line that was cut off, are dropped:
            they will be written again.
    """

    def __init__(self, path: Path | str, step: int = 0):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._rewind(step)
        self._stream = open(self.path, "ab", buffering=0)

    def write(self, step: int, record: Mapping[str, Value]) -> None:
        """Append one line, whole or not at all.

        Raises:
            OSError: the disk is full, for example; the file is as before.
        """
        line = {"step": step, **{name: _finite(value) for name, value in record.items()}}
        text = (json.dumps(line, allow_nan=False) + "\n").encode()
        if (written := self._stream.write(text)) != len(text):
            self._stream.truncate(self._stream.tell() - (written or 0))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def close(self) -> None:
        self._stream.close()

    def _rewind(self, step: int) -> None:
        temporary = self.path.with_name(f".{self.path.name}_{os.getpid()}")
        with (
            open(self.path, encoding="utf-8", errors="replace") as old,
            open(temporary, "w", encoding="utf-8") as new,
        ):
            new.writelines(line for line in old if _is_up_to(line, step))
        os.replace(temporary, self.path)


class Sinks:
    """All of them; a context manager that closes them. A full disk costs records, not the run."""

    def __init__(self, sinks: Sequence[Sink]):
        self._sinks, self._failing = sinks, False

    def write(self, step: int, record: Record) -> None:
        """Keep the values of one step, if there are any."""
        try:
            for sink in self._sinks:
                sink.write(step, record) if record else None
            self._failing = self._failing and not record
        except OSError as error:
            if not self._failing:
                screen.warn(f"metrics are not written, training goes on: {error}")
            self._failing = True

    def __enter__(self) -> Sinks:
        return self

    def __exit__(self, *exception: object) -> None:
        for sink in self._sinks:
            with contextlib.suppress(OSError):
                sink.close()


class TensorBoard:
    """TensorBoard events; the bins of one name become ``name/00``, ``name/01``, ...

    Args:
        directory: where the event files go.
        step: the step this run starts from; TensorBoard hides what earlier files say of later steps.

    Raises:
        UsageError: tensorboard is not installed.
    """

    def __init__(self, directory: Path | str, step: int = 0):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "the config asks for TensorBoard; it is not installed; pip install tensorboard"
            ) from error
        self._writer = SummaryWriter(str(directory), purge_step=step + 1)

    def write(self, step: int, record: Mapping[str, Value]) -> None:
        for name, value in record.items():
            if not isinstance(value, list):
                self._writer.add_scalar(name, value, step)
                continue
            for i, part in enumerate(value):
                if part is not None:
                    self._writer.add_scalar(f"{name}/{i:02d}", part, step)

    def close(self) -> None:
        self._writer.close()


@torch.no_grad()
def feature_std(z: Tensor) -> Tensor:
    """Standard deviation over the batch of z / ||z||, averaged over channels: (B, d), B >= 2, to 0-d.

    1/sqrt(d) when directions are spread over the sphere, 0 when all images have one feature (SimSiam, arXiv
    2011.10566, Fig. 2).
    """
    return torch.nn.functional.normalize(z.float(), dim=1).std(dim=0).mean()


def _unless(skipped: Tensor | None, terms: Tensor) -> Tensor:
    """``terms``, or 0 where the step was skipped (a product would leave NaN)."""
    return terms if skipped is None else torch.where(skipped.bool(), torch.zeros_like(terms), terms)


def _finite(value: Value) -> Value | None:
    if isinstance(value, list):
        return [part if part is not None and math.isfinite(part) else None for part in value]
    return value if math.isfinite(value) else None


def _is_up_to(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
