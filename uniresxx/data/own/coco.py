"""COCO JSON of one file, as CVAT, Roboflow, labelme2coco, Label Studio and others export it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uniresxx.data.own.annotations import Annotation, AnnotationFile, PhotoName, Size
from uniresxx.data.own.shapes import coco_outline, unreadable
from uniresxx.data.own.values import id_of, names_part, number_of, own_texts, size_of, text_of
from uniresxx.errors import InputError

KIND = "COCO"


def is_coco(content: Any) -> bool:
    """Whether the content of a JSON file is COCO's."""
    return isinstance(content, dict) and all(
        isinstance(content.get(key), list) for key in ("images", "annotations")
    )


def read_coco(path: Path, content: Mapping[str, Any]) -> AnnotationFile:
    """The annotations of a COCO file; a record that cannot be read carries its problem."""
    rows = [row for row in content["images"] if isinstance(row, Mapping)]
    images: dict[str, PhotoName] = {}
    sizes: dict[str, Size | None] = {}
    for row in rows:
        name = next((row[key] for key in ("file_name", "path", "coco_url") if row.get(key)), None)
        key = id_of(row.get("id"))
        if isinstance(name, str) and key and key not in images:
            images[key], sizes[key] = (
                PhotoName(name, path.parent),
                size_of(row.get("height"), row.get("width")),
            )
    return AnnotationFile(KIND, path, images, list(_annotations(path, content, images, sizes)))


def _annotations(
    path: Path, content: Mapping[str, Any], images: Mapping[str, PhotoName], sizes: Mapping[str, Size | None]
) -> Iterator[Annotation]:
    listed = content.get("categories")
    rows = [row for row in listed if isinstance(row, Mapping)] if isinstance(listed, list) else []
    names = {id_of(row.get("id")): row.get("name") for row in rows}
    for index, record in enumerate(content["annotations"]):
        if not isinstance(record, Mapping):
            yield Annotation(f"{path}: annotations[{index}]", None, problem="is no object")
            continue
        native_id, image_id = id_of(record.get("id")), id_of(record.get("image_id"))
        who, photo = f"{path}: annotation {native_id or f'[{index}]'}", images.get(image_id)
        try:
            draw, coded_size = coco_outline(record.get("segmentation"))
        except InputError as error:
            draw, coded_size = unreadable(error), None
        try:
            category = names.get(id_of(record.get("category_id")), record.get("category_name"))
            yield Annotation(
                who, photo, draw, _has_box(record.get("bbox")), coded_size or sizes.get(image_id),
                False, text_of(category), own_texts(record), names_part(record), native_id,
            )  # fmt: skip
        except InputError as error:
            yield Annotation(who, photo, native_id=native_id, problem=str(error))


def _has_box(box: Any) -> bool:
    """Whether `bbox` (x, y, width, height) has area."""
    if not isinstance(box, list | tuple) or len(box) != 4:
        return False
    try:
        return min(number_of(side) for side in box[2:]) > 0
    except InputError:
        return False
