"""Small sets live decoded in memory, as uint8: of the host, or of the GPU that trains.

CIFAR-10 takes 0.15 GB, CelebA at 64 px 2.5 GB, FFHQ at 128 px 3.4 GB. Images are decoded once, when training
starts; from then on nothing is read. In host memory every pixel is what it would be without.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.data.broken import Quarantine
from engine.data.draws import VIEW_STREAMS, augmentation
from engine.data.feeds import Reader
from engine.data.fetching import fetch_parts
from engine.data.source import Source
from engine.data.stream import Runs
from engine.errors import UsageError

HOST_SHARE, DEVICE_SHARE = 0.25, 0.15  # of free memory that "auto" takes
LARGEST = 8 << 30  # bytes that "auto" takes: decoding more would delay the first step by minutes


class ResidentSource(Source):
    """A source whose images are held as x_0 before mirroring.

    Args:
        whole: the source.
        images: (N, px, px, 3) uint8, on the CPU or on a GPU.
    """

    encoded = False

    def __init__(self, whole: Source, images: Tensor):
        self.whole, self.images = whole, images
        self.name, self.px = whole.name, int(images.shape[1])

    @property
    def on_device(self) -> bool:
        return self.images.device.type != "cpu"

    @property
    def framing(self) -> str:
        return self.whole.framing

    @property
    def labels(self) -> np.ndarray | None:
        return self.whole.labels

    @property
    def classes(self) -> Sequence[str]:
        return self.whole.classes

    @property
    def attributes(self) -> np.ndarray | None:
        return self.whole.attributes

    @property
    def attribute_names(self) -> Sequence[str]:
        return self.whole.attribute_names

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The images ``indices``, (B, px, px, 3) uint8."""
        return self.images[torch.from_numpy(indices).to(self.images.device)].cpu().numpy()

    def item(self, index: int) -> str:
        return self.whole.item(index)

    def describe(self) -> str:
        where = "device" if self.on_device else "host"
        return f"{self.whole.describe()}, {self.images.nbytes / 2**30:.2f} GiB resident on the {where}"

    def fingerprint(self) -> str:
        return self.whole.fingerprint()


@dataclass(frozen=True)
class Residence:
    """Where a source is to live: "device", "host" or "off", and why."""

    where: str
    reason: str


def choose(
    wanted: str, source: Source, px: int, recipe: str | None, device: torch.device, ranks_here: int = 1
) -> Residence:
    """Where the images of a run live.

    Args:
        wanted: data.resident: "auto", "device", "host" or "off".
        recipe: of the views, None without views.
        ranks_here: ranks that share this host's memory.

    Raises:
        UsageError: what is wanted is impossible.
    """
    size = len(source) * px * px * 3
    cuts = recipe is not None and augmentation(recipe, px).crop
    if wanted == "device" and device.type != "cuda":
        raise UsageError("data.resident=device needs a GPU; use host, or auto")
    if wanted in ("host", "device") and cuts and source.px != px:
        raise UsageError(
            f"data.resident={wanted}: the recipe crop cuts views out of whole images, and these are not "
            f"known to be {px} x {px}; use data.augment=blur, or diffsiam prepare, or data.resident=off"
        )
    if wanted != "auto":
        return Residence(wanted, "data.resident")
    if cuts and source.px != px:
        return Residence("off", "views are cut out of whole images")
    on_device = DEVICE_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    if size <= min(LARGEST, on_device):
        return Residence("device", f"{size / 2**30:.2f} GiB fit")
    if not source.encoded and source.px == px:
        return Residence("off", "pictures are in memory or in a file of pixels already")
    if size <= min(LARGEST, HOST_SHARE * _free_bytes() / ranks_here):
        return Residence("host", f"{size / 2**30:.2f} GiB fit")
    return Residence("off", f"{size / 2**30:.1f} GiB are too much for host and device memory")


def load(
    source: Source, px: int, device: torch.device, threads: int, quarantine: Quarantine | None = None
) -> ResidentSource:
    """Decode a source onto ``device``. Broken images are quarantined and stay black: none is shown."""
    images = torch.zeros((len(source), px, px, 3), dtype=torch.uint8, device=device)
    asked = np.arange(len(source))
    for start, made, indices in fetch_parts(source, px, asked, threads, quarantine):
        whole = torch.from_numpy(indices == asked[start : start + len(indices)])
        part = torch.where(
            whole[:, None, None, None], torch.from_numpy(made), torch.zeros((), dtype=torch.uint8)
        )
        images[start : start + len(made)] = part.to(device)
    return ResidentSource(source, images)


class DeviceStream:
    """Batches gathered on the device that holds the images; views are cut there, too."""

    def __init__(self, reader: Reader, runs: Runs):
        assert isinstance(reader.source, ResidentSource)
        self._reader, self._runs, self._images, self._run = reader, runs, reader.source.images, 0

    def run(self) -> dict[str, Tensor]:
        positions = self._runs[self._run]
        self._run += 1
        indices = self._reader.indices(positions)
        x_0 = self._images[torch.from_numpy(indices).to(self._images.device, non_blocking=True)]
        batch = {"x_0": x_0, "position": torch.from_numpy(positions), "index": torch.from_numpy(indices)}
        boxes = self._reader.boxes(positions, np.full((len(positions), 2), self._reader.px))
        return batch | {view: cut_and_resized(x_0, boxes[view]) for view in VIEW_STREAMS if view in boxes}

    def close(self) -> None:
        pass


def cut_and_resized(images: Tensor, boxes: np.ndarray) -> Tensor:
    """torchvision's resized_crop back to the size of the images, bilinear with antialiasing.

    Resampling is linear in the pixels and separable: one matrix of weights from the left, one from the right.

    Args:
        images: (B, S, S, 3) uint8.
        boxes: (B, 4) int64 top, left, height, width in pixels.

    Returns:
        (B, S, S, 3) uint8.
    """
    size, box = images.shape[1], torch.from_numpy(boxes).to(images.device, torch.float32)
    rows = _weights(box[:, 0], box[:, 2], size)
    columns = _weights(box[:, 1], box[:, 3], size)
    x = images.permute(0, 3, 1, 2).float()
    x = rows[:, None] @ x @ columns[:, None].transpose(-1, -2)
    return (
        x.round_().clamp_(0, 255).permute(0, 2, 3, 1).to(torch.uint8, memory_format=torch.contiguous_format)
    )


def _weights(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(B, size, size): how much each pixel of a line gives to each pixel of the resized box."""
    grid = torch.arange(size, device=start.device, dtype=torch.float32) + 0.5
    scale = length[:, None] / size
    centre = start[:, None] + grid * scale
    weight = (1 - (grid[None, None] - centre[..., None]).abs() / scale.clamp(min=1)[..., None]).clamp_(min=0)
    end = start + length
    inside = (grid > start[:, None]) & (grid < end[:, None])
    weight = weight * inside[:, None]
    return weight / weight.sum(dim=-1, keepdim=True)


def _free_bytes() -> int:
    """Host memory that is free or can be freed."""
    try:
        with open("/proc/meminfo") as file:
            table = dict(line.split(":") for line in file)
        return int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
