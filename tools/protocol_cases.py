"""Made cases for comparing protocols with the public code they repeat: the same ones from the same seed.

A case is JSON: `kind`, `size` [height, width], `anns` (per annotation its polygons, or an RLE with a list of
counts), `mask` and `forced` (COCO RLE or null), `rejected`, `more` (masks of further sentences about it).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from uniresxx.imaging import masks
from uniresxx.types import RLE

SEED = 4
PER_KIND = 25
SIZES = ((24, 24), (64, 64), (24, 60), (61, 27), (40, 33), (48, 64))
Case = dict[str, Any]


def cases_of(seed: int) -> list[Case]:
    """PER_KIND cases of every kind, in a fixed order."""
    rng = np.random.default_rng(seed)
    found: list[Case] = []
    for place in range(PER_KIND):
        found += [make(rng, place) for make in MAKERS]
    for case in found:
        truth = truth_of(case)
        extra = int(rng.integers(0, 3)) if truth.any() else 0
        case["more"] = [masks.encode(near(rng, truth)) for _ in range(extra)]
    return found


def truth_of(case: Case) -> np.ndarray:
    """OR of everything the annotations cover, bool (y, x)."""
    height, width = case["size"]
    parts = [masks.from_coco(item, height, width) for item in case["anns"]]
    return masks.decode(masks.union(parts, (height, width)))


def polygon(rng: np.random.Generator, size: tuple[int, int], reach: float | None = None) -> list[float]:
    """A star-shaped polygon of 3 to 8 corners inside the picture."""
    height, width = size
    reach = reach or float(rng.uniform(0.2, 0.45)) * min(size)
    centre = rng.uniform((reach, reach), (width - reach, height - reach))
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
    radius = reach * rng.uniform(0.6, 1.0, angles.size)
    points = centre + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None]
    return [round(float(value), 1) for value in points.ravel()]


def solid(rng: np.random.Generator, size: tuple[int, int]) -> list[float]:
    """A polygon that covers some pixels."""
    while masks.area(masks.from_polygons([found := polygon(rng, size)], *size)) < 8:
        pass
    return found


def near(rng: np.random.Generator, truth: np.ndarray) -> np.ndarray:
    """A prediction that resembles the truth: shifted, with some pixels wrong, never empty."""
    shift = tuple(int(value) for value in rng.integers(-3, 4, 2))
    guess = np.roll(truth, shift, axis=(0, 1)) ^ (rng.random(truth.shape) < rng.choice([0.0, 0.01, 0.05]))
    return guess if guess.any() else np.ones_like(truth)


def case(
    kind: str,
    size: tuple[int, int],
    anns: list[Any],
    mask: np.ndarray | None,
    *,
    forced: np.ndarray | None = None,
    rejected: bool = False,
) -> Case:
    """One case; masks are bool (y, x)."""

    def code(value: np.ndarray | None) -> RLE | None:
        return None if value is None else masks.encode(value)

    return {
        "kind": kind,
        "size": list(size),
        "anns": anns,
        "mask": code(mask),
        "forced": code(forced),
        "rejected": rejected,
    }


def answered(rng: np.random.Generator, kind: str, size: tuple[int, int], anns: list[Any]) -> Case:
    """A case that is answered with something like its truth."""
    made = case(kind, size, anns, None)
    made["mask"] = masks.encode(near(rng, truth_of(made)))
    return made


def size_of(rng: np.random.Generator) -> tuple[int, int]:
    """One of SIZES."""
    return SIZES[int(rng.integers(len(SIZES)))]


def counts_of(mask: np.ndarray) -> dict[str, Any]:
    """An uncompressed COCO RLE."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    edges = np.flatnonzero(np.diff(flat.astype(np.int8)) != 0)
    ends = [0, *edges.tolist(), mask.size]
    return {"size": list(mask.shape), "counts": [b - a for a, b in pairwise(ends)]}


def first_pixels(size: tuple[int, int], start: int, stop: int) -> np.ndarray:
    """Pixels start to stop, counted along rows."""
    flat = np.zeros(size[0] * size[1], bool)
    flat[start:stop] = True
    return flat.reshape(size)


def empty_truth(rng: np.random.Generator, place: int) -> Case:
    """No target and no mask: rejected, or an answer without a pixel."""
    size = size_of(rng)
    mask = [None, np.zeros(size, bool)][place % 2]
    return case("empty truth", size, [], mask, rejected=place % 3 != 0)


def empty_prediction(rng: np.random.Generator, place: int) -> Case:
    """A target, answered with an empty mask or null."""
    size = size_of(rng)
    return case("empty prediction", size, [[solid(rng, size)]], [None, np.zeros(size, bool)][place % 2])


def overlapping(rng: np.random.Generator, place: int) -> Case:
    """Polygons of one annotation that share pixels; some are the same polygon twice."""
    size = size_of(rng)
    one = solid(rng, size)
    shift = 0.0 if place % 8 == 0 else float(rng.integers(2, 6))
    pieces = [one, [round(value + shift * (k % 2), 1) for k, value in enumerate(one)]]
    if place % 3 == 0:
        pieces.append(solid(rng, size))
    made = answered(rng, "overlapping polygons", size, [pieces])
    if place % 8 == 0:
        made["mask"] = None if place % 16 == 0 else masks.encode(np.zeros(size, bool))
    return made


def multi_target(rng: np.random.Generator, place: int) -> Case:
    """Two to four annotations, some of which share pixels."""
    size = size_of(rng)
    anns = [[solid(rng, size)] for _ in range(int(rng.integers(2, 5)))]
    return answered(rng, "multi-target", size, anns)


def multi_polygon(rng: np.random.Generator, place: int) -> Case:
    """One annotation of polygons that lie apart."""
    size = (48, 64)
    left, right = solid(rng, (48, 30)), solid(rng, (48, 30))
    moved = [round(value + (34 if k % 2 == 0 else 0), 1) for k, value in enumerate(right)]
    return answered(rng, "multi-polygon", size, [[left, moved]])


def rle_truth(rng: np.random.Generator, place: int) -> Case:
    """A truth given as run lengths."""
    size = size_of(rng)
    blob = masks.decode(masks.from_polygons([solid(rng, size)], *size))
    return answered(rng, "RLE truth", size, [counts_of(blob & (rng.random(size) > 0.05))])


def rejected_with_mask(rng: np.random.Generator, place: int) -> Case:
    """Rejected although it carries a mask, and sometimes a forced one; a fifth of them has no target."""
    size = size_of(rng)
    made = case(
        "rejected with mask", size, [] if place % 5 == 0 else [[solid(rng, size)]], None, rejected=True
    )
    truth = truth_of(made)
    made["mask"] = masks.encode(near(rng, truth))
    made["forced"] = masks.encode(near(rng, truth)) if place % 2 else None
    return made


def rejected_without_mask(rng: np.random.Generator, place: int) -> Case:
    """Rejected and no mask, sometimes a forced one."""
    size = size_of(rng)
    made = case("rejected without mask", size, [[solid(rng, size)]], None, rejected=True)
    made["forced"] = masks.encode(near(rng, truth_of(made))) if place % 2 else None
    return made


def false_accept(rng: np.random.Generator, place: int) -> Case:
    """No target, answered with a mask."""
    size = size_of(rng)
    mask = masks.decode(masks.from_polygons([solid(rng, size)], *size))
    return case("false accept", size, [], mask)


def tiny(rng: np.random.Generator, place: int) -> Case:
    """A target of one to six pixels."""
    size = size_of(rng)
    start = int(rng.integers(0, size[0] * size[1] - 8))
    blob = first_pixels(size, start, start + int(rng.integers(1, 7)))
    guess = blob if place % 3 == 0 else np.roll(blob, place % 5 - 2, axis=1)
    return case("tiny", size, [counts_of(blob)], guess)


def other_size(rng: np.random.Generator, place: int) -> Case:
    """Narrow and odd pictures."""
    size = ((9, 97), (97, 9), (17, 31), (63, 64), (30, 90))[place % 5]
    return answered(rng, "different sizes", size, [[solid(rng, size)]])


def exact_threshold(rng: np.random.Generator, place: int) -> Case:
    """IoU of exactly 0.5, 0.6, 0.7, 0.8 or 0.9, on 10 to 3,000 pixels."""
    tenth, tens = 5 + place % 5, (1, 4, 12, 100, 300)[place // 5]
    size = (64, 64)
    whole, part = first_pixels(size, 0, 10 * tens), first_pixels(size, 0, tenth * tens)
    truth, mask = (whole, part) if place % 2 else (part, whole)
    return case("exact threshold", size, [counts_of(truth)], mask)


MAKERS = (
    empty_truth,
    empty_prediction,
    overlapping,
    multi_target,
    multi_polygon,
    rle_truth,
    rejected_with_mask,
    rejected_without_mask,
    false_accept,
    tiny,
    other_size,
    exact_threshold,
)
