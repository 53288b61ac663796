"""Parts: an open-vocabulary part segmenter looks inside each object for the parts of its category."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from data_engine.components.table import part_segmenter_of
from data_engine.model import Model
from data_engine.records import Item, Picture, box_around, rounded
from data_engine.roles import FoundPart, PartSegmenter, Region
from data_engine.steps.base import Step, Work, digest, first_reason, shortfall
from data_engine.steps.objects import without_duplicates
from data_engine.vocabulary import Vocabulary, load_vocabulary
from uniresxx.imaging import masks
from uniresxx.types import Granularity


@dataclass(frozen=True, kw_only=True)
class Parts(Step):
    """Masks of parts; every part keeps its object.

    Args:
        vocabulary: names and definitions of the parts of each category.
        min_score: of the part segmenter.
        min_area: pixels of a part, as a share of the picture.
        min_pixels: the same in pixels.
        max_share: of its object's pixels; more is the object itself.
        min_inside: share of the part that must lie on its object; the rest is cut off.
        same_mask: IoU from which on the lower-scored of two parts of an object is a duplicate.
    """

    NAME: ClassVar[str] = "parts"
    VERSION: ClassVar[int] = 1
    model: Model
    vocabulary: str = "coco"
    min_score: float = 0.4
    min_area: float = 0.0001
    min_pixels: int = 12
    max_share: float = 0.85
    min_inside: float = 0.8
    same_mask: float = 0.7

    def build(self) -> Work:
        """Load the part segmenter and the vocabulary."""
        return partial(_with_parts, self, part_segmenter_of(self.model), load_vocabulary(self.vocabulary))

    def identity(self) -> dict[str, Any]:
        """The vocabulary by its content."""
        return {**super().identity(), "vocabulary": digest(load_vocabulary(self.vocabulary).categories)}


def _with_parts(
    options: Parts, segmenter: PartSegmenter, vocabulary: Vocabulary, picture: Picture, photo: np.ndarray
) -> Picture:
    items = list(picture.items)
    for parent in picture.kept(Granularity.OBJECT):
        definitions = vocabulary.parts_of(parent.category)
        if not definitions or parent.rle is None or parent.box is None:
            continue
        object_yx = masks.decode(parent.rle)
        region = Region(parent.box, parent.category, None, object_yx)
        found = segmenter.parts(photo, region, definitions)
        found.sort(key=lambda part: (-part.score, part.name))
        parts = [
            _part_item(options, parent, object_yx, part, number)
            for number, part in enumerate(found)
            if part.mask_yx.any()
        ]
        items += without_duplicates(parts, "parts", options.same_mask)
    return picture.with_items(items)


def _part_item(options: Parts, parent: Item, object_yx: np.ndarray, found: FoundPart, number: int) -> Item:
    inside_yx = found.mask_yx & object_yx
    item = Item(
        f"{parent.item_id}.p{number}",
        Granularity.PART,
        parent.category,
        part=found.name,
        parent=parent.item_id,
    )
    inside, area = int(inside_yx.sum()) / int(found.mask_yx.sum()), int(inside_yx.sum())
    if not area:
        return item.but(rejected="parts: outside its object")
    share = area / inside_yx.size
    rle = masks.encode(inside_yx)
    of_object = area / int(object_yx.sum())
    why = first_reason(
        shortfall("parts", "score", found.score, options.min_score),
        shortfall("parts", "inside", inside, options.min_inside),
        shortfall("parts", "area", share, options.min_area),
        shortfall("parts", "pixels", area, options.min_pixels),
        None if of_object <= options.max_share else f"parts: share of its object above {options.max_share:g}",
    )
    scores = {"parts": rounded(found.score), "area": rounded(share), "of_object": rounded(of_object)}
    return item.but(rle=rle, box=box_around(rle), scores=scores, rejected=why)
