"""From feeds to torch tensors: through the image graph, or directly where it would have nothing to do."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.data.draws import VIEW_STREAMS
from engine.data.feeds import PILLOW_ERRORS, Feed, Reader, reason
from engine.data.source import Source
from engine.errors import DataError, UsageError


class Stream(Protocol):
    """Batches without end."""

    def run(self) -> dict[str, Tensor]:
        """The next batch, on the device: x_0 and views, uint8 (B, px, px, 3); position and index, int64 (B,).

        Raises DataError if an image cannot be read or decoded.
        """

    def close(self) -> None:
        """Free what runs ahead; may be called again."""


def open_stream(
    reader: Reader, feed: Callable[[], Feed], *, batch: int, threads: int, device_id: int | None, depth: int
) -> Stream:
    """The stream that a reader needs: arguments as of :class:`ImageStream`."""
    if passes_directly(reader.source, reader.px, reader.views is not None):
        return DirectStream(feed, _device(device_id))
    return ImageStream(reader, feed, batch=batch, threads=threads, device_id=device_id, depth=depth)


def passes_directly(source: Source, px: int, views: bool) -> bool:
    """Whether the image graph would have nothing to decode, to resize or to augment."""
    return not views and not source.encoded and source.px == px


class DirectStream:
    """Pictures that have the right size already, without views: mirrored, and nothing else.

    It gives what :class:`ImageStream` gives, without DALI.
    """

    def __init__(self, feed: Callable[[], Feed], device: torch.device):
        self._feed, self._device = feed, device

    def run(self) -> dict[str, Tensor]:
        feed = self._feed()
        x_0 = torch.from_numpy(np.array(feed.images))  # a copy: the source may keep its pictures
        flip = feed.arguments.get("x_0.flip")
        if flip is not None:
            x_0 = torch.where(torch.from_numpy(flip)[:, None, None, None] > 0, x_0.flip(2), x_0)
        return {"x_0": x_0.to(self._device, non_blocking=True)} | _names(feed, self._device)

    def close(self) -> None:
        pass


def _names(feed: Feed, device: torch.device) -> dict[str, Tensor]:
    named = {"position": torch.from_numpy(feed.positions), "index": torch.from_numpy(feed.indices)}
    return {name: value.to(device, non_blocking=True) for name, value in named.items()}


def _device(device_id: int | None) -> torch.device:
    return torch.device("cpu" if device_id is None else f"cuda:{device_id}")


class ImageStream:
    """Runs the image graph on the feeds of a reader, and names the image that breaks it.

    Args:
        reader: whose feeds they are.
        feed: gives the next one; called ``depth`` runs ahead.
        batch: largest number of samples of a feed.
        threads: of the graph.
        device_id: GPU, or None for the CPU.
        depth: runs that are prepared ahead.

    Raises:
        UsageError: DALI is not installed.
    """

    def __init__(
        self,
        reader: Reader,
        feed: Callable[[], Feed],
        *,
        batch: int,
        threads: int,
        device_id: int | None,
        depth: int,
    ):
        self._graph, self._source, self._next_feed = _graph(), reader.source, feed
        self._device = _device(device_id)
        self._fed: deque[Feed] = deque()
        self._outputs = ["x_0", *(VIEW_STREAMS if reader.views else ())]
        self._pipeline: Any = self._graph.build(
            self._feed,
            reader.names,
            self._outputs,
            px=reader.px,
            encoded=reader.source.encoded,
            batch=batch,
            threads=threads,
            device_id=device_id,
            depth=depth,
        )

    def run(self) -> dict[str, Tensor]:
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        try:
            outputs = self._pipeline.run(stream)
        except RuntimeError as error:
            raise self._diagnosis(error) from error
        images = (self._graph.to_torch(output, self._device, stream) for output in outputs)
        return dict(zip(self._outputs, images, strict=True)) | _names(self._fed.popleft(), self._device)

    def close(self) -> None:
        self._pipeline = None

    def _feed(self) -> Sequence:
        feed = self._next_feed()
        self._fed.append(feed)
        return [feed.images, *feed.arguments.values()]

    def _diagnosis(self, error: RuntimeError) -> DataError:
        """The error of a graph does not say which image it failed on: try them one by one."""
        if self._source.encoded:
            for feed in self._fed:
                for contents, index in zip(feed.images, feed.indices, strict=True):
                    if not self._graph.decodes(contents):
                        item = self._source.item(index)
                        return DataError(f"cannot decode an image; {item}; {_fault(contents)}")
        return DataError(f"the image graph failed; {self._source.describe()}; {' '.join(str(error).split())}")


def _fault(contents: np.ndarray) -> str:
    """What is wrong with a file that DALI cannot decode."""
    try:
        with Image.open(io.BytesIO(contents.data)) as image:
            image.load()
            return f"this kind of {image.format} is not supported, convert it to JPEG or PNG"
    except PILLOW_ERRORS as error:
        return reason(error)


def _graph() -> ModuleType:
    """The graph module; imported late, as DALI takes half a second."""
    try:
        from engine.data import graph
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("nvidia"):
            raise
        raise UsageError(
            "NVIDIA DALI is not installed; it reads the images; pip install nvidia-dali-cuda130"
        ) from error
    return graph
