"""The chart of a curve."""

import numpy as np

from engine.edit.chart import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, chart


def places(image, colour):
    """x and y of the pixels of a colour."""
    ys, xs = np.nonzero((np.asarray(image) == colour).all(-1))
    return xs, ys


def test_a_curve_runs_from_corner_to_corner_of_its_axes():
    xs, ys = places(chart([0, 500, 1000], 1000, {"a": [0, 1, 2]}, "title", "t"), COLOURS[0])
    assert abs(xs.min() - LEFT) <= 4
    assert abs(xs.max() - (WIDTH - RIGHT)) <= 4
    assert abs(ys[xs == xs.min()].mean() - (HEIGHT - BOTTOM)) <= 4
    assert abs(ys[xs == xs.max()].mean() - TOP) <= 4


def test_two_curves_have_two_colours_on_one_scale():
    image = chart([0, 1], 1, {"a": [0, 2], "b": [0, 1]}, "title", "t")
    (_, high), (_, low) = (places(image, colour) for colour in COLOURS[:2])
    middle = (TOP + HEIGHT - BOTTOM) / 2
    assert high.min() < middle
    assert len(low)


def test_a_curve_of_zeros_lies_on_the_axis():
    xs, ys = places(chart([0, 1], 1, {"a": [0, 0]}, "title", "t"), COLOURS[0])
    assert abs(ys.mean() - (HEIGHT - BOTTOM)) <= 3
