"""The causal swap test: put one subset of another image's z into an image's own, decode, read what changed.

What a probe reads from a subset says little about what the decoder takes from it; this measures the latter.
Thesis Algorithm 2 inverts the image and moves x_T together with the subsets, so part of its edit comes from
x_T. Here all rows of a pair are decoded from the same random x_T, so whatever changes comes from z; rows of
their own repeat the test with inverted x_T, and show the share that x_T holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffsiam.encoder import encode_images
from diffsiam.evaluation.profile import Read, eval_noise
from diffsiam.objective import DiffSiam
from diffsiam.sampling import Predict, guided, invert, sample, to_uint8
from diffsiam.subsets import Subsets
from kernels.noise_jump.ref import to_unit_range

ALL, NONE, INVERTED, NOISE, ALL_AND_NOISE = CONTROLS = (
    "all",
    "none",
    "all, x_T of a",
    "x_T only",
    "all + x_T",
)


@dataclass(frozen=True)
class SwapMap:
    """What happened to image a when parts of it were taken from image b, over P pairs and K factors.

    Attributes:
        rows: R = n + 5 names: "subset 1" .. "subset n", "all" (the whole z) and "none" (a's own z), decoded
            from random x_T; then, decoded from x_T inverted from the images, "all, x_T of a" (the whole z of
            b), "x_T only" (a's z) and "all + x_T".
        success: (R, K), P(factor reads as b's | a and b differ in it); NaN where no pair differs.
        side_effect: (R, K), P(factor no longer reads as a's | a and b agree in it); NaN where no pair agrees.
        differing: (K,) number of pairs that differ.
        images: (R, P, H, W, 3) uint8, the decoded images.
    """

    rows: tuple[str, ...]
    success: np.ndarray
    side_effect: np.ndarray
    differing: np.ndarray
    images: np.ndarray

    @property
    def n(self) -> int:
        """Number of subsets."""
        return len(self.rows) - len(CONTROLS)

    @property
    def effect(self) -> np.ndarray:
        """(n, K): each subset's success above that of swapping nothing."""
        return self.success[: self.n] - self.success[self.rows.index(NONE)]

    @property
    def drift(self) -> np.ndarray:
        """(n,): each subset's mean side effect above that of swapping nothing."""
        return np.nanmean(self.side_effect[: self.n] - self.side_effect[self.rows.index(NONE)], axis=1)


class Live(NamedTuple):
    """A subset that moves a factor."""

    subset: int  # 1..n
    factor: int  # index of the factor it moves most
    effect: float
    side_effect: float  # mean over the factors in which a and b agree, above the control


def live_subsets(swaps: SwapMap, threshold: float = 0.4) -> list[Live]:
    """The subsets whose strongest factor has an effect of ``threshold`` or more, in order of subset."""
    effect = np.nan_to_num(swaps.effect, nan=-1.0)
    strongest = effect.argmax(axis=1)
    found = [Live(i + 1, int(k), float(effect[i, k]), float(swaps.drift[i])) for i, k in enumerate(strongest)]
    return [live for live in found if live.effect >= threshold]


def swap_test(
    model: DiffSiam,
    images: Tensor,
    levels: Tensor,
    read: Read,
    moves: int = 12,
    inversion_moves: int = 24,
    batch_size: int = 128,
    seed: int = 0,
    scale: float = 1.0,
) -> SwapMap:
    """Swap every subset, and the controls, from image b = p + 1 into image a = p (cyclically).

    Args:
        model: with a decoder, in eval mode.
        images: (P, H, W, 3) uint8, or (P, 3, H, W) float in [-1, 1]; neighbours make a pair, P >= 2.
        levels: (P, K) int64, the true factors.
        read: reads the factors of decoded images.
        moves: DDIM moves down from random x_T; 50 of them give the same rates within their sampling error.
        inversion_moves: DDIM moves up to the inverted x_T, guided by the image's own z, and down again. With
            few of them the way back loses fine factors, and the rows of x_T are too low.
        batch_size: images decoded at once; it bounds memory and does not change the result.
        seed: names the random x_T, one per pair.
        scale: guidance scale, of inversion and sampling alike.
    """
    x_0 = to_unit_range(images)
    z = encode_images(model.encoder, x_0, batch_size)
    parts = zip(x_0.split(batch_size), z.split(batch_size), strict=True)
    inverted = torch.cat(
        [invert(x, _guided(model, own, scale), model.schedule, inversion_moves) for x, own in parts]
    )
    drawn = eval_noise(seed, torch.arange(len(z), device=z.device), *x_0.shape[2:])
    starts = torch.stack((drawn, inverted, inverted.roll(-1, dims=0)))  # random, x_T of a, x_T of b
    from_b, start_of = _rows(model.subsets, z.device)
    pairs, decoded, readings = len(z), [], []
    for rows, row_moves in ((start_of == 0, moves), (start_of > 0, inversion_moves)):
        for item in rows.repeat_interleave(pairs).nonzero()[:, 0].split(batch_size):
            row, a = item // pairs, item % pairs
            predict = _guided(model, torch.where(from_b[row], z[(a + 1) % pairs], z[a]), scale)
            x = sample(starts[start_of[row], a], predict, model.schedule, row_moves)
            decoded.append(to_uint8(x))
            readings.append(read(x))
    names = tuple(f"subset {i}" for i in range(1, model.subsets.n + 1)) + CONTROLS
    read_levels, image = (torch.cat(part).unflatten(0, (len(names), pairs)) for part in (readings, decoded))
    return SwapMap(names, *score(read_levels, levels, levels.roll(-1, dims=0)), image.cpu().numpy())


def score(readings: Tensor, levels_a: Tensor, levels_b: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """success, side_effect and differing of :class:`SwapMap` for ``readings`` (R, P, K), levels (P, K)."""
    differ = levels_a != levels_b
    moved = ((readings == levels_b) & differ).sum(dim=1).double()
    changed = ((readings != levels_a) & ~differ).sum(dim=1).double()
    differing, agreeing = differ.sum(dim=0), (~differ).sum(dim=0)  # 0 / 0 is NaN: not measured
    return (moved / differing).cpu().numpy(), (changed / agreeing).cpu().numpy(), differing.cpu().numpy()


def _rows(subsets: Subsets, device: torch.device) -> tuple[Tensor, Tensor]:
    """Dims that each row takes from b (R, d), and its start (R,): 0 random, 1 x_T of a, 2 x_T of b."""
    of_dim = subsets.subset_of_dim(device)
    one = of_dim == torch.arange(1, subsets.n + 1, device=device)[:, None]
    every, no = torch.ones_like(one[:1]), torch.zeros_like(one[:1])
    start = torch.tensor([0] * (subsets.n + 2) + [1, 2, 2], device=device)
    return torch.cat((one, every, no, every, no, every)), start


def _guided(model: DiffSiam, z: Tensor, scale: float) -> Predict:
    assert model.decoder is not None, "a model without decoder cannot be edited"
    return guided(model.frozen, model.decoder, model.schedule, model.subsets, z, scale=scale)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block, the mode from before after it."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


@torch.no_grad()
def causal_effect(model: DiffSiam, images: Tensor, seed: int, batch_size: int = 128) -> np.ndarray:
    """How much each subset moves x_0_hat at its own time, as a share of what u lost: (n,) float64, 0 is dead.

    No oracle, no sampling: x_0 is noised once, and of x_0_hat = u + w_t G only G changes,

        effect_i = |w_t (G(z with subset i of b) - G(z))|^2 / |x_0 - u|^2,  each summed over pairs and pixels

    with the z_bar that a sampler shows at the time of subset i: the middle of its times where t decides k,
    else 0.3 T. Swapping all that was lost for another image's would give about 2.

    Args:
        images: (B, H, W, 3) uint8 or (B, 3, H, W) float; neighbours make a pair, B >= 2.
        seed: names the noise.
    """
    assert model.decoder is not None, "a model without decoder cannot be edited"
    x_0, subsets, at = to_unit_range(images), model.subsets, model.schedule.at
    z = encode_images(model.encoder, x_0, batch_size)
    eps = eval_noise(seed, torch.arange(len(z), device=z.device), *x_0.shape[2:])
    from_b, own_time = _rows(subsets, z.device)[0], own_times(subsets).to(z.device)
    sums = torch.zeros(subsets.n, 2, dtype=torch.float64, device=z.device)
    with evaluating(model.decoder):
        for item in torch.arange(subsets.n * len(z), device=z.device).split(batch_size):
            row, a = item // len(z), item % len(z)
            b, t = (a + 1) % len(z), own_time[row]
            x_t = at("alpha_bar", t).sqrt() * x_0[a] + (1 - at("alpha_bar", t)).sqrt() * eps[a]
            features = model.frozen.encode(x_t, t)
            own, swapped = (
                model.decoder(features, visible(subsets, variant, t)).float()
                for variant in (z[a], torch.where(from_b[row], z[b], z[a]))
            )
            # Both in epsilon form, where the same factor 1 / SNR_t is missing from each.
            moved, lost = at("shift", t) * (swapped - own), eps[a] - model.frozen.decode(features).float()
            sums.index_add_(0, row, torch.stack((moved, lost), dim=1).square().mean(dim=(2, 3, 4)).double())
    moved_by, lost_at = sums.unbind(dim=1)
    return torch.where(lost_at > 0, moved_by / lost_at, 0).cpu().numpy()


def visible(subsets: Subsets, z: Tensor, t: Tensor) -> Tensor:
    """z_bar (B, d) as :func:`diffsiam.sampling.guided` shows it to the decoder at times (B,)."""
    return subsets.mask_at(z, subsets.at_time(t)) if subsets.tied else z


def own_times(subsets: Subsets) -> Tensor:
    """(n,) int64: a time at which each subset is at work, see :func:`causal_effect`."""
    if not subsets.tied:
        return torch.full((subsets.n,), 3 * subsets.steps // 10)
    k = subsets.at_time(torch.arange(subsets.times))
    return torch.stack(
        [(k == i).nonzero().double().mean().nan_to_num().long() for i in range(1, subsets.n + 1)]
    )
