"""Datumaro, which CVAT's own reader comes from: python datumaro_reads.py FORMAT PATH"""

from __future__ import annotations

import sys

import datumaro as dm
from _rows import show

found = dm.Dataset.import_from(sys.argv[2], sys.argv[1])
names = found.categories()[dm.AnnotationType.label]
show(
    [
        (item.id, names[annotation.label].name, annotation.image)
        for item in found
        for annotation in item.annotations
        if annotation.type == dm.AnnotationType.mask
    ]
)
