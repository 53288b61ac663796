"""DensePose-COCO: body parts of persons on photos of COCO 2014.

`dp_masks` of an annotation holds one mask for each of 14 parts, [] where it is out of sight, drawn in the person's
box as 256 x 256 pixels. Annotations without it are persons whose parts nobody drew. (After DensePose's data page.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uniresxx.data.readers.collector import Collector, Photo
from uniresxx.data.readers.fields import list_of, shown, whole
from uniresxx.data.readers.folders import PHOTO_FOLDERS, PhotoFinder, data_file
from uniresxx.data.readers.instances import Instances
from uniresxx.data.readers.part_names import category_noun, part_noun
from uniresxx.data.readers.part_objects import PartImage, PartObject, records_of_parts, united
from uniresxx.errors import BadAnnotationError
from uniresxx.imaging import masks
from uniresxx.types import RLE, ImageRecord

FOLDERS = ("densepose", "densepose_coco", "annotations", "coco")
SPLITS = ("train", "valminusminival", "minival")
LICENCE = "masks of persons CC BY 4.0 (COCO), of parts CC BY-NC 4.0 (DensePose)"
PARTS = (
    "torso", "right hand", "left hand", "left foot", "right foot", "upper leg right", "upper leg left",
    "lower leg right", "lower leg left", "upper arm left", "upper arm right", "lower arm left", "lower arm right",
    "head",
)  # fmt: skip


def read_densepose(root: Path, split: str) -> list[ImageRecord]:
    """Phrases of one split, ids `densepose/<split>/<image_id>:person[:<part>]`, as `part_objects` says them.

    Parts are head, torso, arm, hand, leg and foot: left and right, upper and lower are merged. Raises InputError
    naming file, record and field.
    """
    collector = Collector(str(densepose_file(root, split)), root, f"densepose/{split}", LICENCE)
    return records_of_parts(collector, densepose_images(root, split, collector))


def densepose_file(root: Path, split: str) -> Path:
    """The json of a split, in its newer or older name; NotThereError where it is missing."""
    files = (f"densepose_{split}2014.json", f"densepose_coco_2014_{split}.json")
    return data_file(root, FOLDERS, (*files, *(f"annotations/{name}" for name in files)))


def densepose_images(root: Path, split: str, report: Collector) -> Iterator[PartImage]:
    """The photos of a split with their persons and parts; masks without a pixel are noted in the report."""
    instances = Instances.load(densepose_file(root, split))
    finder = PhotoFinder(root, PHOTO_FOLDERS)
    for image_id, rows in instances.rows_of_image.items():
        who = f"{instances.path}: image {image_id}"
        file_name, height, width = instances.image(image_id, who)
        photo = Photo(
            str(image_id), finder.path(file_name, who), (height, width), instances.licence(image_id)
        )
        objects, uncounted = [], set()
        for row in rows:
            name = f"{instances.path}: ann {shown(row['id'])}"
            noun = category_noun(instances.category(row, name))
            rle = None if row.get("iscrowd", 0) else report.mask(row, photo.size, name)
            person = None
            if rle is not None:
                with report.leaving_out():
                    person = _person(row, noun, rle, name)
            if person is None:
                uncounted.add(noun)
            else:
                objects.append(person)
        yield PartImage(photo, tuple(objects), frozenset(uncounted))


def _person(row: Mapping[str, Any], noun: str, rle: RLE, who: str) -> PartObject:
    source = {"ann_id": whole(row["id"], "id", who)}
    if "dp_masks" not in row:
        return PartObject(noun, rle, {}, source, has_parts=False)
    drawn = list_of(row, "dp_masks", who)
    if len(drawn) != len(PARTS):
        raise BadAnnotationError(
            f"{who}: dp_masks has {len(drawn)} entries, DensePose has {len(PARTS)} parts"
        )
    size = (rle["size"][0], rle["size"][1])
    pieces = [
        (part_noun(name), in_box(code, row.get("bbox"), size, f"{who}: dp_masks of {name}"))
        for name, code in zip(PARTS, drawn, strict=True)
        if code
    ]
    return PartObject(noun, rle, united([item for item in pieces if masks.area(item[1])], size), source)


def in_box(code: Any, box: Any, size: tuple[int, int], who: str) -> RLE:
    """A mask drawn in a box (x, y, width, height) at any resolution, as a mask of the photo.

    A pixel of the photo has the value of the mask's pixel that its centre lies in (our choice; the public viewer
    rounds the box to whole pixels first).
    """
    good = isinstance(box, Sequence) and len(box) == 4
    if not good or not all(isinstance(v, int | float) and abs(v) < masks.MAX_PIXELS for v in box):
        raise BadAnnotationError(f"{who}: bbox must be four numbers, not {shown(box)}")
    x, y, width, height = (float(v) for v in box)
    if not isinstance(code, Mapping) or width <= 0 or height <= 0:
        raise BadAnnotationError(
            f"{who}: needs run lengths and a box with an area, not {shown(code)} in {shown(box)}"
        )
    try:
        rows, columns = code.get("size") or (0, 0)
        drawn_yx = masks.decode(masks.from_coco(code, rows, columns))
    except (ValueError, TypeError) as error:
        raise BadAnnotationError(f"{who}: {error}") from None
    rows_y, in_y = _places(y, height, size[0], drawn_yx.shape[0])
    columns_x, in_x = _places(x, width, size[1], drawn_yx.shape[1])
    mask_yx = np.zeros(size, dtype=bool)
    mask_yx[np.ix_(rows_y, columns_x)] = drawn_yx[np.ix_(in_y, in_x)]
    return masks.encode(mask_yx)


def _places(start: float, length: float, photo: int, drawn: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one side: the photo's pixels with their centre in the box, and the drawn pixel of each."""
    centres = np.arange(photo) + 0.5
    inside = np.flatnonzero((centres >= start) & (centres < start + length))
    return inside, np.minimum(((centres[inside] - start) * drawn / length).astype(int), drawn - 1)
