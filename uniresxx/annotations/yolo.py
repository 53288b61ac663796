"""YOLO segmentation: a text file per photo, one polygon per mask, and a data.yaml with the names of the classes.

A line holds one polygon, so regions and holes of a mask are joined into one by lines that are walked there and back.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from uniresxx.annotations.files import PhotoFiles, write_text
from uniresxx.annotations.outlines import one_ring, regions
from uniresxx.annotations.records import Export, Photo, Shape
from uniresxx.errors import InputError
from uniresxx.imaging import masks

DATA = "data.yaml"
PHOTOS = "images"  # the folder beside `labels` where YOLO looks for the photos
MOST_UNUSED = 1000  # numbers without a class, which data.yaml names too


def write_yolo(photos: Iterable[Photo], export: Export, out: Path) -> list[Path]:
    """Write labels/NAME.txt for each photo, and data.yaml."""
    names = _all_names(export)
    files = PhotoFiles(out / "labels", ".txt")
    written = [
        write_text(files.path(photo), "".join(_line(shape, photo, export) for shape in photo.shapes))
        for photo in photos
    ]
    data = {"train": PHOTOS, "val": PHOTOS, "names": names}
    head = f"# masks of {export.provenance.short}; put the photos, or a link to their folder, into {PHOTOS}\n"
    written.append(write_text(out / DATA, head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)))
    return written


def _all_names(export: Export) -> dict[int, str]:
    """A name for every number from 0 on: YOLO refuses gaps."""
    last = max(export.names, default=-1)
    unused = last + 1 - len(export.names)
    if unused > MOST_UNUSED:
        raise InputError(
            f"the category ids go up to {last} and {unused} of them have no name; YOLO numbers classes from 0 on "
            "without gaps: give smaller ids"
        )
    return {number: export.names.get(number, f"unused {number}") for number in range(last + 1)}


def _line(shape: Shape, photo: Photo, export: Export) -> str:
    ring = one_ring(regions(masks.decode(shape.rle), export.options.tolerance)) / (photo.width, photo.height)
    return f"{shape.category_id} {' '.join(f'{value:.7g}' for value in ring.ravel())}\n"
