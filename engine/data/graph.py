"""The image graph in NVIDIA DALI: decode on the CPU; decode, cut and resize on the GPU.

Where to cut is fed in (:mod:`engine.data.feeds`) and nothing is drawn here, since DALI's random state depends
on the batch size. An image is decoded once for x_0 and both views.
"""

# DALI's enumerations come from its binary, and its operators may return lists: neither is in its type stubs.
# mypy: disable-error-code="attr-defined, return-value, assignment"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.plugin.pytorch import feed_ndarray
from torch import Tensor

from engine.data.source import Region

Nodes = dict[str, DataNode]


def build(
    feed: Callable[..., Sequence],
    names: list[str],
    views: Sequence[str],
    *,
    px: int | None,
    encoded: bool,
    region: Region | None,
    batch: int,
    threads: int,
    device_id: int | None,
    depth: int,
    workers: int = 0,
) -> Pipeline:
    """A pipeline whose every run gives images, uint8, and then their indices.

    The images are x_0 and the views that are cut, (B, px, px, 3); without ``px`` they are as decoded, one
    output of B sizes.

    Args:
        feed: called once a run, ahead of time; gives the images, the indices, the arguments ``names``.
            Without ``workers`` it takes no argument; with them it is pickled and takes DALI's BatchInfo.
        names: of the arguments, as :attr:`engine.data.feeds.Reader.names`.
        views: those that are cut from the image ("view_1"); other views are x_0 before mirroring.
        encoded: whether the images are file contents.
        region: cut out of every image first.
        batch: largest B.
        device_id: GPU, or None for the CPU.
        depth: runs that are prepared ahead.
        workers: processes that read; 0: this one.
    """
    elsewhere: dict[str, Any] = {"py_num_workers": workers, "py_start_method": "spawn"} if workers else {}
    pipeline = Pipeline(
        batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=depth, **elsewhere
    )
    reading: dict[str, Any] = {"parallel": True, "batch_info": True} if workers else {}
    with pipeline:
        image, index, *values = fn.external_source(
            source=feed, num_outputs=2 + len(names), batch=True, **reading
        )
        image = _pixels(image, encoded=encoded, on_gpu=device_id is not None)
        if region is not None:
            image = fn.slice(image, start=list(region[:2]), shape=list(region[2:]), axes=(0, 1))
        nodes = dict(zip(names, values, strict=True))
        pipeline.set_outputs(*([image] if px is None else _resized(image, nodes, views, px)), index)
    pipeline.build()
    return pipeline


def decodes(contents: np.ndarray, device_id: int | None = None) -> bool:
    """Whether DALI can decode this file (1-D uint8) on that device."""
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1)
    with pipeline:
        file = fn.external_source(source=lambda: [contents], batch=True)
        pipeline.set_outputs(_pixels(file, encoded=True, on_gpu=device_id is not None))
    try:
        pipeline.run()
    except RuntimeError:
        return False
    return True


def to_torch(output, device: torch.device, stream: torch.cuda.Stream | None) -> Tensor:
    """A copy of a uint8 batch of the graph on ``device``, ready for work on ``stream``."""
    dense = output.as_tensor()
    copy = torch.empty(dense.shape(), dtype=torch.uint8, device=device)
    return feed_ndarray(dense, copy, cuda_stream=stream)


def _pixels(image: DataNode, *, encoded: bool, on_gpu: bool) -> DataNode:
    if encoded:
        return fn.decoders.image(image, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
    image = fn.reshape(image, layout="HWC")
    return image.gpu() if on_gpu else image


def _resized(image: DataNode, nodes: Nodes, views: Sequence[str], px: int) -> list[DataNode]:
    """Bilinear with antialiasing: Resize(px), CenterCrop(px); and the boxes of the views."""
    out = [fn.resize(image, size=(px, px), roi_start=nodes["x_0.start"], roi_end=nodes["x_0.end"])]
    for view in views:
        # Cut first, so that no pixel outside the box enters, as in torchvision's resized_crop.
        box = fn.slice(image, nodes[f"{view}.crop_at"], nodes[f"{view}.crop_size"], axes=(0, 1))
        out.append(fn.resize(box, size=(px, px)))
    return out
