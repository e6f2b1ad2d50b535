"""Image sheets."""

import numpy as np
import pytest

from engine.sheet import FRAME, save, sheet


def checker(rows: int, columns: int, px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, columns, px, px, 3), dtype=np.uint8)


def find(canvas: np.ndarray, tile: np.ndarray) -> list[tuple[int, int]]:
    """Every (y, x) where ``tile`` lies in ``canvas`` bit for bit."""
    h, w = tile.shape[:2]
    ys, xs = np.nonzero((canvas == tile[0, 0]).all(-1))
    return [(y, x) for y, x in zip(ys, xs, strict=True) if np.array_equal(canvas[y : y + h, x : x + w], tile)]


def test_every_image_appears_once_in_its_row_and_column_with_square_pixels():
    images = checker(2, 3, 16)
    canvas = np.asarray(sheet(images, ["first", "second"], ["a", "b", "c"], "title"))
    places = {}
    for r, c in np.ndindex(2, 3):
        (places[r, c],) = find(canvas, images[r, c].repeat(4, axis=0).repeat(4, axis=1))
    assert places[0, 0][0] == places[0, 2][0] < places[1, 0][0]
    assert places[0, 0][1] == places[1, 0][1] < places[0, 1][1] < places[0, 2][1]


def test_large_images_are_not_enlarged_and_a_given_scale_is_kept():
    assert sheet(checker(1, 1, 128)).width < 2 * 128
    assert sheet(checker(1, 1, 16), scale=10).width >= 160


def test_only_the_framed_image_has_a_frame():
    images = np.zeros((1, 2, 64, 64, 3), dtype=np.uint8)
    plain = np.asarray(sheet(images))
    framed = np.asarray(sheet(images, framed=[(0, 1)]))
    _, xs = np.nonzero((framed == FRAME).all(-1))
    assert not (plain == FRAME).all(-1).any()
    assert xs.min() > framed.shape[1] // 2 - 4


def test_titles_wider_than_the_images_do_not_touch_each_other_or_the_edge():
    titles = ["compartmentalisation", "counterfactual of subsets 1 to 4", "x"]
    canvas = np.asarray(
        sheet(np.full((1, 3, 64, 64, 3), 128, np.uint8), ["a long row title"], titles, "A headline")
    )
    ink = (canvas < 100).any(-1)
    assert not ink[:, :4].any()
    assert not ink[:, -4:].any()
    assert not ink[:4].any()
    titles_band = ink[: np.nonzero((canvas == 128).all(-1))[0].min()]
    columns = titles_band.any(0)
    assert np.diff(np.nonzero(columns)[0]).max() >= 6, "the titles run into each other"


def test_wrong_shapes_and_missing_titles_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        sheet(np.zeros((1, 1, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="2 columns but 1 column titles"):
        sheet(checker(1, 2, 8), column_titles=["one"])


def test_a_saved_sheet_reads_back_the_same(tmp_path):
    from PIL import Image

    image = sheet(checker(1, 2, 8), title="t")
    path = save(image, tmp_path / "new" / "sheet.png")
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(image))


def test_groups_are_further_apart_than_their_members_and_have_titles():
    images = checker(4, 4, 64)
    plain = np.asarray(sheet(images))
    canvas = np.asarray(sheet(images, groups=(2, 2), group_titles=["one", "two"]))
    places = [find(canvas, images[0, c])[0] for c in range(4)]
    xs, top = [x for _, x in places], places[0][0]
    assert xs[1] - xs[0] == xs[3] - xs[2] < xs[2] - xs[1]
    ys = [find(canvas, images[r, 0])[0][0] for r in range(4)]
    assert ys[1] - ys[0] == ys[3] - ys[2] < ys[2] - ys[1]
    assert canvas.shape[1] > plain.shape[1]
    ink = (canvas[:top] < 100).any(-1).any(0)
    assert ink[xs[0] : xs[1]].any()
    assert ink[xs[2] : xs[3]].any()
