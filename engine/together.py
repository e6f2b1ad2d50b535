"""What fails on one rank fails on all: nobody waits for a rank that has left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import DataError
from engine.parallel import Ranks


@contextmanager
def reading(ranks: Ranks) -> Iterator[None]:
    """Around the reading of images; collective when it is left.

    Raises:
        DataError: of this rank, or one that names the ranks that have theirs.
    """
    failure = None
    try:
        yield
    except DataError as error:
        failure = error
    failed = ranks.gathered([float(failure is not None)])[:, 0].nonzero()[:, 0].tolist()
    if failed:
        who = f"rank{'s' * (len(failed) > 1)} {', '.join(map(str, failed))}"
        raise failure or DataError(f"{who} cannot read the images, see the line of its own")
