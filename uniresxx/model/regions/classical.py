"""`classical`: a pixels-only region proposer, the default for the scenes; reads no annotation.

Part candidates are connected regions of one colour. Object candidates are foreground islands, regions of one hue and
touching pairs of those. Everything is deterministic. Shapes: S side of the square photo, N boxes, K colour clusters,
P pixels. Boxes are xyxy in pixels of the square.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from uniresxx.imaging.geometry import box_iou

WORK_SIDE = 128  # larger squares are reduced by whole factors first: time, and speckle
OBJECT_SIDE = 64  # object candidates are found at about this size, where fill patterns blur
CLUSTERS = 8
MIN_SHARE = 1 / 680  # of the square's area: 6 pixels of 64 x 64
BACKGROUND_SHARE = 0.12
LIGHTNESS = 0.4  # of an object's colour: its parts are lighter or darker, its hue is one
NMS_IOU = 0.7


@dataclass(frozen=True, slots=True)
class Proposals:
    """Object and part boxes (N, 4) float32, best first."""

    objects: np.ndarray
    parts: np.ndarray


def propose(photo_SS3: np.ndarray, max_objects: int, max_parts: int) -> Proposals:
    """Boxes of a square uint8 photo; either list may be shorter than asked, or empty."""
    factor = max(1, photo_SS3.shape[0] // WORK_SIDE)
    small = _reduce(photo_SS3.astype(np.float32), factor)
    return Proposals(
        _best(*_object_candidates(small), max_objects) * factor,
        _best(*_part_candidates(small), max_parts) * factor,
    )


def _part_candidates(photo_SS3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores of one-coloured regions; compact ones first."""
    side = photo_SS3.shape[0]
    if side > OBJECT_SIDE:
        photo_SS3 = ndimage.uniform_filter(photo_SS3, size=(2, 2, 1))
    boxes, area, _ = _regions(_clusters(photo_SS3), max(4, int(MIN_SHARE * OBJECT_SIDE * side)))
    ground = area > BACKGROUND_SHARE * side * side
    return boxes, np.where(ground, -1.0, area / np.maximum(_areas(boxes), 1))


def _object_candidates(photo_SS3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores of foreground islands, one-hued regions and touching pairs of them."""
    side = photo_SS3.shape[0]
    factor = max(1, side // OBJECT_SIDE)
    small = ndimage.uniform_filter(_reduce(photo_SS3, factor), size=(3, 3, 1))
    total = small.sum(-1, keepdims=True)
    hue = 510 * (small[..., :2] - small[..., 1:]) / (total + 60)
    pixels = small.shape[0] * small.shape[1]
    boxes, area, masks = _regions(
        _clusters(np.concatenate((hue, LIGHTNESS * total / 3), axis=-1)), max(4, int(2 * MIN_SHARE * pixels))
    )
    ground = area > BACKGROUND_SHARE * pixels
    foreground = np.ones(small.shape[:2], dtype=bool)
    for index in np.flatnonzero(ground):
        x0, y0, x1, y1 = boxes[index].astype(int)
        foreground[y0:y1, x0:x1] &= ~masks[index]
    ground_or_island = np.where(ndimage.binary_opening(foreground), 0, -1)
    islands, _, _ = _regions(ground_or_island, int(4 * MIN_SHARE * pixels))
    whole = boxes[~ground & (area >= 3 * MIN_SHARE * pixels)]
    pairs = _touching_pairs(whole)
    candidates = np.concatenate((islands, whole, pairs))
    first = np.concatenate((np.full(len(islands) + len(whole), 2.0), np.ones(len(pairs))))
    return candidates * factor, first + _areas(candidates) / pixels


def _reduce(photo_SS3: np.ndarray, factor: int) -> np.ndarray:
    """Mean over factor x factor pixels; a rest at the right and bottom is left out."""
    side = photo_SS3.shape[0] // factor
    cut = photo_SS3[: side * factor, : side * factor]
    return cut.reshape(side, factor, side, factor, 3).mean(axis=(1, 3))


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


def _regions(label_SS: np.ndarray, min_area: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Connected regions of equal label >= 0: boxes (N, 4), areas (N,), and each region's mask inside its box."""
    boxes, areas, masks = [], [], []
    for cluster in range(label_SS.max() + 1):
        numbered, count = ndimage.label(label_SS == cluster)
        pixels = np.bincount(numbered.ravel(), minlength=count + 1)
        for index, (y, x) in enumerate(ndimage.find_objects(numbered), start=1):
            if pixels[index] >= min_area:
                boxes.append((x.start, y.start, x.stop, y.stop))
                areas.append(pixels[index])
                masks.append(numbered[y, x] == index)
    return np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(areas, dtype=np.float32), masks


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


def _best(boxes_N4: np.ndarray, scores_N: np.ndarray, limit: int) -> np.ndarray:
    """Greedy NMS at 0.7; negative scores are left out."""
    order = np.argsort(-scores_N, kind="stable")
    order = order[scores_N[order] >= 0][: 4 * limit]
    boxes = boxes_N4[order]
    clash = np.triu(box_iou(boxes, boxes) > NMS_IOU, k=1)
    chosen: list[int] = []
    dropped = np.zeros(len(boxes), dtype=bool)
    for index in range(len(boxes)):
        if not dropped[index]:
            chosen.append(index)
            dropped |= clash[index]
            if len(chosen) == limit:
                break
    return boxes[chosen].astype(np.float32).reshape(-1, 4)


def grid_boxes(side: int, count: int) -> np.ndarray:
    """At most `count` boxes of a regular grid that covers the square: a labelled ablation."""
    rows = int(count**0.5)
    columns = count // rows
    y, x = np.linspace(0, side, rows + 1), np.linspace(0, side, columns + 1)
    cells = [(x[i], y[j], x[i + 1], y[j + 1]) for j in range(rows) for i in range(columns)]
    return np.array(cells, dtype=np.float32).reshape(-1, 4)


def shuffled_boxes(boxes_N4: np.ndarray, side: int, seed: int) -> np.ndarray:
    """The same boxes, each moved to a random place: a control with true sizes and no evidence."""
    size = boxes_N4[:, 2:] - boxes_N4[:, :2]
    corner = np.random.default_rng(seed).uniform(size=size.shape) * (side - size)
    return np.concatenate((corner, corner + size), axis=1).astype(np.float32)


def random_boxes(side: int, count: int, seed: int) -> np.ndarray:
    """`count` boxes of random size and place: a control without any evidence."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, side * 0.8, (count, 2))
    size = rng.uniform(side * 0.08, side * 0.4, (count, 2))
    return np.concatenate((corner, np.minimum(corner + size, side)), axis=1).astype(np.float32)


def one_coloured(photo: np.ndarray) -> np.ndarray:
    """The connected region of one colour that each pixel belongs to, int32 (y, x) at the photo's size.

    The regions of the part candidates without a smallest area. A photo above 2 * WORK_SIDE pixels is reduced by
    nearest pixels first, so borders are that coarse.

    Args:
        photo: uint8 (y, x, 3).
    """
    step = max(1, round(max(photo.shape[:2]) / (2 * WORK_SIDE)))
    small = photo[::step, ::step].astype(np.float32)
    if max(small.shape[:2]) > OBJECT_SIDE:
        small = ndimage.uniform_filter(small, size=(2, 2, 1))
    labels = _clusters(small)
    regions = np.zeros(labels.shape, dtype=np.int32)
    count = 0
    for cluster in range(CLUSTERS):
        numbered, found = ndimage.label(labels == cluster)
        regions[numbered > 0] = numbered[numbered > 0] + count
        count += found
    enlarged = regions.repeat(step, axis=0).repeat(step, axis=1)
    return enlarged[: photo.shape[0], : photo.shape[1]]
