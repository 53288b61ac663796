"""Masks written for annotation tools and training sets: COCO, CVAT, Label Studio, YOLO, and others.

Example:
    >>> from uniresxx import annotations
    >>> mask = annotations.AnnotatedMask(rle, "mug", "the red mug", score=0.9)  # doctest: +SKIP
    >>> image = annotations.AnnotatedImage("photos/a.png", 72, 96, (mask,))  # doctest: +SKIP
    >>> made_by = annotations.provenance_of("runs/demo")  # doctest: +SKIP
    >>> annotations.write("coco", [image], Path("out"), provenance=made_by)  # doctest: +SKIP
"""

from __future__ import annotations

from uniresxx.annotations.provenance import provenance_of
from uniresxx.annotations.records import AnnotatedImage, AnnotatedMask, Options, Provenance
from uniresxx.annotations.write import FORMATS, write

__all__ = ["FORMATS", "AnnotatedImage", "AnnotatedMask", "Options", "Provenance", "provenance_of", "write"]
