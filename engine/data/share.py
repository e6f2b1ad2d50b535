"""Which positions of the endless stream a rank's micro-batches hold."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


def positions(
    step: int, micro_step: int, *, batch_size: int, rank: int, world: int, micro_batch: int
) -> np.ndarray:
    """Stream positions of one rank's micro-batch, (m,) int64.

    step * B + (micro_step * world + rank) * m + (0 .. m - 1), for the global batch B and the micro-batch m.
    """
    start = step * batch_size + (micro_step * world + rank) * micro_batch
    return np.arange(start, start + micro_batch, dtype=np.int64)


@dataclass(frozen=True)
class Share:
    """One rank's share of the stream, micro-batch by micro-batch.

    Attributes:
        batch_size: global B = world * micro_batch * accumulation.
        first: micro-batches to leave out at the start.
    """

    batch_size: int
    rank: int
    world: int
    micro_batch: int
    accumulation: int
    first: int = 0

    def __getitem__(self, run: int) -> np.ndarray:
        """Positions of micro-batch ``run`` after the first ones, (m,) int64."""
        step, micro_step = divmod(self.first + run, self.accumulation)
        return positions(
            step,
            micro_step,
            batch_size=self.batch_size,
            rank=self.rank,
            world=self.world,
            micro_batch=self.micro_batch,
        )

    def after(self, runs: int) -> Share:
        """The share without its first ``runs`` micro-batches."""
        return replace(self, first=self.first + runs)
