"""Binary masks as COCO run-length codes; the one place that touches pycocotools.

An RLE here is canonical: `counts` is ASCII text, no run after the first is empty, the runs add up to y * x.
pycocotools' C code trusts the sizes it is given, so every function checks its input first. What this file
makes or has checked is a `CheckedRLE`, a plain dict that remembers its proof: it is checked once, however
often it is measured. All areas are Python ints (those of pycocotools are uint32). Shapes: y x pixels of the
photo. Errors: InputError with the offending value.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from pycocotools import mask as coco

from uniresxx.errors import InputError
from uniresxx.types import RLE

MAX_PIXELS = 50_000_000  # the same cap as for photos (decode.py)
MAX_CHARS_PER_RUN = 6  # 6 * 5 bits hold any signed run difference below MAX_PIXELS
MAX_POLYGON_STEPS = 20_000_000  # pycocotools walks a polygon's outline in steps of a fifth of a pixel


class CheckedRLE(dict[str, Any]):
    """An RLE that passed the checks, equal to and written as the plain dict; one that is changed later, or
    copied, loses its proof and is checked again."""

    __slots__ = ("_counts", "_pixels", "_shape")

    def __init__(self, counts: str, height: int, width: int, pixels: int) -> None:
        super().__init__(size=[height, width], counts=counts)
        self._counts, self._shape, self._pixels = counts, (height, width), pixels

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)  # a proof does not travel

    def proof(self) -> tuple[str, int, int, int] | None:
        """(counts, height, width, foreground pixels), or None where the dict is not what was checked."""
        if self.get("counts") is not self._counts or self.get("size") != [*self._shape]:
            return None
        return self._counts, *self._shape, self._pixels


def _proof(rle: Any) -> tuple[str, int, int, int]:
    """(counts, height, width, foreground pixels) of an RLE, checked now unless it already was."""
    known = rle.proof() if isinstance(rle, CheckedRLE) else None
    if known is not None:
        return known
    counts, runs, height, width = _checked(rle)
    return counts.decode("ascii"), height, width, int(runs[1::2].sum())


def _size(value: Any) -> tuple[int, int]:
    """(height, width) of a size field; InputError where it is no sane image size."""
    if not isinstance(value, list | tuple | np.ndarray) or len(value) != 2:
        raise InputError(f"mask size must be [height, width], not {_short(value)}")
    sides = []
    for side in value:
        if isinstance(side, bool) or not isinstance(side, int | np.integer) or side < 1:
            raise InputError(f"mask size must be two whole numbers from 1 up, not {_short(value)}")
        sides.append(int(side))
    if sides[0] * sides[1] > MAX_PIXELS:
        raise InputError(f"mask size {sides[0]} x {sides[1]} is over the cap of {MAX_PIXELS} pixels")
    return sides[0], sides[1]


_REPR = reprlib.Repr()  # data from elsewhere may hold itself, or one list a million times
_REPR.maxlist, _REPR.maxstring, _REPR.maxother = 12, 80, 80


def _short(value: Any) -> str:
    text = _REPR.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _parse(text: bytes) -> np.ndarray:
    """Run lengths (int64) of a compressed code.

    The format (pycocotools, maskApi.c rleFrString): six bits per character from '0' on, five of value (low
    first) and one that says more follow; signed; from the fourth run on, the difference to the run two places
    earlier.
    """
    if not text:
        raise InputError("mask code is empty: expected COCO run lengths")
    codes = np.frombuffer(text, dtype=np.uint8) - 48  # codes below '0' wrap to over 63
    if codes.max() > 63:
        raise InputError(f"mask code {_short(text)} holds a character that is not of a COCO run-length code")
    if codes[-1] >= 32:
        raise InputError(f"mask code {_short(text)} breaks off in the middle of a run")
    ends = np.flatnonzero(codes < 32)
    length = ends.copy()
    length[0] += 1
    length[1:] -= ends[:-1]
    longest = int(length.max())
    if longest > MAX_CHARS_PER_RUN:
        raise InputError(f"mask code {_short(text)} holds a run longer than any photo")
    values = (codes & 31).astype(np.int64)
    runs = values[ends]
    runs -= (runs & 16) << 1  # the highest digit carries the sign
    for place in range(1, longest):
        more = np.flatnonzero(length > place)
        runs[more] = (runs[more] << 5) + values[ends[more] - place]
    for later in (runs[1::2], runs[2::2]):
        np.add.accumulate(later, out=later)
    return runs


def _check_runs(runs: np.ndarray, height: int, width: int) -> None:
    """InputError unless the runs cover height * width and none after the first is empty."""
    # before the sum, which many large runs could overflow
    if (runs.size > 1 << 16 and int(runs.max()) > MAX_PIXELS) or int(runs.sum()) != height * width:
        raise InputError(
            f"mask code covers {int(runs.sum())} pixels, but its size {height} x {width} has {height * width}"
        )
    if runs.size > 1 and not runs[1:].all():
        raise InputError("mask code holds an empty run: encode the mask again (masks.from_coco does)")


def _checked(
    rle: Any, size: Sequence[int] | None = None, empty_runs: bool = False
) -> tuple[bytes, np.ndarray, int, int]:
    """(counts, runs, height, width); with `empty_runs`, the runs may also be empty or not add up."""
    if not isinstance(rle, Mapping) or "size" not in rle or "counts" not in rle:
        raise InputError(f"a mask must be an object with size and counts, not {_short(rle)}")
    height, width = _size(rle["size"])
    if size is not None:
        _same_size((height, width), size)
    counts = rle["counts"]
    if isinstance(counts, str):
        if not counts.isascii():
            raise InputError(f"mask code {_short(counts)} holds a character that is not ASCII")
        counts = counts.encode()
    if not isinstance(counts, bytes):
        raise InputError(f"mask counts must be text (compressed COCO RLE), not {type(counts).__name__}")
    if len(counts) > MAX_CHARS_PER_RUN * (height * width + 1):
        raise InputError(f"mask code of {len(counts)} characters is too long for {height} x {width} pixels")
    runs = _parse(counts)
    if int(runs.min()) < 0:
        raise InputError("mask code holds a run of negative length")
    if not empty_runs:
        _check_runs(runs, height, width)
    return counts, runs, height, width


def validate(rle: Any, size: Sequence[int] | None = None) -> RLE:
    """Check a compressed RLE from outside, and that it has `size` (height, width); returns it as a
    `CheckedRLE`.

    Raises InputError: not an RLE, another size, broken code, runs that do not add up, more than MAX_PIXELS.
    """
    if isinstance(rle, CheckedRLE) and (known := rle.proof()) is not None:
        if size is not None:
            _same_size(known[1:3], size)
        return _typed(rle)
    counts, runs, height, width = _checked(rle, size)
    return _typed(CheckedRLE(counts.decode("ascii"), height, width, int(runs[1::2].sum())))


def _typed(rle: CheckedRLE) -> RLE:
    return cast(RLE, rle)  # a TypedDict has no subclasses


def _same_size(found: tuple[int, int], wanted: Sequence[int]) -> None:
    if found != (int(wanted[0]), int(wanted[1])):
        raise InputError(
            f"mask is {found[0]} x {found[1]} (height x width), the photo is {wanted[0]} x {wanted[1]}"
        )


def _own(coded: Mapping[str, Any]) -> RLE:
    """An RLE of pycocotools (counts are bytes) as ours."""
    height, width = int(coded["size"][0]), int(coded["size"][1])
    return _typed(CheckedRLE(coded["counts"].decode("ascii"), height, width, int(coco.area(coded))))


def _theirs(rle: Any, size: Sequence[int] | None = None) -> dict[str, Any]:
    counts, height, width, _ = _proof(rle)
    if size is not None:
        _same_size((height, width), size)
    return {"size": [height, width], "counts": counts.encode()}


def encode(mask_yx: np.ndarray) -> RLE:
    """RLE of a mask: bool, or integers of which every value but 0 is foreground."""
    if mask_yx.ndim != 2 or mask_yx.dtype.kind not in "bui":
        raise InputError(f"a mask is a (y, x) array of bool or integers, not {mask_yx.dtype} {mask_yx.shape}")
    _size(mask_yx.shape)
    return _own(coco.encode(np.asfortranarray(mask_yx != 0).view(np.uint8)))


def decode(rle: RLE) -> np.ndarray:
    """Bool mask (y, x)."""
    _, runs, height, width = _checked(rle)
    return np.ascontiguousarray(np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(width, height).T)


def empty(height: int, width: int) -> RLE:
    """The mask without a pixel."""
    return _from_runs(np.array([height * width], dtype=np.int64), *_size((height, width)))


def area(rle: RLE) -> int:
    """Foreground pixels."""
    return _proof(rle)[3]


def intersection_area(a: RLE, b: RLE) -> int:
    """Pixels in both masks; the sizes must be equal."""
    first = _theirs(a)
    return int(coco.area(coco.merge([first, _theirs(b, first["size"])], intersect=True)))


def union(rles: Sequence[RLE], size: Sequence[int]) -> RLE:
    """Pixels of any of the masks (never a sum), all of `size` (height, width); empty where there is none."""
    if not rles:
        return empty(int(size[0]), int(size[1]))
    return _own(_merged([_theirs(rle, size) for rle in rles]))


def _merged(coded: list[dict[str, Any]]) -> dict[str, Any]:
    """OR of codes in pairs of pairs: one after another would walk what is merged already every time."""
    while len(coded) > 1:
        coded = [coco.merge(coded[place : place + 8]) for place in range(0, len(coded), 8)]
    return coded[0]


def box_of(rle: RLE) -> tuple[int, int, int, int] | None:
    """Tight xyxy box in pixels, right and bottom edges exclusive; None for an empty mask."""
    if area(rle) == 0:
        return None
    x, y, width, height = (int(value) for value in coco.toBbox(_theirs(rle)))
    return x, y, x + width, y + height


def _from_runs(runs: np.ndarray, height: int, width: int) -> RLE:
    """RLE of run lengths (background first); empty runs are merged away."""
    merged: list[int] = runs.tolist() if runs[1:].all() else []
    for index, run in enumerate(() if merged else runs.tolist()):
        if index == 0 or (run > 0 and len(merged) % 2 == index % 2):
            merged.append(run)
        elif run > 0:
            merged[-1] += run
    _check_runs(np.array(merged, dtype=np.int64), height, width)
    return _own(coco.frPyObjects({"size": [height, width], "counts": merged}, height, width))


def _from_counts_list(counts: Sequence[Any], height: int, width: int) -> RLE:
    """RLE of uncompressed COCO counts."""
    if len(counts) > 2 * (height * width + 2):  # some leave room for empty runs
        raise InputError(f"mask has {len(counts)} runs, more than {height} x {width} pixels can have")
    for value in counts:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value <= MAX_PIXELS:
            raise InputError(f"mask counts must be whole numbers from 0 up, not {_short(value)}")
    return _from_runs(np.array([int(value) for value in counts], dtype=np.int64), height, width)


def from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> RLE:
    """OR of polygons [x0, y0, x1, y1, …] in pixels, filled as pycocotools does.

    A polygon of fewer than three corners encloses nothing and adds nothing (pycocotools would take four
    numbers for a box). Corners may lie outside the photo by one photo size at most. Raises InputError.
    """
    height, width = _size((height, width))
    solid, steps = [], 0.0
    for polygon in polygons:
        numbers = _corners(polygon, height, width)
        if numbers.size < 6:
            continue
        points = numbers.reshape(-1, 2)
        steps += len(points) + float(5 * np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())
        solid.append(numbers.tolist())
    if steps > MAX_POLYGON_STEPS:
        raise InputError(
            f"polygon outlines of {steps / 5:.0f} pixels are over the cap {MAX_POLYGON_STEPS // 5}"
        )
    if not solid:
        return empty(height, width)
    return _own(_merged(coco.frPyObjects(solid, height, width)))


def _corners(polygon: Any, height: int, width: int) -> np.ndarray:
    try:
        given = np.asarray(polygon)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"a polygon must be a list of numbers, not {_short(polygon)}") from None
    if given.dtype.kind not in "iuf":  # text of digits too
        raise InputError(f"a polygon must be a list of numbers, not {_short(polygon)}")
    numbers = given.astype(np.float64)
    if numbers.ndim != 1 or numbers.size % 2:
        raise InputError(f"a polygon must be an even list of numbers x, y, …, not {_short(polygon)}")
    margin = float(max(height, width))
    inside = np.isfinite(numbers) & (numbers >= -margin) & (numbers <= 2 * margin)
    if not inside.all():
        raise InputError(
            f"polygon corner {numbers[~inside][0]} lies far outside the photo of {height} x {width} pixels"
        )
    return numbers


def from_coco(segmentation: Any, height: int, width: int) -> RLE:
    """Canonical RLE of any COCO `segmentation`.

    Polygons, one flat polygon, RLE with counts as list, text or bytes, a list of RLEs (RefClef), or an empty
    list (an empty mask: the reader must refuse it as truth). Raises InputError.
    """
    height, width = _size((height, width))
    if isinstance(segmentation, Mapping):
        if not isinstance(segmentation.get("counts"), list):
            return _from_runs(_checked(segmentation, (height, width), empty_runs=True)[1], height, width)
        if _size(segmentation.get("size")) != (height, width):
            raise InputError(
                f"mask is {segmentation['size']} (height, width), the photo is [{height}, {width}]"
            )
        return _from_counts_list(segmentation["counts"], height, width)
    if not isinstance(segmentation, list | tuple):
        raise InputError(f"segmentation must be polygons or run lengths, not {_short(segmentation)}")
    if not segmentation:
        return empty(height, width)
    if all(isinstance(item, Mapping) for item in segmentation):
        return union([from_coco(item, height, width) for item in segmentation], (height, width))
    if all(isinstance(item, int | float) and not isinstance(item, bool) for item in segmentation):
        return from_polygons([segmentation], height, width)
    return from_polygons(segmentation, height, width)
