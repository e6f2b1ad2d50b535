"""Augmentation parameters are pure functions of (seed, position), distributed as SimSiam's."""

import numpy as np
import pytest

from engine.data.draws import (
    AUGMENTATIONS,
    CROP_TRIES,
    Augmentation,
    augmentation,
    blur_window,
    crop_boxes,
    flips,
    view_draws,
)
from engine.errors import UsageError
from kernels.philox import STREAM_VIEW_1, STREAM_VIEW_2

MANY = np.arange(20_000)
FIELDS = ("flip", "brightness", "contrast", "saturation", "hue", "grey", "blur", "sigma", "crop")


@pytest.fixture(scope="module")
def drawn():
    return view_draws(7, MANY, STREAM_VIEW_1)


def test_a_sample_keeps_its_parameters_in_any_batch(drawn):
    part = view_draws(7, MANY[100:103], STREAM_VIEW_1)
    for field in FIELDS:
        assert np.array_equal(getattr(part, field), getattr(drawn, field)[100:103])


@pytest.mark.parametrize("field", FIELDS)
def test_the_two_views_are_drawn_apart(drawn, field):
    other = getattr(view_draws(7, MANY, STREAM_VIEW_2), field).astype(float).ravel()
    assert abs(np.corrcoef(getattr(drawn, field).astype(float).ravel(), other)[0, 1]) < 0.03


@pytest.mark.parametrize(("field", "chance"), [("flip", 0.5), ("grey", 0.2), ("blur", 0.5)])
def test_steps_are_taken_as_often_as_published(drawn, field, chance):
    assert getattr(drawn, field).mean() == pytest.approx(chance, abs=0.015)


def test_four_views_in_five_are_jittered_in_all_four_ways_and_the_others_in_none(drawn):
    changed = np.stack([drawn.brightness != 1, drawn.contrast != 1, drawn.saturation != 1, drawn.hue != 0])
    assert (changed.all(axis=0) | ~changed.any(axis=0)).all()
    assert changed[0].mean() == pytest.approx(0.8, abs=0.015)


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.6, 1.4),
        ("hue", -0.1, 0.1),
        ("sigma", 0.1, 2),
    ],
)
def test_factors_fill_their_published_range(drawn, field, low, high):
    values, margin = getattr(drawn, field), 0.01 * (high - low)
    assert low <= values.min() <= low + margin
    assert high - margin <= values.max() <= high
    assert values.mean() == pytest.approx((low + high) / 2, abs=2 * margin)


def test_x_0_is_mirrored_half_of_the_time():
    assert flips(7, MANY).mean() == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize("size", [(32, 32), (200, 300), (1, 1), (3, 200)])
def test_crop_boxes_lie_inside_the_image(drawn, size):
    top, left, height, width = crop_boxes(drawn.crop, np.tile(size, (len(MANY), 1))).T
    assert top.min() >= 0
    assert left.min() >= 0
    assert height.min() >= 1
    assert width.min() >= 1
    assert (top + height).max() <= size[0]
    assert (left + width).max() <= size[1]


def test_crop_areas_and_ratios_are_those_of_the_recipe(drawn):
    _, _, height, width = crop_boxes(drawn.crop, np.tile((1000, 1000), (len(MANY), 1))).T
    area, ratio = height * width / 1e6, width / height
    assert area.min() == pytest.approx(0.2, abs=0.01)
    assert area.max() > 0.98
    assert ratio.min() == pytest.approx(3 / 4, abs=0.01)
    assert ratio.max() == pytest.approx(4 / 3, abs=0.01)
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.01)


def test_the_first_try_that_fits_is_taken():
    tries = np.full((1, CROP_TRIES, 4), 0.999)  # as large and as wide as can be: sticks out of a square
    tries[0, 3] = (0.0, 0.5, 0.0, 0.999)
    tries[0, 4] = (0.5, 0.5, 0.5, 0.5)
    side = round((0.2 * 100 * 100) ** 0.5)
    assert crop_boxes(tries, np.array([[100, 100]])).tolist() == [[0, 100 - side, side, side]]


@pytest.mark.parametrize(
    ("size", "box"),
    [((100, 100), (0, 0, 100, 100)), ((100, 300), (0, 83, 100, 133)), ((300, 90), (90, 0, 120, 90))],
)
def test_without_a_fitting_try_the_centre_is_taken(size, box):
    tries = np.full((1, CROP_TRIES, 4), 0.999)
    if size[1] < size[0]:
        tries[..., 1] = 0.0  # as tall as can be
    assert crop_boxes(tries, np.array([size])).tolist() == [list(box)]


@pytest.mark.parametrize(
    ("name", "px", "same_as"), [("auto", 32, "crop"), ("auto", 64, "blur"), ("none", 64, "none")]
)
def test_the_recipe_follows_the_size_unless_it_is_named(name, px, same_as):
    assert augmentation(name, px) == AUGMENTATIONS[same_as]


def test_small_images_are_cropped_and_not_blurred_and_large_ones_the_reverse():
    assert AUGMENTATIONS["crop"] == Augmentation(crop=True, flip=True, colour=True, blur=False)
    assert AUGMENTATIONS["blur"] == Augmentation(crop=False, flip=True, colour=True, blur=True)


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="auto, crop, blur, none"):
        augmentation("cutout", 32)


def test_the_blur_kernel_is_odd_and_about_a_tenth_of_the_image():
    assert [blur_window(px) for px in (32, 64, 128)] == [3, 7, 13]
