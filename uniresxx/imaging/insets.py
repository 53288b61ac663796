"""The zoomed surroundings of a small mask, in a corner of the picture that no mask needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot

import numpy as np
from PIL import Image, ImageDraw

from uniresxx.imaging.badges import Rectangle
from uniresxx.imaging.lettering import PAPER, Colour
from uniresxx.imaging.marking import SHARP_SIDE, Lines, Size, mark, scaled_mask, scaled_photo
from uniresxx.imaging.shapes import Shape, Window

SHARE = 0.36  # side of the zoomed picture: of the drawn photo's shorter side
LEAST_ZOOM, LEAST_SIDE = 1.6, 48  # against the drawn photo; pixels
FRAME = 3  # white around the zoomed picture, pixels


@dataclass(frozen=True, slots=True)
class Inset:
    """What is zoomed, where it is in the picture, and the place of the zoomed picture with its frame."""

    window: Window
    target: Rectangle
    place: Rectangle


def zoomed(photo: np.ndarray, window: Window, side: int, colour: Colour, lines: Lines) -> np.ndarray:
    """The window with its mask marked, uint8 (side, side, 3)."""
    edge = window.mask.shape[0]
    part = photo[window.top : window.top + edge, window.left : window.left + edge]
    canvas = scaled_photo(part, (side, side), sharp=max(photo.shape[:2]) <= SHARP_SIDE)
    mark(canvas, [scaled_mask(window.mask, (side, side))], [colour], lines)
    return canvas


def inset_side(shape: Shape, photo_size: Size, size: Size) -> int:
    """Side of the zoomed picture of a mask in a photo drawn at `size`, 0 where it needs none."""
    if shape.window is None:
        return 0
    side = round(SHARE * min(size))
    zoom = side / (shape.window.mask.shape[0] * size[0] / photo_size[0])
    return side if side >= LEAST_SIDE and zoom >= LEAST_ZOOM else 0


def located(window: Window, photo_size: Size, size: Size) -> Rectangle:
    """The window's place in a photo drawn at `size`."""
    top, left, bottom, right = (
        round(at * drawn / real)
        for at, drawn, real in (
            (window.top, size[0], photo_size[0]),
            (window.left, size[1], photo_size[1]),
            (window.top + window.mask.shape[0], size[0], photo_size[0]),
            (window.left + window.mask.shape[1], size[1], photo_size[1]),
        )
    )
    return Rectangle(left, top, right - left, bottom - top)


def free_corner(
    target: Rectangle, side: int, canvas: np.ndarray, needed: np.ndarray, taken: Sequence[Rectangle]
) -> Rectangle | None:
    """A free corner with little in it, near the target but rather not next to it; None where none is free.

    Args:
        target: place of the window in the picture.
        side: of the zoomed picture without its frame.
        canvas: the picture, uint8 (y, x, 3).
        needed: bool (y, x), pixels that must stay visible.
        taken: where other things are.
    """
    height, width = needed.shape
    gap, whole, away = max(4, side // 16), side + 2 * FRAME, side // 4
    around = Rectangle(
        target.left - away, target.top - away, target.width + 2 * away, target.height + 2 * away
    )
    found: list[tuple[bool, float, Rectangle]] = []
    for left in (gap, width - whole - gap):
        for top in (gap, height - whole - gap):
            place = Rectangle(left, top, whole, whole)
            free = min(left, top) >= 0 and not any(place.meets(other) for other in (target, *taken))
            if free and not needed[place.part].any():
                way = hypot(place.middle[0] - target.middle[0], place.middle[1] - target.middle[1])
                cost = _detail(canvas[place.part]) * (1 + way / hypot(height, width))
                found.append((place.meets(around), cost, place))
    return min(found, key=lambda item: item[:2])[2] if found else None


def _detail(part: np.ndarray) -> float:
    """How much a part of the picture changes from pixel to pixel."""
    grey = part.mean(axis=2)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def draw_inset(picture: Image.Image, inset: Inset, content: np.ndarray, keep: np.ndarray) -> None:
    """Paste the zoomed picture, and frame what it shows; a line joins the two.

    Args:
        picture: drawn on.
        inset: its place and what it shows.
        content: uint8 (side, side, 3).
        keep: bool (y, x), pixels of the picture that no line may change.
    """
    before, pen = np.array(picture), ImageDraw.Draw(picture)
    wide = max(1, round(max(picture.size) / 640))
    pen.line((*_leaving(inset.target, inset.place.middle), *inset.place.middle), fill=PAPER, width=wide)
    pen.rectangle(inset.target.corners, outline=PAPER, width=wide)
    after = np.array(picture)
    after[keep] = before[keep]
    picture.paste(Image.fromarray(after))
    pen.rectangle(inset.place.corners, fill=PAPER)
    picture.paste(Image.fromarray(content), (inset.place.left + FRAME, inset.place.top + FRAME))


def _leaving(box: Rectangle, end: tuple[float, float]) -> tuple[float, float]:
    """Where the way from the middle of the box to `end` crosses the box's edge."""
    start = box.middle
    moves = end[0] - start[0], end[1] - start[1]
    halves = box.width / 2, box.height / 2
    part = min([1.0, *(half / abs(move) for half, move in zip(halves, moves, strict=True) if move)])
    return start[0] + part * moves[0], start[1] + part * moves[1]
