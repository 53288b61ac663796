"""COCO's instances file, and the form of it that the package `supervision` reads with its masks.

A segmentation is compressed run lengths where masks are exact or have a hole, else a list of polygons. `iscrowd`
stays 0: pycocotools leaves crowd regions out of its scores. supervision takes run lengths only as a list, and only
of annotations that say `iscrowd` 1, so its file says so for all.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from uniresxx.annotations.files import write_compact
from uniresxx.annotations.outlines import as_polygons
from uniresxx.annotations.records import Export, Photo, Shape
from uniresxx.annotations.runs import run_lengths
from uniresxx.imaging import masks
from uniresxx.types import RLE

FILE = "instances.json"


def write_coco(photos: Iterable[Photo], export: Export, out: Path) -> list[Path]:
    """Write instances.json."""
    return _write(photos, export, out, for_supervision=False)


def write_supervision(photos: Iterable[Photo], export: Export, out: Path) -> list[Path]:
    """Write instances.json as `sv.DetectionDataset.from_coco(…, force_masks=True)` reads it."""
    return _write(photos, export, out, for_supervision=True)


def _write(photos: Iterable[Photo], export: Export, out: Path, for_supervision: bool) -> list[Path]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for photo in photos:
        images.append(
            {"id": len(images) + 1, "file_name": photo.name, "width": photo.width, "height": photo.height}
        )
        for shape in photo.shapes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": shape.category_id,
                    "segmentation": _listed(shape.rle)
                    if for_supervision
                    else _segmentation(shape.rle, export),
                    **_measures(shape),
                    "iscrowd": int(for_supervision),
                    "attributes": export.attributes(shape.answer),
                }
            )
    info = {"description": "Masks of uniresxx", "version": export.provenance.version}
    record = {
        "info": info | {"uniresxx": export.describe()},
        "licenses": [],
        "categories": [{"id": number, "name": name} for number, name in export.names.items()],
        "images": images,
        "annotations": annotations,
    }
    return [write_compact(out / FILE, record)]


def _measures(shape: Shape) -> dict[str, Any]:
    box = masks.box_of(shape.rle)
    assert box is not None, "a mask that is written has a pixel"
    x0, y0, x1, y1 = box
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": shape.area}


def _segmentation(rle: RLE, export: Export) -> list[list[float]] | dict[str, Any]:
    """Polygons where they can say it, else run lengths."""
    found = as_polygons(masks.decode(rle), export.options.tolerance)
    if found:
        return [region.outer.ravel().tolist() for region in found]
    return {"size": [*rle["size"]], "counts": rle["counts"]}


def _listed(rle: RLE) -> dict[str, Any]:
    """Run lengths as a list, column after column."""
    return {"size": [*rle["size"]], "counts": run_lengths(masks.decode(rle).ravel(order="F"))}
