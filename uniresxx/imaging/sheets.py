"""Several pictures on one: below one another, or in columns. PIL only."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from uniresxx.imaging.lettering import PAPER, Colour


def stacked(pictures: Sequence[Image.Image], paper: Colour = PAPER, gap: int = 0) -> Image.Image:
    """Pictures below one another, each in the middle of the widest."""
    width = max(picture.width for picture in pictures)
    height = sum(picture.height for picture in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, height), paper)
    y = 0
    for picture in pictures:
        sheet.paste(picture, ((width - picture.width) // 2, y))
        y += picture.height + gap
    return sheet


def in_columns(
    pictures: Sequence[Image.Image], columns: int, gap: int, margin: int = 0, paper: Colour = PAPER
) -> Image.Image:
    """Pictures row by row, at the top of places of equal width; a row is as tall as its tallest picture.

    Args:
        pictures: at least one.
        columns: pictures in a row.
        gap: between pictures, in pixels.
        margin: around all of them, in pixels.
        paper: the colour between them.
    """
    width = max(picture.width for picture in pictures)
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    across = min(columns, len(pictures))
    size = (
        2 * margin + across * width + (across - 1) * gap,
        2 * margin + sum(heights) + (len(rows) - 1) * gap,
    )
    sheet = Image.new("RGB", size, paper)
    y = margin
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(picture, (margin + column * (width + gap) + (width - picture.width) // 2, y))
        y += height + gap
    return sheet
