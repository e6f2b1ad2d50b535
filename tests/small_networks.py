"""Real networks of a few thousand weights, all of them alive: what the tests of editing share."""

import torch

from diffsiam.decoder import Decoder
from diffsiam.sampler import Sampler
from diffsiam.sampling import Recipe
from diffsiam.schedule import Schedule
from diffsiam.subsets import Subsets
from diffsiam.unet import UNet, UNetConfig

TINY = UNetConfig(8, (1, 2), blocks=1, attention=(2,))
DIM, PX = 8, 8
TIED = Subsets([2, 5, 8], "time_tied")


def sampler(awaken, subsets=TIED, recipe=None, **options) -> Sampler:
    """A sampler of tiny random networks; the same ones every time."""
    frozen, decoder = awaken(UNet(TINY)).eval(), awaken(Decoder(TINY, DIM), seed=1).eval()
    return Sampler(frozen, decoder, Schedule(), subsets, recipe or Recipe(3, 4), **options)


def images_and_z(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 3, PX, PX) in [-1, 1] and (N, DIM)."""
    generator = torch.Generator().manual_seed(seed)
    images = 2 * torch.rand(count, 3, PX, PX, generator=generator) - 1
    return images, torch.randn(count, DIM, generator=generator)
