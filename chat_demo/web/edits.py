"""Changes of a mask by clicks and a brush. Masks are bool (y, x) at the photo's size, places (x, y) in its pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from uniresxx.errors import InputError
from uniresxx.model.regions.classical import one_coloured

MOST_POINTS = 2000  # of one stroke
LEAST_SHARE = 1 / 2000  # of the photo: a smaller region under a click is taken as a disc of this area


def clicked(
    photo: np.ndarray,
    mask: np.ndarray,
    x: float,
    y: float,
    add: bool,
    region_at: Callable[[float, float], np.ndarray | None] = lambda *_: None,
) -> np.ndarray:
    """The mask with the region under a click, or without it. Where the region is only a speck, it is a small disc.

    Args:
        photo: uint8 (y, x, 3).
        mask: bool (y, x).
        x: place of the click.
        y: likewise, downwards.
        add: False: the region is taken away.
        region_at: the region as a model finds it, bool (y, x); where it gives None, it is the connected region of
            about one colour that the pixels-only proposer sees.

    Raises:
        InputError: the click is not in the photo.
    """
    row, column = _place(photo, x, y)
    region = region_at(x, y)
    if region is None:
        regions = one_coloured(photo)
        region = regions == regions[row, column]
    least = LEAST_SHARE * region.size
    if np.count_nonzero(region) < least:
        region = region | _disc(region.shape, row, column, math.sqrt(least / math.pi))
    return mask | region if add else mask & ~region


def painted(mask: np.ndarray, points: Sequence[Sequence[float]], radius: float, erase: bool) -> np.ndarray:
    """The mask after a stroke of the brush or the eraser.

    Args:
        mask: bool (y, x).
        points: places that the stroke went through, at least one.
        radius: of the brush in pixels of the photo.
        erase: whether pixels are taken away.

    Raises:
        InputError: the stroke is no list of places, or too long.
    """
    places = _places(points)
    if not math.isfinite(radius) or not 0 < radius <= max(mask.shape):
        raise InputError("the brush has no such size: choose a smaller one")
    canvas = Image.new("1", (mask.shape[1], mask.shape[0]))
    pen = ImageDraw.Draw(canvas)
    if len(places) > 1:
        pen.line(places, fill=1, width=max(1, round(2 * radius)), joint="curve")
    for x, y in places:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    stroke = np.asarray(canvas)
    return mask & ~stroke if erase else mask | stroke


def _places(points: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """The places of a stroke, as numbers that can be drawn."""
    try:
        places = [(float(x), float(y)) for x, y in points[: MOST_POINTS + 1]]
    except (TypeError, ValueError):
        places = []
    if not places or len(places) > MOST_POINTS or any(not abs(v) < 1e6 for place in places for v in place):
        raise InputError("this stroke cannot be drawn: draw a shorter one")
    return places


def _place(photo: np.ndarray, x: float, y: float) -> tuple[int, int]:
    """(row, column) of a click; InputError where it is not in the photo."""
    height, width = photo.shape[:2]
    if not (0 <= x < width and 0 <= y < height):
        raise InputError("this click is not in the picture")
    return int(y), int(x)


def _disc(size: tuple[int, ...], row: int, column: int, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: size[0], : size[1]]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
