"""The image graph in NVIDIA DALI: decode, x_0, two views; one graph for the CPU and the GPU.

Every parameter is fed in (:mod:`engine.data.feeds`) and none is drawn here, since DALI's random state depends
on the batch size. Colour follows torchvision's ``functional.adjust_*`` in the fixed order brightness,
contrast, saturation, hue, each rounded and clamped to uint8.
"""

# DALI's enumerations come from its binary, and its operators may return lists: neither is in its type stubs.
# mypy: disable-error-code="attr-defined, return-value, assignment"

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.plugin.pytorch import feed_ndarray
from torch import Tensor

Nodes = dict[str, DataNode]


def build(
    feed: Callable[[], Sequence],
    names: list[str],
    outputs: list[str],
    *,
    px: int,
    encoded: bool,
    batch: int,
    threads: int,
    device_id: int | None,
    depth: int,
) -> Pipeline:
    """A pipeline whose every run gives uint8 batches (B, px, px, 3).

    Args:
        feed: called once a run, ahead of time; gives the images, then the arguments ``names``, first axis B.
        names: of the arguments, as :attr:`engine.data.feeds.Reader.names`.
        outputs: "x_0", then the views.
        encoded: whether the images are file contents.
        batch: largest B.
        device_id: GPU, or None for the CPU.
        depth: runs that are prepared ahead.
    """
    pipeline = Pipeline(
        batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=depth
    )
    with pipeline:
        image, *values = fn.external_source(source=feed, num_outputs=1 + len(names), batch=True)
        image = _pixels(image, encoded=encoded, on_gpu=device_id is not None)
        nodes = dict(zip(names, values, strict=True))
        square = _square(image, _under("x_0", nodes), px)
        x_0 = _flip(square, _under("x_0", nodes))
        pipeline.set_outputs(x_0, *(_view(image, square, _under(view, nodes), px) for view in outputs[1:]))
    pipeline.build()
    return pipeline


def decodes(contents: np.ndarray) -> bool:
    """Whether DALI can decode this file (1-D uint8), on the CPU."""
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        file = fn.external_source(source=lambda: [contents], batch=True)
        pipeline.set_outputs(_pixels(file, encoded=True, on_gpu=False))
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


def _under(prefix: str, nodes: Nodes) -> Nodes:
    start = f"{prefix}."
    return {name.removeprefix(start): node for name, node in nodes.items() if name.startswith(start)}


def _pixels(image: DataNode, *, encoded: bool, on_gpu: bool) -> DataNode:
    if encoded:
        return fn.decoders.image(image, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
    image = fn.reshape(image, layout="HWC")
    return image.gpu() if on_gpu else image


def _square(image: DataNode, arguments: Nodes, px: int) -> DataNode:
    """Resize(px), CenterCrop(px), bilinear with antialiasing."""
    return fn.resize(image, size=(px, px), roi_start=arguments["start"], roi_end=arguments["end"])


def _view(image: DataNode, square: DataNode, arguments: Nodes, px: int) -> DataNode:
    view = square
    if "crop_at" in arguments:
        # Cut first, so that no pixel outside the box enters, as in torchvision's resized_crop.
        cut = fn.slice(image, arguments["crop_at"], arguments["crop_size"], axes=(0, 1))
        view = fn.resize(cut, size=(px, px))
    view = _flip(view, arguments)
    if "brightness" in arguments:
        view = fn.brightness(view, brightness=arguments["brightness"])
        view = _contrast(view, arguments["contrast"])
        view = _saturation(view, arguments["saturation"])
        view = _hue(view, arguments["hue_sign"], arguments["hue_hold"])
        view = view * _beside(arguments["coloured"], view) + _grey(view) * _beside(arguments["grey"], view)
    if "window" in arguments:
        view = fn.gaussian_blur(view, window_size=arguments["window"], sigma=arguments["sigma"])
    return view


def _flip(image: DataNode, arguments: Nodes) -> DataNode:
    return fn.flip(image, horizontal=arguments["flip"]) if "flip" in arguments else image


def _beside(scalar: DataNode, image: DataNode) -> DataNode:
    """``scalar`` on the device of ``image``."""
    return scalar.gpu() if image.device == "gpu" else scalar


def _grey(image: DataNode) -> DataNode:
    """Luma (0.299, 0.587, 0.114) in all three channels."""
    luma = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)
    return fn.color_space_conversion(luma, image_type=types.GRAY, output_type=types.RGB)


def _contrast(image: DataNode, factor: DataNode) -> DataNode:
    """factor * image + (1 - factor) * mean luma of the image."""
    luma = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)
    rest = fn.cast(fn.reductions.mean(luma) * _beside(1.0 - factor, image), dtype=types.INT16)
    return _clip(fn.brightness(image, brightness=factor, dtype=types.INT16) + rest)


def _saturation(image: DataNode, factor: DataNode) -> DataNode:
    """factor * image + (1 - factor) * luma; twice as fast as DALI's own, which multiplies by a matrix."""
    grey = fn.brightness(_grey(image), brightness=1.0 - factor, dtype=types.INT16)
    return _clip(fn.brightness(image, brightness=factor, dtype=types.INT16) + grey)


def _clip(image: DataNode) -> DataNode:
    """int16 to uint8, clamped to 0 .. 255."""
    return fn.cast(image, dtype=types.UINT8)


def _hue(image: DataNode, sign: DataNode, hold: DataNode) -> DataNode:
    """Turn the hue of HSV by ``sign`` * (1 - ``hold``) / 6 turns, at most a sixth.

    DALI's own hue is a linear turn in YIQ, up to 13 / 255 off on photographs. In HSV the largest channel M
    and the smallest m of a pixel stay, and each channel as a function of hue is a trapezoid between them. For
    a turn of at most a sixth that is, without division or branch,

        R' = clip(R + shrink(sign * (B - G), hold * (M - m)), m, M)        shrink(u, w) = u - clip(u, -w, w)

    and cyclically for G and B.
    """
    red, green, blue = (fn.cast(image[:, :, channel], dtype=types.INT16) for channel in range(3))
    largest = math.max(math.max(red, green), blue)
    smallest = math.min(math.min(red, green), blue)
    sign, hold = _beside(sign, image), _beside(hold, image)
    width = fn.cast(hold * (largest - smallest), dtype=types.INT16)
    least = -width

    def turned(channel: DataNode, before: DataNode, after: DataNode) -> DataNode:
        # min and max, as DALI's clamp is several times slower.
        pull = sign * (before - after)
        moved = channel + pull - math.min(math.max(pull, least), width)
        return fn.cast(math.min(math.max(moved, smallest), largest), dtype=types.UINT8)

    channels = turned(red, blue, green), turned(green, red, blue), turned(blue, green, red)
    return fn.stack(*channels, axis=2, axis_name="C")
