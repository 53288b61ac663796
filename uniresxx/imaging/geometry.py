"""The one resize of the project: longest side to `side`, padding at bottom and right, and its exact inverse.

Shapes: y x pixels of the photo, S the side of the padded square, s a square of logits over all of it, E
masks, N M boxes. Edges map to edges: a box of the photo times (resized / original), per axis, is its box in the
square, so the inverse is a division. Pure numpy and Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

PADDING = (123, 117, 104)  # about the mean of photographs: near 0 after either tower's normalisation


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Frame change between a photo of (height, width) and a square of `side` pixels."""

    height: int
    width: int
    side: int
    inner_height: int  # rows of the square that show the photo, from the top
    inner_width: int  # columns, from the left

    @classmethod
    def fit(cls, height: int, width: int, side: int) -> Letterbox:
        """The letterbox of a photo; each side keeps at least one pixel. ValueError for sizes below 1."""
        if min(height, width, side) < 1:
            raise ValueError(f"height {height}, width {width} and side {side} must be at least 1")
        longest = max(height, width)
        inner_height = max(1, (2 * height * side + longest) // (2 * longest))
        inner_width = max(1, (2 * width * side + longest) // (2 * longest))
        return cls(height, width, side, inner_height, inner_width)

    def photo(self, photo_yx3: np.ndarray) -> np.ndarray:
        """uint8 (y, x, 3) -> uint8 (S, S, 3), antialiased bilinear, padded with `PADDING`."""
        assert photo_yx3.dtype == np.uint8, photo_yx3.dtype
        self._check(photo_yx3.shape, (self.height, self.width, 3))
        square = np.empty((self.side, self.side, 3), dtype=np.uint8)
        square[:] = PADDING
        size = (self.inner_width, self.inner_height)
        resized = Image.fromarray(photo_yx3).resize(size, Image.Resampling.BILINEAR)
        square[: self.inner_height, : self.inner_width] = np.asarray(resized)
        return square

    def mask(self, mask_yx: np.ndarray) -> np.ndarray:
        """Bool (y, x) -> bool (S, S): pixels at least half covered.

        Our choice: a mask too thin for that keeps its best covered pixels, so that no target vanishes.
        """
        self._check(mask_yx.shape, (self.height, self.width))
        square = np.zeros((self.side, self.side), dtype=bool)
        if not mask_yx.any():
            return square
        coverage = np.asarray(
            Image.fromarray(mask_yx.astype(np.float32)).resize(
                (self.inner_width, self.inner_height), Image.Resampling.BOX
            )
        )
        # rounding in the filter may leave exact halves a hair below
        threshold = min(0.5 - 1e-4, float(coverage.max()))
        square[: self.inner_height, : self.inner_width] = coverage >= threshold
        return square

    def boxes(self, boxes_N4: np.ndarray) -> np.ndarray:
        """xyxy of the photo -> xyxy of the square, floating point."""
        return self._floating(boxes_N4) * self._scale(boxes_N4)

    def unboxes(self, boxes_N4: np.ndarray) -> np.ndarray:
        """xyxy of the square -> xyxy of the photo; the inverse of `boxes`, nothing is clipped."""
        return self._floating(boxes_N4) / self._scale(boxes_N4)

    def valid(self) -> np.ndarray:
        """Bool (S, S): true where the square shows the photo."""
        square = np.zeros((self.side, self.side), dtype=bool)
        square[: self.inner_height, : self.inner_width] = True
        return square

    def unmask_logits(self, logits_ss: np.ndarray) -> np.ndarray:
        """Logits (s, s) over the whole square, at any resolution -> bool (y, x): bilinear, > 0."""
        return self.unmask_logits_many(logits_ss[None])[0]

    def unmask_logits_many(self, logits_Ess: np.ndarray) -> np.ndarray:
        """Logits (E, s, s) over the whole square -> bool (E, y, x) at the photo's size.

        Cells of padding alone are ignored (our choice: nothing trains them).
        """
        count, rows, columns = logits_Ess.shape
        if rows != columns:
            raise ValueError(f"logits must cover the padded square, but are {rows} x {columns}")
        logits = np.asarray(logits_Ess, dtype=np.float32)
        down_ys = _bilinear(self.height, self.inner_height * rows / self.side, rows)
        across_xs = _bilinear(self.width, self.inner_width * rows / self.side, rows)
        masks = np.empty((count, self.height, self.width), dtype=bool)
        for index in range(count):  # one at a time: full-size floats of many masks would take gigabytes
            shown = logits[index, : down_ys.shape[1], : across_xs.shape[1]]
            masks[index] = down_ys @ shown @ across_xs.T > 0
        return masks

    def _scale(self, boxes_N4: np.ndarray) -> np.ndarray:
        across, down = self.inner_width / self.width, self.inner_height / self.height
        return np.array([across, down, across, down], dtype=self._floating(boxes_N4).dtype)

    @staticmethod
    def _floating(boxes_N4: np.ndarray) -> np.ndarray:
        boxes = np.asarray(boxes_N4)
        return boxes if boxes.dtype.kind == "f" else boxes.astype(np.float64)

    @staticmethod
    def _check(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if shape != expected:
            raise ValueError(f"this letterbox is for arrays of shape {expected}, not {shape}")


def box_iou(a_N4: np.ndarray, b_M4: np.ndarray) -> np.ndarray:
    """Pairwise IoU (N, M), 0..1, of xyxy boxes in one frame; 0 between boxes without area."""
    low = np.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    high = np.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(axis=2)
    area_a, area_b = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (a_N4, b_M4))
    return inter / np.maximum(area_a[:, None] + area_b[None] - inter, 1e-9)


def _bilinear(pixels: int, extent: float, cells: int) -> np.ndarray:
    """Weights (pixels, used cells) of a triangle filter that reads `pixels` from the first `extent` cells.

    Upsampling is plain bilinear; downsampling widens the triangle to the pixel (antialiasing). Rows sum to 1.
    """
    used = min(cells, max(1, int(np.ceil(extent - 1e-9))))
    step = extent / pixels
    centre = (np.arange(pixels) + 0.5) * step
    distance = np.abs(centre[:, None] - (np.arange(used) + 0.5)[None, :])
    weight = np.maximum(0.0, 1.0 - distance / max(1.0, step))
    return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
