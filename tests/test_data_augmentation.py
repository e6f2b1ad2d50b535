"""The image graph against torchvision: the same parameters give the same picture, to 2/255 on average."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.augment import view
from engine.data.draws import AUGMENTATIONS, Augmentation, blur_window, crop_boxes, view_draws
from engine.data.feeds import Reader
from engine.data.source import Source
from engine.data.stream import ImageStream
from kernels.philox import STREAM_VIEW_1, STREAM_VIEW_2

pytest.importorskip("nvidia.dali")
functional = pytest.importorskip("torchvision.transforms.functional")
torch.set_num_threads(1)

COUNT = 24
CLOSE = 1.0  # of 255
NEUTRAL = {"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0, "grey": False}
COLOUR = tuple(NEUTRAL)
RESIZERS = pytest.mark.parametrize("in_graph", [False, True], ids=["torch", "DALI"])
STREAMS = {"view_1": STREAM_VIEW_1, "view_2": STREAM_VIEW_2}


def photograph(index: int) -> Image.Image:
    """Coloured surfaces with shading, edges and grain; shapes from wide to tall."""
    rng = np.random.default_rng(index)
    width, height = int(rng.integers(70, 160)), int(rng.integers(70, 160))
    shading = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    image = np.array(shading.resize((width, height)), float)
    for _ in range(6):
        top, left = rng.integers(0, height), rng.integers(0, width)
        surface = image[top : top + 40, left : left + 40]
        surface[:] = 0.5 * surface + rng.integers(0, 128, 3)
    return Image.fromarray((image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8))


class Photographs(Source):
    """A source of photographs in memory."""

    name, encoded = "photographs", False

    def __init__(self):
        self.images = [photograph(i) for i in range(COUNT)]

    def __len__(self):
        return COUNT

    def read(self, indices):
        return [np.asarray(self.images[i]) for i in indices]

    def item(self, index):
        return str(index)

    def describe(self):
        return self.name

    def fingerprint(self):
        return self.name


@pytest.fixture(scope="module")
def source():
    return Photographs()


def ours(
    source, px: int, steps: Augmentation, only: str | None = None, in_graph: bool = False
) -> dict[str, np.ndarray]:
    """One batch of x_0 and both views; with ``only``, the colour steps other than that one are neutral.

    ``in_graph``: cut and resized by DALI, as on a GPU, in place of torch.
    """
    reader = Reader(source, px, seed=5, views=steps)
    asked = [np.arange(COUNT)]
    stream = ImageStream(
        reader, reader.items, asked, batch=COUNT, threads=1, device_id=None, depth=1, resize=in_graph
    )
    batch = stream.run().batch()
    for name, number in STREAMS.items():
        drawn = view_draws(5, asked[0], number)
        if only:
            others = {key: np.full_like(getattr(drawn, key), NEUTRAL[key]) for key in COLOUR if key != only}
            drawn = replace(drawn, **others)
        batch[name] = view(batch.get(name, batch["x_0"]), drawn, steps)
    return {name: batch[name].numpy() for name in ("x_0", *STREAMS)}


def colour(image: torch.Tensor, draws, i: int, step: str) -> torch.Tensor:
    if step == "grey":
        return functional.rgb_to_grayscale(image, 3) if draws.grey[i] else image
    return getattr(functional, f"adjust_{step}")(image, float(getattr(draws, step)[i]))


def through_torchvision(image: Image.Image, i: int, px: int, draws, steps: Augmentation, only: str | None):
    """Geometry on Pillow images as in the published recipes; colour in float, as it rounds down in uint8."""
    if steps.crop:
        box = crop_boxes(draws.crop[i : i + 1], np.array([image.size[::-1]]))[0].tolist()
        image = functional.resized_crop(image, *box, (px, px))
    else:
        image = functional.center_crop(functional.resize(image, px), px)
    out = functional.to_tensor(image)
    if steps.flip and draws.flip[i]:
        out = functional.hflip(out)
    if steps.colour:
        for step in COLOUR if only is None else (only,):
            out = colour(out, draws, i, step)
    if steps.blur and draws.blur[i]:
        out = functional.gaussian_blur(out, blur_window(px), float(draws.sigma[i]))
    return 255 * out.permute(1, 2, 0).numpy()


def differences(
    source, px: int, steps: Augmentation, only: str | None = None, in_graph: bool = False
) -> np.ndarray:
    """Mean absolute difference of each view of each image, in levels of 255."""
    made = ours(source, px, steps, only, in_graph)
    out = []
    for name, stream in STREAMS.items():
        draws = view_draws(5, np.arange(COUNT), stream)
        for i, image in enumerate(source.images):
            expected = through_torchvision(image, i, px, draws, steps, only)
            out.append(np.abs(made[name][i] - expected).mean())
    return np.array(out)


@RESIZERS
@pytest.mark.parametrize("px", [16, 32, 64])
def test_x_0_is_resize_and_centre_crop(source, px, in_graph):
    made = ours(source, px, Augmentation(), in_graph=in_graph)["x_0"]
    for image, got in zip(source.images, made, strict=True):
        expected = np.asarray(functional.center_crop(functional.resize(image, px), px)).astype(float)
        assert np.abs(got - expected).mean() < 0.5


@pytest.mark.parametrize(
    "steps",
    [Augmentation(crop=True), Augmentation(flip=True), Augmentation(blur=True)],
    ids=["crop", "flip", "blur"],
)
@RESIZERS
def test_each_geometric_step_is_that_of_torchvision(source, steps, in_graph):
    assert differences(source, 64, steps, in_graph=in_graph).max() < 0.5


@pytest.mark.parametrize("only", COLOUR)
def test_each_colour_step_is_that_of_torchvision(source, only):
    assert differences(source, 64, Augmentation(colour=True), only).max() < 1.0


@pytest.mark.parametrize(("recipe", "px"), [("crop", 32), ("blur", 64)])
@RESIZERS
def test_whole_recipes_are_those_of_torchvision(source, recipe, px, in_graph):
    measured = differences(source, px, AUGMENTATIONS[recipe], in_graph=in_graph)
    assert measured.mean() < 0.7 * CLOSE
    assert measured.max() < CLOSE


def test_the_steps_change_the_picture_far_more_than_the_tolerance(source):
    """The comparisons above can fail."""
    plain = ours(source, 64, Augmentation())["view_1"].astype(float)
    for only in COLOUR:
        changed = ours(source, 64, Augmentation(colour=True), only)["view_1"]
        assert np.abs(changed - plain).mean(axis=(1, 2, 3)).max() > 2 * CLOSE
