"""What watches over a run: saving, updates left out, ranks that differ or are late, losses that leap."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import checkpoint, screen
from engine.collapse import collapse_warning
from engine.config import Config
from engine.config_file import config_hash
from engine.ema import Ema
from engine.errors import CheckpointError, NumericsError, RankError, UsageError
from engine.metrics import Record
from engine.numerics import AFTER_NUMERICS, WINDOW, Skips, Spikes, demand_finite, demand_number
from engine.parallel import Ranks, Trainer
from engine.resume import snapshot
from engine.runlock import usurper

SAVES_LOST = 3  # in a row, that end a run
SPIKES_KEPT = 3
LATE_SHARE, LATE_FACTOR = 0.2, 3.0  # of the time that a rank makes the others wait, and of the median's


class Keeper:
    """Saves the state of training, and looks whether it is worth saving.

    Args:
        state: JSON-able facts that every checkpoint carries.
        resumed: where the run goes on from.
    """

    def __init__(
        self,
        config: Config,
        trainer: Trainer,
        ema: Ema,
        ranks: Ranks,
        state: dict[str, Any],
        resumed: checkpoint.Checkpoint | None,
    ):
        self._config, self._trainer, self._ema, self._ranks = config, trainer, ema, ranks
        self._run_dir, self._state, self._lost = Path(config.run.dir or "."), state, 0
        before = resumed.state.get("skipped", 0) if resumed else 0
        log = self._run_dir / "skipped.jsonl" if ranks.is_main else None
        self.skips = Skips(log, config.train.batch_size, config.run.skips, before)
        self._spikes, self._leapt = Spikes(), 0

    def note(self, step: int, skipped: Tensor) -> None:
        """Remember whether the update that made ``step`` of the step before was left out: 0-d, not 0 where it
        was. That too many were ends the run :data:`~engine.numerics.LAG` steps later, on all ranks at once,
        whether or not something is logged between.

        Raises:
            NumericsError: too many updates were left out.
        """
        self.skips.note(step - 1, skipped)
        self._judge_skips(step)

    def look(self, step: int, record: Record) -> Record:
        """Judge the metrics of an interval that ends at ``step``; what else to log (collective).

        Raises:
            NumericsError: too many updates were left out, or the loss is no number.
        """
        more: Record = {}
        skipped = self.skips.read()
        self._judge_skips(step)
        if skipped:
            more["skipped"] = float(len(skipped))
        loss, std = record.get("loss"), record.get("feature_std")
        demand_number(loss, step)
        if isinstance(std, float) and (warning := collapse_warning(std, self._config.encoder.dim)):
            screen.warn(warning)
        if isinstance(loss, float) and (warning := self._spikes.leaps(loss)):
            screen.warn(f"step {step}: {warning}; nothing was changed{self._keep_spike(step)}")
            more["loss_leapt"] = loss
        return more

    def save(self, step: int, last: bool = False) -> None:
        """Write a checkpoint (collective). A disk that is full costs the run this one, not its life.

        Raises:
            NumericsError: the weights are not finite, or too many updates were left out.
            RankError: the ranks' weights differ.
            UsageError: another run writes here now.
            CheckpointError: it was the last one of the run, or the third in a row that could not be written.
        """
        self._demand_lock(step)
        self.skips.catch_up()
        self._judge_skips(step)
        self.compare(step)
        tensors = snapshot(self._trainer, self._ema)
        demand_finite(tensors["model"], step)
        failure = self._write(self._run_dir, step, tensors, self._state)
        if not self._ranks.any(failure is not None):
            self._lost = 0
            return
        self._lost += 1
        failure = failure or CheckpointError(f"rank 0 could not save step {step}")
        if last or self._lost >= SAVES_LOST:
            raise failure
        screen.warn(f"{failure}; training goes on ({self._lost} of {SAVES_LOST} failures that end it)")

    def _demand_lock(self, step: int) -> None:
        """Write nothing into a directory that another run writes (collective).

        Raises:
            UsageError: the lock was removed by hand, and another run took it.
        """
        taken = usurper(self._run_dir) if self._ranks.is_main else None
        if self._ranks.any(taken is not None):
            raise UsageError(
                f"{self._run_dir}/run.lock was removed and is held by {taken or 'another run'} now; "
                f"step {step} is not saved, this run ends"
            )

    def compare(self, step: int) -> None:
        """Demand that all ranks hold the same weights, bit by bit (collective).

        Raises:
            RankError: naming the ranks that differ and the first parameter in which they do.
        """
        if self._ranks.world == 1 or self._trainer.zero == 3:
            return
        sums = bit_sums(self._trainer.local_parameters())
        if torch.equal(self._ranks.worst(sums.clone()), -self._ranks.worst(-sums)):
            return
        table = torch.zeros(self._ranks.world, len(sums), dtype=sums.dtype, device=sums.device)
        table[self._ranks.rank] = sums
        table = self._ranks.sum(table).cpu()
        name = list(self._trainer.local_parameters())[int((table != table[0]).any(0).nonzero()[0])]
        raise RankError(
            f"the ranks' weights differ at step {step}: {name_odd(table)}, first in {name}; that is hardware "
            "or a collective gone wrong; the last checkpoint is intact, run the same command to go on"
        )

    def _judge_skips(self, step: int) -> None:
        self._state["skipped"] = self.skips.total
        if self.skips.too_many():
            self._dump(step)

    def _dump(self, step: int) -> None:
        """Leave what `diffsiam replay` needs, and end.

        Raises:
            NumericsError: always.
        """
        recent = self.skips.recent
        if self._ranks.is_main:
            shutil.rmtree(self._run_dir / "dump", ignore_errors=True)  # of an earlier attempt
        tensors = {"model": self._trainer.full_model()}
        state = self._state | {"skipped_steps": recent, "world": self._ranks.world}
        failure = self._write(self._run_dir / "dump", step, tensors, state)
        held = f"no dump: {failure}" if failure else f"`diffsiam replay {self._run_dir}` tells why"
        raise NumericsError(
            f"{len(recent)} of the last {WINDOW} updates were left out since the loss or a gradient was not "
            f"finite (steps {', '.join(map(str, recent[-12:]))}), run.skips allows "
            f"{self._config.run.skips}; {held}; {AFTER_NUMERICS}"
        )

    def _keep_spike(self, step: int) -> str:
        """Save the state after a leap beside the run's checkpoints, the first few times."""
        self._leapt += 1
        if self._leapt > SPIKES_KEPT:
            return ""
        tensors = snapshot(self._trainer, self._ema)
        failure = self._write(self._run_dir / "leaps", step, tensors, self._state)
        return "" if failure else f"; the state is kept in {self._run_dir / 'leaps'}"

    def _write(
        self, directory: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]
    ) -> CheckpointError | None:
        if self._ranks.is_main:
            try:
                keep = self._config.log.keep
                checkpoint.save(directory, step, tensors, state, config_hash(self._config), keep)
            except CheckpointError as error:
                return error
        return None


def bit_sums(named: dict[str, Tensor]) -> Tensor:
    """The sum of each tensor's bits read as integers: int64 (number of tensors,), on their device. Any
    single flipped bit changes it, the order of summation does not.
    """
    integers = {4: torch.int32, 2: torch.int16, 8: torch.int64, 1: torch.int8}
    parts = [t.detach().contiguous().view(integers[t.element_size()]) for t in named.values()]
    return torch.stack([part.sum(dtype=torch.int64) for part in parts])


def name_odd(table: Tensor) -> str:
    """Which ranks differ from most: of (world, n) integers, the rows that are not the commonest."""
    usual = table.mode(0).values
    odd = [rank for rank in range(len(table)) if not torch.equal(table[rank], usual)]
    if 2 * len(odd) >= len(table):
        return "no more than half of the ranks agree"
    return f"rank {', '.join(map(str, odd))} has others than the rest"


class Stragglers:
    """The time each rank spends before the ranks first meet in a step: on data, or on what holds it up."""

    def __init__(self, ranks: Ranks):
        self._ranks, self._own, self._since = ranks, 0.0, time.monotonic()

    @contextlib.contextmanager
    def own_time(self) -> Iterator[None]:
        """Around what a rank does by itself."""
        begun = time.monotonic()
        yield
        self._own += time.monotonic() - begun

    def look(self) -> None:
        """Name the ranks that made the others wait since the last call (collective)."""
        seconds, own = time.monotonic() - self._since, self._own
        self._since, self._own = time.monotonic(), 0.0
        if self._ranks.world == 1:
            return
        each = self._ranks.gathered([own])[:, 0].tolist()
        for rank, text in late(each, seconds):
            screen.warn(f"rank {rank} is late: {text}")


def late(own: list[float], seconds: float) -> list[tuple[int, str]]:
    """Ranks whose own time, of ``seconds`` in all, makes the others wait, and by how much."""
    fastest = min(own)
    return [
        (rank, f"ready after {spent:.1f} of the last {seconds:.1f} s, the fastest after {fastest:.1f} s")
        for rank, spent in enumerate(own)
        if spent - fastest > LATE_SHARE * seconds and spent > LATE_FACTOR * fastest
    ]
