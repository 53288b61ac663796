"""Outlines as annotation tools write them, as functions of the photo's size that draw the mask."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uniresxx.data.own.annotations import Draw, Size
from uniresxx.data.own.values import number_of, size_of
from uniresxx.data.readers.fields import shown
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.types import RLE

Polygon = Sequence[float]  # x0, y0, x1, y1, …
LEAST_CIRCLE_POINTS = 12
MAX_RADIUS = 1e6


def unreadable(error: InputError) -> Draw:
    """An outline that cannot be read: to draw it raises why."""

    def draw(size: Size) -> RLE:
        raise error

    return draw


def no_area(size: Size) -> RLE:
    """The mask of points and lines."""
    return masks.empty(*size)


def polygons(outlines: Sequence[Polygon], per_unit: float | None = None) -> Draw:
    """OR of polygons, filled as pycocotools does; a polygon of fewer than 6 numbers is skipped.

    Args:
        outlines: corners in pixels, or in units of the photo's sides.
        per_unit: how many units a side has: 1 for fractions, 100 for percent, None for pixels.
    """

    def draw(size: Size) -> RLE:
        height, width = size
        scale = np.ones(2) if per_unit is None else np.array([width, height], dtype=np.float64)
        solid = []
        for outline in outlines:
            if len(outline) % 2:
                raise InputError(f"a polygon of {len(outline)} numbers has half a corner")
            corners = np.array(outline, dtype=np.float64).reshape(-1, 2) * scale / (per_unit or 1)
            low, high = (corners.min(axis=0), corners.max(axis=0)) if len(corners) else (scale, -scale)
            if (high >= 0).all() and (
                low <= (width, height)
            ).all():  # otherwise it covers no pixel of the photo
                solid.append(corners.ravel().tolist())
        return masks.from_polygons(solid, height, width)

    return draw


def points_to_polygon(points: Any) -> list[float]:
    """[[x, y], …] as x0, y0, x1, y1, …; InputError where it is none."""
    if not isinstance(points, list | tuple) or not all(
        isinstance(point, list | tuple) and len(point) >= 2 for point in points
    ):
        raise InputError(f"points must be a list of x and y, not {shown(points)}")
    return [number_of(value) for point in points for value in point[:2]]


def rectangle(x1: float, y1: float, x2: float, y2: float) -> Polygon:
    """The polygon of a rectangle, in the order of labelme's and VIA's own converters."""
    return (x1, y1, x2, y1, x2, y2, x1, y2)


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0.0) -> Polygon:
    """The polygon of a circle or an ellipse.

    A circle has the points of labelme's converter: n = max(int(pi / acos(1 - 1/r)), 12) of them, from (x, y + r)
    on. An ellipse has as many as the circle of its longer radius (our choice), turned clockwise by `degrees`.
    """
    longest = max(rx, ry)
    if longest <= 0:
        return ()
    if longest > MAX_RADIUS:
        raise InputError(f"a radius of {longest:g} pixels is larger than any photo")
    cosine = 1 - 1 / longest
    count = max(int(math.pi / math.acos(cosine)), LEAST_CIRCLE_POINTS) if cosine > -1 else LEAST_CIRCLE_POINTS
    angles = 2 * math.pi / count * np.arange(count)
    across, down = rx * np.sin(angles), ry * np.cos(angles)
    turn = math.radians(degrees)
    xs, ys = across, down
    if degrees:
        xs = across * math.cos(turn) - down * math.sin(turn)
        ys = across * math.sin(turn) + down * math.cos(turn)
    return np.stack((x + xs, y + ys), axis=1).ravel().tolist()


def coco_outline(segmentation: Any) -> tuple[Draw | None, Size | None]:
    """(how to draw a COCO `segmentation`, the size it states); (None, None) where it is missing or empty.

    Polygons, one flat polygon, run lengths with counts as a list or text, or a list of these.
    """
    if not _has_content(segmentation):
        return None, None
    if isinstance(segmentation, Mapping):
        return _run_lengths([segmentation])
    if not isinstance(segmentation, list | tuple):
        raise InputError(f"segmentation must be polygons or run lengths, not {shown(segmentation)}")
    codes = [item for item in segmentation if isinstance(item, Mapping)]
    rest = [item for item in segmentation if not isinstance(item, Mapping)]
    if rest and not any(isinstance(item, list | tuple) for item in rest):
        rest = [rest]  # one flat polygon
    outlines = [[number_of(value) for value in _as_list(item)] for item in rest if item is not None]
    drawn, (coded, size) = polygons(outlines), _run_lengths(codes) if codes else (None, None)
    if coded is None:
        return drawn, None
    both = coded
    return (lambda size: masks.union([both(size), drawn(size)], size)), size


def _has_content(segmentation: Any) -> bool:
    if isinstance(segmentation, Mapping):
        return bool(segmentation.get("counts"))
    if isinstance(segmentation, list | tuple):
        return any(
            _has_content(item) if isinstance(item, list | tuple | dict) else item is not None
            for item in segmentation
        )
    return bool(segmentation)


def _as_list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise InputError(f"a polygon must be a list of numbers, not {shown(value)}")
    return value


def _run_lengths(codes: Sequence[Mapping[str, Any]]) -> tuple[Draw, Size | None]:
    """OR of COCO run lengths; sizes may be written as 64.0."""
    stated = codes[0].get("size")
    size = size_of(*stated) if isinstance(stated, list | tuple) and len(stated) == 2 else None
    counts = [code.get("counts") for code in codes]
    whole = [
        [int(run) if isinstance(run, float) and run.is_integer() else run for run in item]
        if isinstance(item, list)
        else item
        for item in counts
    ]

    def draw(size: Size) -> RLE:
        return masks.union([masks.from_coco({"size": [*size], "counts": c}, *size) for c in whole], size)

    return draw, size


def brush(numbers: Any) -> Draw:
    """A mask in Label Studio's own run-length code: a pixel is in where its alpha is above 0."""

    def draw(size: Size) -> RLE:
        height, width = size
        values = decode_brush(numbers, 4 * height * width)
        return masks.encode(values.reshape(height, width, 4)[..., 3] > 0)

    return draw


def decode_brush(numbers: Any, expected: int) -> np.ndarray:
    """uint8 values of Label Studio's run-length code (`label_studio_sdk.converter.brush`, decode_rle).

    A stream of bits: 32 for how many values come, 5 for bits per value (less 1), four times 4 for how many bits a
    run's length has (less 1). Then runs: 1 bit whether the value repeats, 2 for which of the four lengths, the
    length (less 1), and one value or as many as the run is long. InputError where it is broken or not of
    `expected` values.
    """
    if not isinstance(numbers, list) or not numbers:
        raise InputError("rle must be a list of bytes")
    try:
        bits = np.unpackbits(np.array(numbers, dtype=np.uint8))
    except (TypeError, ValueError, OverflowError):
        raise InputError("rle must be a list of numbers from 0 to 255") from None
    packed, place = bits.tobytes().translate(bytes((48, 49)) + bytes(254)), 0

    def read(count: int) -> int:
        nonlocal place
        word = packed[place : place + count]
        if len(word) < count:
            raise InputError("rle breaks off")
        place += count
        return int(word, 2)

    total, word_size = read(32), read(5) + 1
    if total != expected:
        raise InputError(f"rle has {total} values, its photo {expected} (4 a pixel)")
    lengths = [read(4) + 1 for _ in range(4)]
    values, done = np.zeros(total, dtype=np.uint8), 0
    digits = 1 << np.arange(word_size - 1, -1, -1)
    while done < total:
        repeats, stop = read(1), done + 1 + read(lengths[read(2)])
        if stop > total:
            raise InputError("rle has more values than it says")
        if repeats:
            values[done:stop] = read(word_size) & 255
        else:
            plain = bits[place : place + word_size * (stop - done)]
            if len(plain) < word_size * (stop - done):
                raise InputError("rle breaks off")
            values[done:stop] = (plain.reshape(-1, word_size) @ digits) & 255
            place += plain.size
        done = stop
    return values
