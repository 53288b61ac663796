"""Run-length codes in every spelling: refused with InputError, or a mask that agrees with itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from uniresxx.errors import InputError
from uniresxx.imaging import masks

LONGEST = 64  # pixels of a side


def segmentation_of(data: bytes) -> tuple[Any, int, int]:
    """(COCO segmentation, height, width): three bytes for size and spelling, the rest are the counts."""
    height, width, kind = (*data[:3], 0, 0, 0)[:3]
    height, width, rest = 1 + height % LONGEST, 1 + width % LONGEST, data[3:]
    runs = np.frombuffer(rest[: len(rest) // 2 * 2], dtype="<i2").tolist()
    size = [height, width]
    spellings: tuple[Any, ...] = (
        {"size": size, "counts": rest},
        {"size": size, "counts": rest.decode("latin-1")},
        {"size": size, "counts": rest.decode("utf-8", "surrogateescape")},
        {"size": size, "counts": runs},
        {"size": runs[:2], "counts": runs[2:]},
        [{"size": size, "counts": rest}, {"size": size, "counts": runs}],
        {"size": size, "counts": [run / 2 for run in runs]},
        {"size": size, "counts": {run: run for run in runs}},
    )
    return spellings[kind % len(spellings)], height, width


def check(data: bytes) -> None:
    """Raise anything but InputError where a code is misread."""
    segmentation, height, width = segmentation_of(data)
    try:
        strict = masks.validate(segmentation)
    except InputError:
        pass
    else:
        assert masks.area(strict) == int(masks.decode(strict).sum())
    try:
        rle = masks.from_coco(segmentation, height, width)
    except InputError:
        return
    mask = masks.decode(rle)
    assert mask.shape == (height, width) and masks.encode(mask) == masks.validate(rle, (height, width)) == rle
    assert masks.intersection_area(rle, rle) == masks.area(rle) == int(mask.sum())
    assert masks.union([rle, rle], (height, width)) == rle
    assert (masks.box_of(rle) is None) == (not mask.any())


def seeds() -> list[bytes]:
    """Good codes in every spelling."""
    mask = np.zeros((9, 7), dtype=bool)
    mask[2:6, 1:5] = True
    counts = masks.encode(mask)["counts"].encode()
    runs = np.array([11, 4, 5, 4, 5, 4, 5, 4, 21], dtype="<i2").tobytes()
    size = np.array([9, 7], dtype="<i2").tobytes()
    bodies = (counts, counts, counts, runs, size + runs, counts, runs, runs)
    return [bytes([8, 6, kind]) + body for kind, body in enumerate(bodies)]


if __name__ == "__main__":
    from _fuzz import run

    run(__file__)
