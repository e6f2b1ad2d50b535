"""Sheets of images with titles on rows and columns: edits, traversals and samples at a glance."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER = (20, 20, 20), (255, 255, 255)
FRAME = (213, 94, 0)  # vermilion of the Okabe-Ito palette: told apart by colour-blind readers too
GAP, BORDER, MARGIN = 10, 3, 12
GROUP_GAP = 16  # more, between groups
SMALLEST_TILE = 64


def sheet(
    images: np.ndarray,
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    title: str = "",
    scale: int | None = None,
    framed: Collection[tuple[int, int]] = (),
    groups: tuple[int, int] = (0, 0),
    group_titles: Sequence[str] = (),
) -> Image.Image:
    """Lay images out with their titles.

    Args:
        images: (R, C, px, px, 3) uint8.
        row_titles, column_titles: R and C of them, or none at all. Long column titles are broken at spaces.
        scale: whole-number enlargement, pixels stay square; by default to a width of 64 px or more.
        framed: (row, column) of images to frame in colour, as the originals among edits.
        groups: set every so many rows and columns apart; 0: none.
        group_titles: one above each group of columns, or none at all.

    Raises:
        ValueError: shape, dtype or the number of titles is wrong.
    """
    if images.ndim != 5 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(f"expected uint8 images (R, C, px, px, 3), got {images.dtype} {images.shape}")
    rows, columns, height, width, _ = images.shape
    for titles, count, what in ((row_titles, rows, "row"), (column_titles, columns, "column")):
        if len(titles) not in (0, count):
            raise ValueError(f"{count} {what}s but {len(titles)} {what} titles")

    scale = scale or -(-SMALLEST_TILE // width)
    tile_w, tile_h = width * scale, height * scale
    font = text_font(max(12, min(20, tile_w // 7)))
    headline = text_font(font.size * 1.4)
    heads = [_wrap(text, font, tile_w) for text in column_titles]
    pitch_x = max([tile_w, *(_size(head, font)[0] for head in heads)]) + GAP
    pitch_y = tile_h + GAP
    group_rows, group_columns = groups
    left = MARGIN + max((_size(text, font)[0] + GAP for text in row_titles), default=0)
    title_h = _size(title, headline)[1] + MARGIN if title else 0
    groups_h = max((_size(text, headline)[1] + GAP for text in group_titles), default=0)
    top = MARGIN + title_h + groups_h + max((_size(head, font)[1] + GAP for head in heads), default=0)

    def x_of(c: int) -> int:
        return left + c * pitch_x + (c // group_columns * GROUP_GAP if group_columns else 0)

    def y_of(r: int) -> int:
        return top + r * pitch_y + (r // group_rows * GROUP_GAP if group_rows else 0)

    ends = [x_of(g * group_columns) + _size(text, headline)[0] for g, text in enumerate(group_titles)]
    total_w = max([x_of(columns - 1) + pitch_x - GAP, MARGIN + _size(title, headline)[0], *ends]) + MARGIN
    canvas = Image.new("RGB", (total_w, y_of(rows - 1) + tile_h + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.multiline_text((MARGIN, MARGIN), title, INK, headline)
    for g, text in enumerate(group_titles):
        draw.text((x_of(g * group_columns), MARGIN + title_h), text, INK, headline)
    for c, head in enumerate(heads):
        draw.multiline_text((x_of(c) + tile_w / 2, top - GAP), head, INK, font, anchor="md", align="center")
    for r, text in enumerate(row_titles):
        draw.multiline_text((left - GAP, y_of(r) + tile_h / 2), text, INK, font, anchor="rm", align="right")
    for r, c in np.ndindex(rows, columns):
        x, y = x_of(c), y_of(r)
        if (r, c) in framed:
            draw.rectangle((x - BORDER, y - BORDER, x + tile_w + BORDER - 1, y + tile_h + BORDER - 1), FRAME)
        tile = Image.fromarray(images[r, c]).resize((tile_w, tile_h), Image.Resampling.NEAREST)
        canvas.paste(tile, (x, y))
    return canvas


def save(image: Image.Image, path: Path | str) -> Path:
    """Write an image in the format of its suffix, creating the directory; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def text_font(size: float) -> ImageFont.FreeTypeFont:
    """The font of all titles, ``size`` in pixels."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow is built without FreeType and cannot draw titles")
    return font


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Break at spaces so that lines fit into ``width`` pixels; a single word may be wider."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def _size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width and height in pixels of a text, its line spacing and descenders included."""
    if not text:
        return 0, 0
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font)
    return int(np.ceil(right - left)), int(np.ceil(bottom)) + 2
