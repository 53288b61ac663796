"""supervision: python supervision_reads.py PHOTOS INSTANCES_JSON"""

from __future__ import annotations

import sys

import supervision as sv
from _rows import show

found = sv.DetectionDataset.from_coco(sys.argv[1], sys.argv[2], force_masks=True)
show(
    [
        (path.removeprefix(sys.argv[1]).lstrip("/"), found.classes[number], mask)
        for path, _, detections in found
        for number, mask in zip(
            detections.class_id, () if detections.mask is None else detections.mask, strict=True
        )
    ]
)
