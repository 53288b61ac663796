"""Objects: a detector's boxes, then a promptable segmenter's masks, and what makes a mask too doubtful to keep.

Shapes: N boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from data_engine.components.table import box_segmenter_of, detector_of
from data_engine.model import Model
from data_engine.records import Box, Item, Picture, box_around, rounded
from data_engine.roles import BoxSegmenter, Detector, FoundBox, FoundMask
from data_engine.steps.base import Step, Work, first_reason, shortfall
from data_engine.vocabulary import load_vocabulary
from uniresxx.imaging import masks
from uniresxx.imaging.geometry import box_iou
from uniresxx.scoring.protocols.base import areas
from uniresxx.types import Granularity


@dataclass(frozen=True, kw_only=True)
class Detect(Step):
    """Boxes of objects.

    Args:
        vocabulary: its categories are searched for.
        min_score: boxes below it are not looked at further.
        max_objects: the best of a picture.
        same_box: IoU from which on the lower-scored of two boxes of a category is left out.
    """

    NAME: ClassVar[str] = "detect"
    VERSION: ClassVar[int] = 1
    model: Model
    vocabulary: str = "coco"
    min_score: float = 0.25
    max_objects: int = 32
    same_box: float = 0.7

    def build(self) -> Work:
        """Load the detector."""
        names = sorted(load_vocabulary(self.vocabulary).categories)
        return partial(_detected, self, detector_of(self.model), names)

    def identity(self) -> dict[str, Any]:
        """The vocabulary by its words."""
        words: Mapping[str, Any] = load_vocabulary(self.vocabulary).categories
        return {**super().identity(), "vocabulary": sorted(words)}


def _detected(
    options: Detect, detector: Detector, names: Sequence[str], picture: Picture, photo: np.ndarray
) -> Picture:
    found = [
        FoundBox(item.category, box, item.score)
        for item in detector.detect(photo, names)
        if item.score >= options.min_score and (box := inside(item.box, picture)) is not None
    ]
    found.sort(key=lambda item: (-item.score, item.box, item.category))
    kept: list[FoundBox] = []
    for item in found:
        same = [other.box for other in kept if other.category == item.category]
        if not same or box_iou(np.array([item.box]), np.array(same)).max() < options.same_box:
            kept.append(item)
    return picture.with_items(
        Item(
            f"o{number}", Granularity.OBJECT, item.category, item.box,
            scores={"detector": rounded(item.score)},
        )
        for number, item in enumerate(kept[: options.max_objects])
    )  # fmt: skip


def inside(box: Sequence[float], picture: Picture) -> Box | None:
    """The box cut to the picture; None where less than a pixel is left."""
    x0, y0, x1, y1 = box
    x0, x1 = (rounded(min(max(x, 0.0), picture.width)) for x in (x0, x1))
    y0, y1 = (rounded(min(max(y, 0.0), picture.height)) for y in (y0, y1))
    return (x0, y0, x1, y1) if x1 - x0 >= 1 and y1 - y0 >= 1 else None


@dataclass(frozen=True, kw_only=True)
class Segment(Step):
    """Masks of the boxes, and rules that reject doubtful ones. Shares are of the picture's pixels unless said.

    Args:
        min_quality: the segmenter's own estimate of its IoU.
        min_stability: IoU of the masks at a stricter and a laxer cut.
        min_area, max_area: of a mask.
        min_side: shorter side of its box, pixels.
        max_edge: share of the box's outline that lies on the picture's border: what is cut off is hard to name.
        min_fill: share of the box that the mask covers.
        same_mask: IoU from which on the lower-scored of two masks is a duplicate.
    """

    NAME: ClassVar[str] = "segment"
    VERSION: ClassVar[int] = 1
    model: Model
    min_quality: float = 0.75
    min_stability: float = 0.85
    min_area: float = 0.0008
    max_area: float = 0.9
    min_side: float = 4
    max_edge: float = 0.45
    min_fill: float = 0.15
    same_mask: float = 0.8

    def build(self) -> Work:
        """Load the segmenter."""
        return partial(_segmented, self, box_segmenter_of(self.model))


def _segmented(options: Segment, segmenter: BoxSegmenter, picture: Picture, photo: np.ndarray) -> Picture:
    objects = picture.kept(Granularity.OBJECT)
    found = segmenter.segment(photo, [item.box for item in objects if item.box is not None])
    with_masks = [_with_mask(options, item, mask, picture) for item, mask in zip(objects, found, strict=True)]
    return picture.with_items(without_duplicates(with_masks, "segment", options.same_mask))


def _with_mask(options: Segment, item: Item, found: FoundMask, picture: Picture) -> Item:
    rle = masks.encode(found.mask_yx)
    area = masks.area(rle)
    if not area:
        return item.but(rejected="segment: empty mask")
    box = box_around(rle)
    share = area / (picture.height * picture.width)
    scores = {
        "quality": rounded(found.quality),
        "stability": rounded(found.stability),
        "area": rounded(share),
        "edge": rounded(edge_share(box, picture)),
    }
    sides = box[2] - box[0], box[3] - box[1]
    why = first_reason(
        shortfall("segment", "quality", found.quality, options.min_quality),
        shortfall("segment", "stability", found.stability, options.min_stability),
        shortfall("segment", "area", share, options.min_area),
        None if share <= options.max_area else f"segment: area above {options.max_area:g}",
        shortfall("segment", "side", min(sides), options.min_side),
        None if scores["edge"] <= options.max_edge else f"segment: edge above {options.max_edge:g}",
        shortfall("segment", "fill", area / (sides[0] * sides[1]), options.min_fill),
    )
    return item.but(rle=rle, box=box, scores=scores, rejected=why)


def edge_share(box: Sequence[float], picture: Picture) -> float:
    """The share of a box's outline that lies on the picture's border, 0..1."""
    x0, y0, x1, y1 = box
    wide, high = x1 - x0, y1 - y0
    on_border = (
        high * (x0 <= 0) + high * (x1 >= picture.width) + wide * (y0 <= 0) + wide * (y1 >= picture.height)
    )
    return on_border / (2 * (wide + high))


def without_duplicates(items: Sequence[Item], step: str, limit: float) -> list[Item]:
    """The items, each that repeats an earlier kept one rejected: its mask's IoU is `limit` or more."""
    result: list[Item] = []
    for item in items:
        if item.is_kept and any(
            other.is_kept and other.rle is not None and item.rle is not None
            and areas(other.rle, item.rle).iou >= limit
            for other in result
        ):  # fmt: skip
            item = item.but(rejected=f"{step}: duplicate")
        result.append(item)
    return result
