"""Outlines of a mask: along the edges of its pixels, or simplified within a tolerance.

Corners are (x, y) in pixels: the pixel in row 0 and column 0 has the corners (0, 0) and (1, 1). Filled as
pycocotools does, an outline that was not simplified gives the mask back. Pixels that touch at a corner only belong to
two regions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Ring = np.ndarray  # float64 (corners, 2), x and y; closed, without its first corner again at the end


@dataclass(frozen=True, slots=True)
class Region:
    """A connected region: its outer outline, and one for each of its holes."""

    outer: Ring
    holes: tuple[Ring, ...] = ()


def regions(mask_yx: np.ndarray, tolerance: float = 0.0) -> list[Region]:
    """The regions of a bool mask, in the order of their first pixels, row by row."""
    from scipy import ndimage

    labels_yx, count = ndimage.label(np.pad(mask_yx, 1))
    outers: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = {number: [] for number in range(1, count + 1)}
    for ring in _rings(labels_yx > 0):
        x, y = ring[0].astype(int)
        inside, above = int(labels_yx[y + 1, x + 1]), int(labels_yx[y, x + 1])
        simple = simplify(ring, tolerance)
        if inside:
            outers[inside] = simple
        else:
            holes[above].append(simple[::-1])
    return [Region(outers[number], tuple(holes[number])) for number in range(1, count + 1)]


def as_polygons(mask_yx: np.ndarray, tolerance: float) -> list[Region]:
    """The regions of a mask where a list of polygons can say it; none without a tolerance, or if one has a hole."""
    found = regions(mask_yx, tolerance) if tolerance > 0 else []
    return [] if any(region.holes for region in found) else found


def _rings(padded_yx: np.ndarray) -> list[Ring]:
    """Every closed outline of a padded mask, clockwise as seen, from its top left corner on.

    A corner is where the four pixels around a point of the grid are not two and two. Along a row of the grid, and
    along a column, corners are the ends of edges in pairs. Where two pixels touch at a point, it is two corners, each
    with the edges of one of the pixels.
    """
    a, b = padded_yx[:-1, :-1], padded_yx[:-1, 1:]
    c, d = padded_yx[1:, :-1], padded_yx[1:, 1:]
    crossing = (a == d) & (b == c) & (a != b)
    ys, xs = np.nonzero((a ^ b ^ c ^ d) | crossing)
    twice = crossing[ys, xs].astype(int) + 1
    ys, xs = np.repeat(ys, twice), np.repeat(xs, twice)
    # of two corners at one point, the first ends the edge on the left; it also ends the edge above where the pixels
    # are those at the top left and the bottom right
    is_second = np.zeros(len(ys), dtype=bool)
    is_second[1:] = (ys[1:] == ys[:-1]) & (xs[1:] == xs[:-1])
    below = is_second ^ ~a[ys, xs]
    by_column = np.lexsort((below, ys, xs))
    across = np.arange(len(ys)) ^ 1  # corners are in row order: 0 and 1 are an edge, 2 and 3, and so on
    down = np.empty(len(ys), dtype=np.int64)
    down[by_column[0::2]], down[by_column[1::2]] = by_column[1::2], by_column[0::2]
    points, next_across, next_down = (
        np.stack((xs, ys), axis=1).astype(np.float64),
        across.tolist(),
        down.tolist(),
    )
    done, rings = bytearray(len(points)), []
    for start in range(len(points)):
        if done[start]:
            continue
        ring, corner = [], start
        while not done[corner]:
            right = next_across[corner]
            ring += [corner, right]
            done[corner] = done[right] = True
            corner = next_down[right]
        rings.append(points[ring])
    return rings


def simplify(ring: Ring, tolerance: float) -> Ring:
    """The ring with fewer corners, each that is left out at most `tolerance` pixels from the new outline.

    Douglas and Peucker's method, on the two halves between the first corner and the one farthest from it. A ring that
    would lose its area stays as it is.
    """
    if tolerance <= 0 or len(ring) <= 4:
        return ring
    closed = np.concatenate((ring, ring[:1]))
    far = int(((ring - ring[0]) ** 2).sum(axis=1).argmax())
    kept = np.zeros(len(closed), dtype=bool)
    kept[[0, far, -1]] = True
    stack = [(0, far), (far, len(closed) - 1)]
    while stack:
        first, last = stack.pop()
        if last - first < 2:
            continue
        distances = _distances(closed[first + 1 : last], closed[first], closed[last])
        worst = int(distances.argmax())
        if distances[worst] > tolerance:
            middle = first + 1 + worst
            kept[middle] = True
            stack += [(first, middle), (middle, last)]
    simple = closed[:-1][kept[:-1]]
    return simple if len(simple) >= 3 else ring


def _distances(points: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Distances of points from the line between two points."""
    along = stop - start
    length = float(along @ along)
    share = np.clip((points - start) @ along / length, 0, 1) if length else np.zeros(len(points))
    return np.hypot(*(points - start - share[:, None] * along).T)


def one_ring(parts: list[Region]) -> Ring:
    """Regions and their holes as one closed ring, for formats that hold one polygon per object.

    Rings are joined where they are nearest, by a line that is walked there and back and so encloses nothing.
    """
    from scipy.spatial import cKDTree

    rings = [ring for part in parts for ring in (part.outer, *part.holes)]
    joined = rings[0]
    for ring in rings[1:]:
        distances, nearest = cKDTree(joined).query(ring)
        there = int(distances.argmin())
        here = int(nearest[there])
        walk = np.concatenate((ring[there:], ring[: there + 1]))
        joined = np.concatenate((joined[: here + 1], walk, joined[here:]))
    return joined
