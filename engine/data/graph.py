"""The image graph in NVIDIA DALI: decode, x_0, two views; the same on a CPU and, from the decoder on, on a GPU.

Every parameter is fed in (:mod:`engine.data.feeds`), none is drawn here, since DALI's random state depends on the batch size. Colour
follows torchvision (``functional.adjust_*``) in the fixed order brightness, contrast, saturation, hue, each rounded and clamped to uint8.
"""

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
    *,
    px: int,
    encoded: bool,
    batch: int,
    threads: int,
    device_id: int | None,
    depth: int,
) -> Pipeline:
    """A pipeline whose every run gives the uint8 batches x_0 and, if fed, view_1 and view_2, each (B, px, px, 3).

    Args:
        feed: called once a run, ahead of time; gives the images and then the arguments ``names``, first axis B.
        batch: largest B.
        device_id: GPU, or None for the CPU.
        depth: runs that are prepared ahead.
    """
    pipeline = Pipeline(batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=depth)
    with pipeline:
        image, *values = fn.external_source(source=feed, num_outputs=1 + len(names), batch=True)
        image = _pixels(image, encoded, device_id is not None)
        nodes = dict(zip(names, values, strict=True))
        square = _square(image, _under("x_0", nodes), px)
        outputs = [_flip(square, _under("x_0", nodes))]
        outputs += [_view(image, square, arguments, px) for view in ("view_1", "view_2") if (arguments := _under(view, nodes))]
        pipeline.set_outputs(*outputs)
    pipeline.build()
    return pipeline


def decodes(contents: np.ndarray) -> bool:
    """Whether DALI can decode this file."""
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        pipeline.set_outputs(_pixels(fn.external_source(source=lambda: [contents], batch=True), True, False))
    try:
        pipeline.run()
    except RuntimeError:
        return False
    return True


def to_torch(output, device: torch.device, stream: torch.cuda.Stream | None) -> Tensor:
    """A uint8 batch of the graph as a tensor of its own on ``device``, ready for work on ``stream``."""
    dense = output.as_tensor()
    return feed_ndarray(dense, torch.empty(dense.shape(), dtype=torch.uint8, device=device), cuda_stream=stream)


def _under(prefix: str, nodes: Nodes) -> Nodes:
    return {name.removeprefix(f"{prefix}."): node for name, node in nodes.items() if name.startswith(f"{prefix}.")}


def _pixels(image: DataNode, encoded: bool, on_gpu: bool) -> DataNode:
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
    rest = fn.reductions.mean(luma) * _beside(1.0 - factor, image)
    return _clip(fn.brightness(image, brightness=factor, dtype=types.INT16) + fn.cast(rest, dtype=types.INT16))


def _saturation(image: DataNode, factor: DataNode) -> DataNode:
    """factor * image + (1 - factor) * luma: three times as fast as DALI's own, which multiplies by a matrix."""
    grey = fn.brightness(_grey(image), brightness=1.0 - factor, dtype=types.INT16)
    return _clip(fn.brightness(image, brightness=factor, dtype=types.INT16) + grey)


def _clip(image: DataNode) -> DataNode:
    """int16 to uint8, clamped to 0 .. 255."""
    return fn.cast(image, dtype=types.UINT8)


def _hue(image: DataNode, sign: DataNode, hold: DataNode) -> DataNode:
    """Turn the hue of HSV by ``sign`` * (1 - ``hold``) / 6 turns, at most a sixth.

    DALI's own hue turns colours linearly in YIQ, up to 13 / 255 off on photographs. HSV keeps the largest channel M and the smallest m
    of a pixel, and each channel as a function of hue is a trapezoid between them. For a turn of at most a sixth, that is

        R' = clip(R + s * shrink(B - G, hold * (M - m)), m, M)        shrink(u, w) = u - clip(u, -w, w)

    and cyclically for G and B: linear pieces, no division, no branch.
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
