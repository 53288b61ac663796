"""`segmenter`: a classical, pixels-only region proposer (the default for the scenes; sees no annotation).

Colours are clustered, clusters fall into connected regions; small regions are part candidates, joined foreground
and touching pairs of regions are object candidates. Everything is deterministic. Shapes: S side of the square photo,
N boxes, K colour clusters, P pixels. Boxes are xyxy in pixels of the square.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

WORK_SIDE = 128  # larger squares are reduced by whole factors first: time, and speckle
CLUSTERS = 12
MIN_SHARE = 1 / 680  # of the square's area: 6 pixels of 64 x 64
BACKGROUND_SHARE = 0.12
NMS_IOU = 0.7


@dataclass(frozen=True, slots=True)
class Proposals:
    """Object and part boxes (N, 4) float32, best first."""

    objects: np.ndarray
    parts: np.ndarray


def propose(photo_SS3: np.ndarray, max_objects: int, max_parts: int) -> Proposals:
    """Boxes of a square uint8 photo; either list may be shorter than asked, or empty."""
    factor = max(1, photo_SS3.shape[0] // WORK_SIDE)
    small = photo_SS3[factor // 2 :: factor, factor // 2 :: factor].astype(np.float32)
    small = ndimage.uniform_filter(small, size=(2, 2, 1))
    side = small.shape[0]
    regions = _regions(_clusters(small), min_area=max(4, int(MIN_SHARE * side * side)))
    area = np.array([r.area for r in regions], dtype=np.float32)
    ground = area > BACKGROUND_SHARE * side * side
    boxes = np.array([r.box for r in regions], dtype=np.float32).reshape(-1, 4)
    fill = area / np.maximum(_areas(boxes), 1)
    part_score = np.where(ground, -1.0, fill)

    foreground = np.zeros((side, side), dtype=bool)
    for region, is_ground in zip(regions, ground, strict=True):
        if not is_ground:
            y0, x0, y1, x1 = region.box[1], region.box[0], region.box[3], region.box[2]
            foreground[y0:y1, x0:x1] |= region.mask
    joined = _boxes_of(foreground, max(12, int(4 * MIN_SHARE * side * side)))
    pairs = _touching_pairs(boxes[~ground])
    whole = boxes[~ground][area[~ground] >= 4 * MIN_SHARE * side * side]
    objects = np.concatenate((joined, whole, pairs))
    object_score = np.concatenate((np.full(len(joined), 3.0), np.full(len(whole), 2.0), np.ones(len(pairs))))
    object_score = object_score + _areas(objects) / (side * side)
    return Proposals(
        _best(objects, object_score, max_objects) * factor,
        _best(boxes, part_score, max_parts) * factor,
    )


@dataclass(frozen=True, slots=True)
class _Region:
    box: tuple[int, int, int, int]
    mask: np.ndarray
    area: int


def _clusters(photo_SS3: np.ndarray) -> np.ndarray:
    """k-means labels (S, S): centres start at the farthest points of a pixel grid, three rounds."""
    pixels_P3 = photo_SS3.reshape(-1, 3)
    sample = photo_SS3[::3, ::3].reshape(-1, 3)
    centres = [np.median(sample, axis=0)]
    distance = ((sample - centres[0]) ** 2).sum(1)
    for _ in range(CLUSTERS - 1):
        centres.append(sample[int(distance.argmax())])
        distance = np.minimum(distance, ((sample - centres[-1]) ** 2).sum(1))
    centre_K3 = np.array(centres, dtype=np.float32)
    for _ in range(3):
        label = _nearest(sample, centre_K3)
        total = np.stack([np.bincount(label, sample[:, c], CLUSTERS) for c in range(3)], axis=1)
        count = np.bincount(label, minlength=CLUSTERS)[:, None]
        centre_K3 = np.where(count > 0, total / np.maximum(count, 1), centre_K3).astype(np.float32)
    return _nearest(pixels_P3, centre_K3).reshape(photo_SS3.shape[:2])


def _nearest(pixels_P3: np.ndarray, centre_K3: np.ndarray) -> np.ndarray:
    return ((centre_K3**2).sum(1) - 2 * pixels_P3 @ centre_K3.T).argmin(axis=1)


def _regions(label_SS: np.ndarray, min_area: int) -> list[_Region]:
    found = []
    for cluster in range(CLUSTERS):
        parts, count = ndimage.label(label_SS == cluster)
        if not count:
            continue
        areas = np.bincount(parts.ravel(), minlength=count + 1)
        for index, place in enumerate(ndimage.find_objects(parts), start=1):
            if areas[index] >= min_area:
                y, x = place
                found.append(
                    _Region((x.start, y.start, x.stop, y.stop), parts[place] == index, int(areas[index]))
                )
    return found


def _boxes_of(mask_SS: np.ndarray, min_area: int) -> np.ndarray:
    parts, count = ndimage.label(mask_SS)
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    rows = [
        (x.start, y.start, x.stop, y.stop)
        for index, (y, x) in enumerate(ndimage.find_objects(parts), start=1)
        if areas[index] >= min_area
    ]
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def _touching_pairs(boxes_N4: np.ndarray) -> np.ndarray:
    """Joint boxes of region pairs whose boxes overlap or touch."""
    low = np.maximum(boxes_N4[:, None, :2], boxes_N4[None, :, :2])
    high = np.minimum(boxes_N4[:, None, 2:], boxes_N4[None, :, 2:])
    first, second = np.nonzero(np.triu((high - low >= -1).all(-1), k=1))
    return np.concatenate(
        (
            np.minimum(boxes_N4[first, :2], boxes_N4[second, :2]),
            np.maximum(boxes_N4[first, 2:], boxes_N4[second, 2:]),
        ),
        axis=1,
    )


def _areas(boxes_N4: np.ndarray) -> np.ndarray:
    return (boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])


def box_iou(a_N4: np.ndarray, b_M4: np.ndarray) -> np.ndarray:
    """Pairwise IoU (N, M) of xyxy boxes."""
    low = np.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    high = np.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(-1)
    return inter / np.maximum(_areas(a_N4)[:, None] + _areas(b_M4) - inter, 1e-9)


def _best(boxes_N4: np.ndarray, scores_N: np.ndarray, limit: int) -> np.ndarray:
    """Greedy NMS at 0.7; negative scores are left out."""
    order = np.argsort(-scores_N, kind="stable")
    order = order[scores_N[order] >= 0][: 4 * limit]
    boxes = boxes_N4[order]
    clash = np.triu(box_iou(boxes, boxes) > NMS_IOU, k=1)
    keep: list[int] = []
    dropped = np.zeros(len(boxes), dtype=bool)
    for index in range(len(boxes)):
        if not dropped[index]:
            keep.append(index)
            dropped |= clash[index]
            if len(keep) == limit:
                break
    return boxes[keep].astype(np.float32).reshape(-1, 4)


def recall(proposed_N4: np.ndarray, truth_M4: np.ndarray, iou: float = 0.5) -> tuple[int, int]:
    """(truth boxes met by a proposal with IoU >= `iou`, truth boxes)."""
    if not len(truth_M4):
        return 0, 0
    met = box_iou(truth_M4, proposed_N4).max(axis=1, initial=0.0) >= iou
    return int(met.sum()), len(truth_M4)


def grid_boxes(side: int, count: int) -> np.ndarray:
    """`count` boxes (at most a square number below it is full) of a regular grid: a labelled ablation."""
    n = int(np.ceil(count**0.5))
    edges = np.linspace(0, side, n + 1, dtype=np.float32)
    cells = [(edges[i], edges[j], edges[i + 1], edges[j + 1]) for j in range(n) for i in range(n)]
    return np.array(cells[:count], dtype=np.float32).reshape(-1, 4)


def random_boxes(side: int, count: int, seed: int) -> np.ndarray:
    """`count` random boxes: a control with the same number of tokens and no evidence."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, side * 0.8, (count, 2))
    size = rng.uniform(side * 0.08, side * 0.4, (count, 2))
    return np.concatenate((corner, np.minimum(corner + size, side)), axis=1).astype(np.float32)
