"""PACO-LVIS: objects, their parts and attributes on photos of COCO 2017, one COCO-like json per split.

`obj_ann_id` of a part is the annotation of its object. Categories of parts are `object:part`. (After PACO's data
page.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uniresxx.data.readers.collector import Collector, Photo
from uniresxx.data.readers.fields import list_of, need, whole
from uniresxx.data.readers.folders import COCO_FOLDERS, PhotoFinder, data_file
from uniresxx.data.readers.instances import Instances
from uniresxx.data.readers.part_names import category_noun, part_noun
from uniresxx.data.readers.part_objects import PartImage, PartObject, records_of_parts, united, whole_parts
from uniresxx.imaging import masks
from uniresxx.types import RLE, ImageRecord

FOLDERS = ("paco", "paco_lvis")
SPLITS = ("train", "val", "test")
LICENCE = "masks CC BY 4.0 (LVIS), parts MIT (PACO)"


def read_paco(root: Path, split: str) -> list[ImageRecord]:
    """Phrases of one split, ids `paco/<split>/<image_id>:<category>[:<part>]`, as `part_objects` says them.

    LVIS annotated only some categories of a photo exhaustively: the others (`not_exhaustive_category_ids`) are
    left out and counted. Raises InputError naming file, record and field.
    """
    collector = Collector(str(paco_file(root, split)), root, f"paco/{split}", LICENCE)
    return records_of_parts(collector, paco_images(root, split, collector))


def paco_file(root: Path, split: str) -> Path:
    """The json of a split; NotThereError where it is missing."""
    name = f"paco_lvis_v1_{split}.json"
    return data_file(root, FOLDERS, (f"annotations/{name}", name, f"annotations/paco_lvis_v1/{name}"))


def paco_images(root: Path, split: str, report: Collector) -> Iterator[PartImage]:
    """The photos of a split with their objects and parts; masks without a pixel are noted in the report."""
    instances = Instances.load(paco_file(root, split))
    finder = PhotoFinder(root, COCO_FOLDERS)
    for image_id, rows in instances.rows_of_image.items():
        who = f"{instances.path}: image {image_id}"
        file_name, *size = instances.image(image_id, who)
        photo = Photo(
            str(image_id), finder.path(file_name, who), (size[0], size[1]), instances.licence(image_id)
        )
        row = instances.images[image_id]
        ids = list_of(row, "not_exhaustive_category_ids", who) if "not_exhaustive_category_ids" in row else []
        names = [instances.categories.get(whole(item, "not_exhaustive_category_ids", who)) for item in ids]
        uncounted = {category_noun(name) for name in names if name and ":" not in name}
        objects = tuple(_objects(instances, rows, photo.size, report, uncounted))
        yield PartImage(photo, objects, frozenset(uncounted))


def _objects(
    instances: Instances,
    rows: list[Mapping[str, Any]],
    size: tuple[int, int],
    report: Collector,
    uncounted: set[str],
) -> Iterator[PartObject]:
    """The objects among the annotations of a photo, each with its parts.

    A category is `uncounted` where a mask of it is empty, or one of it or of its parts cannot be read.
    """
    found: dict[int, tuple[str, RLE | None]] = {}
    named: list[tuple[int, str, RLE | None]] = []
    for row in rows:
        number = whole(row["id"], "id", str(instances.path))
        who = f"{instances.path}: ann {number}"
        name, _, part = instances.category(row, who).partition(":")
        rle = report.drawn(row, size, who)
        seen = rle is not None and masks.area(rle) > 0
        if rle is None or not (part or seen):
            uncounted.add(category_noun(name))
        if not part:
            found[number] = (category_noun(name), rle if seen else None)
        else:
            named.append((whole(need(row, "obj_ann_id", who), "obj_ann_id", who), part_noun(part), rle))
    parts = whole_parts(named)
    for number in parts.keys() - found.keys():
        report.leave_out(f"{instances.path}: ann {number} has parts, but is no object of their photo")
    for number, (category, rle) in found.items():
        if rle is not None:
            yield PartObject(category, rle, united(parts.get(number, []), size), {"ann_id": number})
