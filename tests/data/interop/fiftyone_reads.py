"""FiftyOne: python fiftyone_reads.py FOLDER"""

from __future__ import annotations

import sys

import fiftyone as fo
import numpy as np
from _rows import show

found = fo.Dataset.from_dir(dataset_dir=sys.argv[1], dataset_type=fo.types.FiftyOneDataset)
rows = []
for sample in found:
    height, width = sample.metadata.height, sample.metadata.width
    for item in sample.predictions.detections:
        left, top = (
            round(value * side) for value, side in zip(item.bounding_box[:2], (width, height), strict=True)
        )
        whole = np.zeros((height, width), dtype=bool)
        whole[top : top + item.mask.shape[0], left : left + item.mask.shape[1]] = item.mask
        rows.append((sample.filepath, item.label, whole))
show(rows)
