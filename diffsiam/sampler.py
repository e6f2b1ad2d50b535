"""The sampler of all edits: batches of any number of images, and nothing computed twice.

A sampler knows its times before it starts, and z does not change on the way. So what every residual block
makes of the time and of z is computed once, for all times and all z, instead of in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from diffsiam.decoder import Decoder
from diffsiam.evaluation.profile import eval_noise
from diffsiam.layers import Projected, projections
from diffsiam.sampling import SHIFT, Move, Predict, Recipe, ddim, moves_down, moves_up
from diffsiam.schedule import Schedule
from diffsiam.subsets import Subsets
from diffsiam.unet import Features, UNet


class Guide(NamedTuple):
    """One z per image and the share of its G in the guidance; shares of an image sum to 1."""

    z: Tensor  # (B, d)
    share: Tensor | None = None  # (B,), None for 1

    def part(self, chosen: slice) -> Guide:
        return Guide(self.z[chosen], None if self.share is None else self.share[chosen])


@dataclass
class Passes:
    """What was run: batches and images that went through the frozen encoder, and images through g."""

    calls: int = 0
    images: int = 0
    decoded: int = 0


class Sampler:
    """Inverts and samples by a :class:`~diffsiam.sampling.Recipe`.

    Args:
        frozen, decoder: u_theta and g in eval mode.
        schedule, subsets: of the training.
        batch_size: images at once; it bounds memory and does not change the result.
        autocast: compute in this dtype, None: as the weights are.
        planned: compute what depends on time or z alone once, not in every step; the result is the same.
        tell: called with the number of image moves after each batch of them.

    Attributes:
        passes: what has been run so far.
    """

    def __init__(
        self,
        frozen: UNet,
        decoder: Decoder,
        schedule: Schedule,
        subsets: Subsets,
        recipe: Recipe | None = None,
        batch_size: int = 64,
        autocast: torch.dtype | None = None,
        planned: bool = True,
        tell: Callable[[int], None] | None = None,
    ):
        self.frozen, self.decoder, self.schedule = frozen, decoder, schedule
        self.recipe = recipe or Recipe()
        self.subsets, self.shown = subsets, shown_subsets(subsets, self.recipe.mask)
        self.batch_size, self.autocast, self.planned, self.tell = batch_size, autocast, planned, tell
        self.up = moves_up(schedule, self.recipe.inversion_moves, self.recipe.spacing)
        self.down = moves_down(schedule, self.recipe.moves, self.recipe.spacing)
        self.passes = Passes()
        self._plans: dict[bool, Plan] = {}

    @torch.no_grad()
    def invert(self, x_0: Tensor, z: Tensor) -> Tensor:
        """x_T (N, 3, H, W) of images (N, 3, H, W) in [-1, 1] with their z (N, d)."""
        guides = (Guide(z),) if self.recipe.guided_inversion else ()
        return self._move(x_0, guides, up=True)

    def start(self, x_0: Tensor, z: Tensor, seed: int = 0) -> Tensor:
        """x_T of the recipe: inverted, or noise named by ``seed`` and the image's place."""
        if self.recipe.x_T == "inverted":
            return self.invert(x_0, z)
        return eval_noise(seed, torch.arange(len(x_0), device=x_0.device), *x_0.shape[2:])

    @torch.no_grad()
    def sample(self, x_T: Tensor, *guides: Guide) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] of x_T; without a guide those of the frozen model alone."""
        return self._move(x_T, guides, up=False).clamp(-1, 1)

    def cost(self, inverted: int, sampled: int) -> int:
        """Image moves of so many inversions and samples."""
        ups = inverted * len(self.up) if self.recipe.x_T == "inverted" else 0
        return ups + sampled * len(self.down)

    def _move(self, x: Tensor, guides: Sequence[Guide], up: bool) -> Tensor:
        path, done = self.up if up else self.down, []
        for begin in range(0, len(x), self.batch_size):
            chosen = slice(begin, begin + self.batch_size)
            with self._precision(x.device):
                predict = self._predictor(path, [guide.part(chosen) for guide in guides], up)
                done.append(ddim(x[chosen].float(), predict, path, self.recipe.clamp))
        return torch.cat(done) if done else x

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, dtype=self.autocast) if self.autocast else nullcontext()

    def _predictor(self, path: list[Move], guides: list[Guide], up: bool) -> Predict:
        if self.planned and up not in self._plans:
            self._plans[up] = Plan(self.frozen, self.decoder, path, self.shown)
        plan = self._plans[up] if self.planned else None
        prepared = [plan.embed(guide.z) if plan else None for guide in guides]

        def predict(x: Tensor, t: Tensor) -> Tensor:
            features = plan.encode(x, t) if plan else self.frozen.encode(x, t)
            eps = self.frozen.decode(features).float()
            for guide, tables in zip(guides, prepared, strict=True):
                g = plan.decode(features, tables, t) if plan and tables else self._g(features, guide.z, t)
                share = 1 if guide.share is None else guide.share[:, None, None, None]
                shift = self.recipe.scale * self.schedule.at(SHIFT[self.recipe.coefficient], t)
                eps = eps + share * shift * g.float()
            self._count(len(x), len(guides))
            return eps

        return predict

    def _g(self, features: Features, z: Tensor, t: Tensor) -> Tensor:
        shown = self.shown
        return self.decoder(features, z if shown is None else shown.mask_at(z, shown.at_time(t)))

    def _count(self, images: int, guides: int) -> None:
        self.passes.calls += 1
        self.passes.images += images
        self.passes.decoded += images * guides
        if self.tell:
            self.tell(images)


def shown_subsets(subsets: Subsets, mask: str) -> Subsets | None:
    """The rule by which a time shows subsets of z to the decoder, None where it shows the whole of it.

    See :class:`~diffsiam.sampling.Recipe` for ``mask``.
    """
    if mask == "none" or (mask == "auto" and not subsets.tied):
        return None
    return subsets if subsets.tied else replace(subsets, choice="time_tied", jump=False)


ZTables = dict[torch.nn.Module, Tensor]  # ``emb_z_layers`` of a block -> (bins B, 2 C)


class Plan:
    """Both networks along a known path."""

    def __init__(self, frozen: UNet, decoder: Decoder, path: Sequence[Move], shown: Subsets | None):
        self.frozen, self.decoder, self.shown = frozen, decoder, shown
        device = next(decoder.parameters()).device
        times = torch.tensor(sorted({move.t for move in path}), device=device)
        self._row = torch.zeros(int(times.max()) + 1, dtype=torch.int64, device=device)  # of each time
        self._row[times] = torch.arange(len(times), device=device)
        embedded = frozen.embed(times)
        self._times = {
            layers: table
            for network in (frozen, decoder)
            for layers, table in projections(network, "emb_layers", embedded).items()
        }
        self._ks, self._bin = None, torch.zeros_like(times)
        if shown is not None:
            self._ks, self._bin = shown.at_time(times).unique(return_inverse=True)

    def encode(self, x: Tensor, t: Tensor) -> Features:
        return self.frozen.encode_embedded(x, Projected(self._times, self._row[t]))

    def embed(self, z: Tensor) -> ZTables:
        """What the decoder's blocks make of z (B, d) in every bin of time."""
        if self.shown is None or self._ks is None:
            bars = z
        else:
            shown = self.shown
            bars = torch.cat([shown.mask_at(z, k.expand(len(z)).contiguous()) for k in self._ks])
        embedded = self.decoder.label_emb(bars.to(self.decoder.label_emb.weight.dtype))
        return projections(self.decoder, "emb_z_layers", embedded)

    def decode(self, features: Features, tables: ZTables, t: Tensor) -> Tensor:
        row = self._bin[self._row[t]] * len(t) + torch.arange(len(t), device=t.device)
        return self.decoder.decode_embedded(features, Projected(tables, row))
