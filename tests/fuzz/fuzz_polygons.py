"""Polygons of any shape and number: refused with InputError, or a mask of the photo's size."""

from __future__ import annotations

from typing import Any

import numpy as np

from uniresxx.errors import InputError
from uniresxx.imaging import masks

END = 0x7F7F  # of a polygon, among its numbers


def polygons_of(data: bytes) -> tuple[Any, int, int]:
    """(COCO segmentation, height, width): three bytes for size and type, the rest are the corners."""
    height, width, kind = (*data[:3], 0, 0, 0)[:3]
    dtype = ("<i2", "<f2", "<f4", "<f8")[kind % 4]
    rest = data[3:]
    numbers = np.frombuffer(rest[: len(rest) // 8 * 8], dtype=dtype)
    place = np.flatnonzero(np.frombuffer(rest[: len(rest) // 8 * 8], dtype="<i2") == END)
    step = np.dtype(dtype).itemsize // 2
    found = [part.tolist() for part in np.split(numbers, place // step)]
    if kind & 4:
        found = found[0]
    if kind & 8:
        found = [[str(number) for number in item] if isinstance(item, list) else item for item in found]
    if kind & 16:
        found = [found]
    return found, 1 + height, 1 + width


def check(data: bytes) -> None:
    """Raise anything but InputError where polygons are misread."""
    segmentation, height, width = polygons_of(data)
    try:
        rle = masks.from_coco(segmentation, height, width)
    except InputError:
        return
    mask = masks.decode(rle)
    assert mask.shape == (height, width) and masks.encode(mask) == masks.validate(rle, (height, width)) == rle


def seeds() -> list[bytes]:
    """A square, a star that crosses itself, two polygons, a line."""
    square, star, line = (
        [2, 2, 12, 2, 12, 12, 2, 12],
        [0, 9, 30, 9, 3, 30, 15, 0, 25, 30, 0, 9],
        [0, 0, 19, 19],
    )
    shapes = (square, star, line, [*square, END, 0, 0, 0, *star, 0, 0], [-20, -20, 60, -20, 60, 60, -20, 60])
    return [
        bytes([29, 39, kind]) + np.array(shape).astype(dtype).tobytes()
        for kind, dtype in enumerate(("<i2", "<f2", "<f4", "<f8"))
        for shape in shapes
    ]


if __name__ == "__main__":
    from _fuzz import run

    run(__file__)
