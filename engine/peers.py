"""The processes of the other ranks: which of them are gone when a collective fails."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist

from engine.errors import RankError
from engine.processes import is_alive, start_time, status_of

# What gloo, NCCL and the store say when another process is lost or late.
_OF_RANKS = re.compile(
    r"gloo|nccl|connection (closed|reset)|broken pipe|timed out|socket ?timeout|DistStore|TCPStore",
    re.IGNORECASE,
)
PATIENCE_SECONDS = 1.0  # a process that failed tells its peers before it is gone


@dataclass(frozen=True)
class Peer:
    """A process of this run: start time in clock ticks, since pids are used again."""

    host: str
    pid: int
    started: str | None

    def state(self) -> str | None:
        """ "gone" or "stopped", None where it runs or lives on another host."""
        if self.host != socket.gethostname():
            return None
        if not is_alive(self.pid) or start_time(self.pid) != self.started:
            return "gone"
        fields = status_of(self.pid)
        return "stopped" if fields and fields[0] in "Tt" else None


def this_process() -> Peer:
    """What the other ranks are told of this one."""
    return Peer(socket.gethostname(), os.getpid(), start_time(os.getpid()))


def missing(peers: Sequence[Peer], patience: float = PATIENCE_SECONDS) -> str:
    """ "rank 1 (process 4711) is gone", as far as this host can see."""
    until = time.monotonic() + patience
    while True:
        states = {rank: state for rank, peer in enumerate(peers) if (state := peer.state())}
        if states or time.monotonic() >= until:
            break
        time.sleep(0.05)
    found = [f"rank {rank} (process {peers[rank].pid}) is {state}" for rank, state in states.items()]
    return ", ".join(found) or "all ranks of this host are alive; see what the others wrote last"


def is_of_ranks(error: BaseException) -> bool:
    """Whether a failure is one of talking to other ranks."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and _OF_RANKS.search(str(error)) is not None
    )


def lost(error: BaseException, rank: int, peers: Sequence[Peer]) -> RankError:
    """The failure of a collective, with the rank that is missing."""
    said = " ".join(str(error).split())
    return RankError(
        f"rank {rank} lost the others: {missing(peers)}; the last checkpoint is intact, run the same command "
        f"to go on ({said[:200]})"
    )
