"""Boxes of masks."""

from __future__ import annotations

import numpy as np

from uniresxx.imaging.masks import box_of
from uniresxx.types import Granularity, ImageRecord


def boxes_of_masks(record: ImageRecord) -> dict[str, np.ndarray]:
    """Truth boxes xyxy (N, 4) float32 of the picture by "object" and "part": the data set's own, else those of all
    masks of the record, which may be only some of what the picture shows. A level that nothing is known of is not
    in it.

    The union of several referents is no object, so `multi` gives none (our choice).
    """
    own = {name: np.asarray(boxes, dtype=np.float32).reshape(-1, 4) for name, boxes in record.boxes.items()}
    if record.referent_boxes is not None:
        return {**record.referent_boxes, **own}
    found = own
    for name in {Granularity.OBJECT, Granularity.PART} - own.keys():
        rles = [e.rle for e in record.expressions if e.granularity == name and e.rle is not None]
        seen = {box for rle in rles if (box := box_of(rle)) is not None}
        if seen:
            found[name] = np.array(sorted(seen), dtype=np.float32)
    return found
