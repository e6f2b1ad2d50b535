"""Which subsets of z exist, and which of them is trained at which time (thesis section 3.2, Algorithm 1,
section 4.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.philox import STREAM_K, STREAM_T, randint
from kernels.subset_mask.op import subset_mask


def balanced_ends(dim: int, n: int) -> list[int]:
    """Cumulative ends of n subsets of equal size (the thesis' even partition): end_i = floor(d / n (i +
    1))."""
    return [dim * (i + 1) // n for i in range(n)]


def staged_ends(n: int, steps: int, stages: list[int], dims_per_stage: list[int]) -> list[int]:
    """Cumulative ends of n subsets whose sizes follow stages of time (DiTi's unbalanced split).

    Subset i serves the times from ceil(i T / n) on and belongs to the first stage that ends after it. A
    stage's dims are shared out evenly over its subsets, the last one taking the remainder.

    Args:
        n, steps: number of subsets, T.
        stages: ascending ends of the stages in time, the last one T.
        dims_per_stage: dims of each stage; they sum to d.

    Raises:
        ValueError: the stages do not ascend to T, or one holds no subset or fewer dims than subsets.
    """
    if len(stages) != len(dims_per_stage):
        raise ValueError(f"{len(stages)} stages have {len(dims_per_stage)} numbers of dims")
    if stages[-1:] != [steps] or any(a >= b for a, b in pairwise([0, *stages])):
        raise ValueError(f"stages {stages} do not ascend to T = {steps}")
    starts = [-(-i * steps // n) for i in range(n)]
    stage_of = [next(s for s, end in enumerate(stages) if start < end) for start in starts]
    ends: list[int] = []
    for stage, dims in enumerate(dims_per_stage):
        count = stage_of.count(stage)
        if count == 0 or dims < count:
            raise ValueError(
                f"stage {stage} (ends at t = {stages[stage]}) has {count} subsets and {dims} dims"
            )
        sizes = [dims // count] * (count - 1)
        for size in [*sizes, dims - sum(sizes)]:
            ends.append((ends[-1] if ends else 0) + size)
    return ends


class Draw(NamedTuple):
    """One sample's place in the method, each (B,) int64."""

    t: Tensor  # 0 .. the time of Eq. 3.11
    level: Tensor  # noise level, t + k or t
    k: Tensor  # 1 .. n, subset in training


@dataclass
class Subsets:
    """The split of z and the rule that ties subsets to times.

    Attributes:
        ends: cumulative ends of the n subsets in z; the last one is d.
        choice: "random" (Algorithm 1: k ~ U{1..n}, independent of t), "time_tied" (k = 1 + floor(t n / number
            of times), as DiTi), "profile" (k counts the ``boundaries`` at or below t), "full" (k = n: the
            whole z, as PDAE).
        mask: "hierarchical" (subsets 1..k) or "sequential" (subset k alone).
        detach: train subset k only (thesis section 4.3.2).
        jump: noise the image k steps further than t (thesis) or not (PDAE, DiTi).
        steps: T.
        boundaries: n - 1 ascending times, for "profile".
    """

    ends: list[int]
    choice: str = "random"
    mask: str = "hierarchical"
    detach: bool = False
    jump: bool = True
    steps: int = 1000
    boundaries: list[int] = field(default_factory=list)
    _constants: dict[tuple[str, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def _resident(self, name: str, values: np.ndarray, device: torch.device) -> Tensor:
        """Constants on the device, copied there once: a copy in every step would make the host wait for the
        GPU.
        """
        if (name, device) not in self._constants:
            with torch.inference_mode(False):
                self._constants[name, device] = torch.from_numpy(values).to(device)
        return self._constants[name, device]

    @property
    def n(self) -> int:
        return len(self.ends)

    @property
    def times(self) -> int:
        """Number of times that are drawn: Algorithm 1's t in 1..T-n, or all T without the jump."""
        return self.steps - self.n if self.jump else self.steps

    def subset_of_dim(self, device: torch.device | str = "cpu") -> Tensor:
        """(d,) int64 in 1..n."""
        sizes = np.diff([0, *self.ends])
        return self._resident(
            "subset of dim", np.repeat(np.arange(1, self.n + 1), sizes), torch.device(device)
        )

    def dims(self, subset: int) -> slice:
        """The dimensions of subset 1..n."""
        return slice(self.ends[subset - 2] if subset > 1 else 0, self.ends[subset - 1])

    @property
    def tied(self) -> bool:
        """Whether t determines k."""
        return self.choice in ("time_tied", "profile")

    def at_time(self, t: Tensor) -> Tensor:
        """k of each time (B,) under the tied choices, n for the others: the subsets that a sampler at time t
        may use.
        """
        if self.choice == "time_tied":
            return (1 + t * self.n // self.times).clamp(max=self.n)
        if self.choice == "profile":
            table = self._resident("boundaries", np.array(self.boundaries, dtype=np.int64), t.device)
            return 1 + torch.searchsorted(table, t, right=True)
        return torch.full_like(t, self.n)

    def draw(self, seed: int, positions: Tensor) -> Draw:
        """t, noise level and k of the samples at ``positions`` (B,) int64, as pure functions of (seed,
        position).
        """
        t = randint(seed, positions, self.times, STREAM_T)
        free = 1 + randint(seed, positions, self.n, STREAM_K)
        k = free if self.choice == "random" else self.at_time(t)
        jump = free if self.choice == "full" else k  # with the whole z the length of the jump stays random
        return Draw(t, t + jump if self.jump else t, k)

    def mask_at(self, z: Tensor, k: Tensor) -> Tensor:
        """z_bar (B, d) of z for k (B,) in 1..n."""
        return subset_mask(z, k, self.subset_of_dim(z.device), self.mask, self.detach)


def profile_boundaries(
    times: Sequence[int] | np.ndarray, error: np.ndarray, n: int, drawn: int, floor: float = 0.01
) -> list[int]:
    """Boundaries of n subsets where the frozen model's own loss of information puts them.

    The relative error of x_0_hat grows from 0 (nothing lost) to 1 (everything lost). Each subset takes an
    equal share of the logarithm of that growth, counted from ``floor``, below which nothing visible is lost:
    equal shares of log error are equal shares of rate for a Gaussian source (R = 1/2 log(variance / error)).
    Each has one time at least, even where all is lost at once.

    Args:
        times: (M,) ascending times at which the error was measured.
        error: (M,) mean squared error of x_0_hat divided by the variance of x_0.
        n: number of subsets.
        drawn: number of times that training draws, n at least (:attr:`Subsets.times`).
        floor: relative error at which the first subset begins to fill up.

    Returns:
        n - 1 strictly ascending times in 1 .. drawn - 1.

    Raises:
        ValueError: there are more subsets than times, or the error does not grow.
    """
    if n > drawn:
        raise ValueError(f"{n} subsets cannot share {drawn} times")
    rate = np.log(np.clip(np.maximum.accumulate(error), floor, 1.0) / floor)
    growth = rate - rate[0]
    if not growth[-1] > 0:  # nor if it is no number
        raise ValueError(
            f"the error of x_0_hat, {error[0]:.3g} to {error[-1]:.3g}, does not grow with the noise (up to "
            f"{floor:g} nothing counts as lost, from 1 on everything): nothing says where subsets begin"
        )
    targets = growth[-1] * np.arange(1, n) / n
    found = np.interp(targets, growth + 1e-9 * np.arange(len(growth)), times).round().astype(int)
    boundaries: list[int] = []
    for subset, time in enumerate(found.tolist(), start=1):
        after = boundaries[-1] if boundaries else 0
        boundaries.append(min(max(time, after + 1), drawn - n + subset))  # room for the subsets that follow
    return boundaries
