"""Counterfactual generation (thesis Algorithm 2, section 4.2.1), with its controls, and interpolation.

Algorithm 2 moves x_T together with the chosen subsets S of z: at scale 1 the noise is all the other image's.
Part of what changes is therefore not due to z_S, and S = none, x_T fixed, and as many random dimensions are
to be looked at beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diffsiam.sampler import Guide, Sampler
from diffsiam.subsets import Subsets


def lerp(z: Tensor, other: Tensor, dims: Tensor, scale: Tensor) -> Tensor:
    """z_S <- (1 - lambda) z_S + lambda z'_S, all else as it was (Algorithm 2, line 4).

    Args:
        z, other: (B, d).
        dims: (B, d) or (d,) bool, the dimensions of the subsets in S.
        scale: lambda, (B,).
    """
    return torch.where(dims, torch.lerp(z, other, scale[:, None]), z)


def slerp(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """[sin((1 - lambda) theta) a + sin(lambda theta) b] / sin theta, theta the angle between a and b as flat
    vectors (Algorithm 2, line 5).

    Where a and b point the same way (or against each other) the formula has no value; there it is the
    straight line between them.

    Args:
        a, b: (B, ...).
        scale: lambda, (B,).
    """
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    theta = torch.nn.functional.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1, 1).acos()
    sin, line = theta.sin(), scale.double()
    straight = sin < 1e-6
    sin = torch.where(straight, 1.0, sin)
    ours = torch.where(straight, 1 - line, ((1 - line) * theta).sin() / sin)
    others = torch.where(straight, line, (line * theta).sin() / sin)
    return (ours[:, None] * flat_a + others[:, None] * flat_b).view_as(a).to(a.dtype)


@dataclass(frozen=True)
class Choice:
    """One S: what is taken from the other image.

    Attributes:
        name: for people.
        dims: (d,) bool, the dimensions of z.
        moves_x_T: x_T goes along (Algorithm 2), or stays the image's own (control).
    """

    name: str
    dims: Tensor
    moves_x_T: bool = True


def of_subsets(name: str, subsets: Subsets, chosen: Sequence[int], moves_x_T: bool = True) -> Choice:
    """S as a set of subsets, each 1..n; none and all of them are controls."""
    of_dim = subsets.subset_of_dim()
    return Choice(name, torch.isin(of_dim, torch.tensor(list(chosen), dtype=torch.int64)), moves_x_T)


def random_dims(name: str, dim: int, count: int, seed: int, moves_x_T: bool = True) -> Choice:
    """The control of S: as many dimensions of z as it has, but any."""
    dims = torch.zeros(dim, dtype=torch.bool)
    dims[np.random.default_rng(seed).permutation(dim)[:count].copy()] = True
    return Choice(name, dims, moves_x_T)


@dataclass(frozen=True)
class Inverted:
    """Images as Algorithms 2 and 3 take them: (N, 3, H, W) in [-1, 1], z (N, d), x_T (N, 3, H, W)."""

    x_0: Tensor
    z: Tensor
    x_T: Tensor


@dataclass(frozen=True)
class Jobs:
    """Edits of N images, M in all, each from image ``a`` towards image ``b``; all but ``dims`` are (M,)."""

    a: Tensor
    b: Tensor
    scale: Tensor
    choice: Tensor
    dims: Tensor  # (choices, d) bool
    moves_x_T: Tensor  # (choices,) bool

    def __len__(self) -> int:
        return len(self.a)

    def at(self, index: Tensor) -> Jobs:
        """Some of them."""
        return replace(
            self, a=self.a[index], b=self.b[index], scale=self.scale[index], choice=self.choice[index]
        )

    def needed(self) -> tuple[Jobs, Tensor]:
        """Those whose images differ, and for each of all which of them it equals, (M,).

        At scale 0, or where neither z nor x_T moves, an edit is its image's reconstruction. Where both move
        entirely, a towards b at lambda is b towards a at 1 - lambda, and at scale 1 b's reconstruction.
        """
        whole = (self.dims.all(dim=1) & self.moves_x_T)[self.choice]
        still = (~self.dims.any(dim=1) & ~self.moves_x_T)[self.choice]
        turned = whole & (self.a > self.b)
        a, b = torch.where(turned, self.b, self.a), torch.where(turned, self.a, self.b)
        scale = torch.where(turned, 1 - self.scale, self.scale)
        arrived = whole & (scale == 1)
        a = torch.where(arrived, b, a)
        scale = torch.where(arrived | still, 0, scale)

        kinds = torch.cat((self.dims, self.moves_x_T[:, None]), dim=1).unique(dim=0, return_inverse=True)[1]
        keys = torch.stack((a, b, kinds[self.choice], (scale.double() * 1e6).round().long()), dim=1)
        keys[scale == 0, 1:] = -1
        unique, place = keys.unique(dim=0, return_inverse=True)
        order = torch.arange(len(keys), device=place.device)
        first = torch.empty(len(unique), dtype=torch.int64, device=place.device)
        first[place.flip(0)] = order.flip(0)
        return replace(self, a=a, b=b, scale=scale).at(first), place


def counterfactual_jobs(
    pairs: Sequence[tuple[int, int]],
    choices: Sequence[Choice],
    scales: Sequence[float],
    device: torch.device | str = "cpu",
) -> Jobs:
    """All edits of a figure in the order (pair, direction, choice, scale); direction 0 starts from a pair's
    first image, 1 from its second.
    """
    ends = torch.tensor([[[a, b], [b, a]] for a, b in pairs], device=device).view(-1, 2)
    order = torch.cartesian_prod(
        torch.arange(len(ends), device=device),
        torch.arange(len(choices), device=device),
        torch.arange(len(scales), device=device),
    )
    end, choice, scale = order.view(-1, 3).unbind(dim=1)
    dims = torch.stack([choice.dims for choice in choices]).to(device)
    moves = torch.tensor([choice.moves_x_T for choice in choices], device=device)
    values = torch.tensor(scales, dtype=torch.float32, device=device)
    return Jobs(ends[end, 0], ends[end, 1], values[scale], choice, dims, moves)


def edit(sampler: Sampler, images: Inverted, jobs: Jobs) -> Tensor:
    """The images (M, 3, H, W) of all jobs, in one batch of those that differ (Algorithm 2 from line 4 on)."""
    needed, place = jobs.needed()
    dims = needed.dims[needed.choice]
    z = lerp(images.z[needed.a], images.z[needed.b], dims, needed.scale)
    return sampler.sample(_starts(images, needed), Guide(z))[place]


def counterfactuals(
    sampler: Sampler,
    images: Inverted,
    pairs: Sequence[tuple[int, int]],
    choices: Sequence[Choice],
    scales: Sequence[float],
) -> Tensor:
    """Algorithm 2 for every pair of images, in both directions, every S and every scale.

    Returns:
        (pairs, 2, choices, scales, 3, H, W) in [-1, 1].
    """
    jobs = counterfactual_jobs(pairs, choices, scales, images.z.device)
    return edit(sampler, images, jobs).unflatten(0, (len(pairs), 2, len(choices), len(scales)))


def interpolate(
    sampler: Sampler,
    images: Inverted,
    pairs: Sequence[tuple[int, int]],
    scales: Sequence[float],
    trajectory: bool = False,
    moves_x_T: bool = True,
) -> Tensor:
    """Full interpolation of each pair: Algorithm 2 with S = all. One direction is all there is, the other is
    its mirror image.

    Args:
        scales: 0 is the first image of a pair, 1 the second.
        trajectory: z is not interpolated; at every step the guidance of the two z is (PDAE's trajectory
            interpolation): u + w_t ((1 - lambda) G(z) + lambda G(z')).
        moves_x_T: x_T is interpolated too (slerp), or is the first image's.

    Returns:
        (pairs, scales, 3, H, W) in [-1, 1].
    """
    everything = Choice("all", torch.ones(images.z.shape[1], dtype=torch.bool), moves_x_T)
    jobs = counterfactual_jobs(pairs, [everything], scales, images.z.device)
    forth = torch.arange(len(jobs), device=images.z.device).view(len(pairs), 2, -1)[:, 0].flatten()
    jobs = jobs.at(forth)
    if trajectory:
        guides = Guide(images.z[jobs.a], 1 - jobs.scale), Guide(images.z[jobs.b], jobs.scale)
        found = sampler.sample(_starts(images, jobs), *guides)
    else:
        found = edit(sampler, images, jobs)
    return found.unflatten(0, (len(pairs), len(scales)))


def _starts(images: Inverted, jobs: Jobs) -> Tensor:
    """Each job's x_T <- slerp(x_T, x_T'; lambda), or the image's own."""
    own = images.x_T[jobs.a]
    moving = jobs.moves_x_T[jobs.choice][:, None, None, None]
    return torch.where(moving, slerp(own, images.x_T[jobs.b], jobs.scale), own)
