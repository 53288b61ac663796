"""VGG Image Annotator, version 1 and 2: a project, its annotations as JSON, or as CSV."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uniresxx.data.own.annotations import Annotation, AnnotationFile, Draw, PhotoName
from uniresxx.data.own.shapes import ellipse, no_area, polygons, rectangle, unreadable
from uniresxx.data.own.values import (
    PART_KEYS,
    TEXT_KEYS,
    attributes_of,
    is_filled,
    names_part,
    number_of,
    own_texts,
    text_of,
)
from uniresxx.data.readers.fields import shown
from uniresxx.errors import InputError

KIND = "VIA"
NAME_KEYS = ("name", "label", "class", "category", "object", "type")  # our choice: VIA has no field for it
CSV_COLUMNS = {"filename", "region_shape_attributes", "region_attributes"}


def is_via(content: Any) -> bool:
    """Whether the content of a JSON file is VIA's."""
    table = _table(content)
    return bool(table) and all(
        isinstance(row, Mapping) and {"filename", "regions"} <= row.keys() for row in table
    )


def _table(content: Any) -> list[Any]:
    if not isinstance(content, dict):
        return []
    table = content.get("_via_img_metadata", content)
    return list(table.values()) if isinstance(table, dict) else []


def read_via(path: Path, content: Mapping[str, Any]) -> AnnotationFile:
    """The annotations of a project or of its JSON."""
    rows = []
    for row in _table(content):
        regions = row["regions"]
        listed = list(regions.values()) if isinstance(regions, Mapping) else regions
        rows.append((row["filename"], listed if isinstance(listed, list) else []))
    return _file(path, rows)


def read_via_csv(path: Path, table: Sequence[Mapping[str, str]]) -> AnnotationFile:
    """The annotations of its CSV, one region a row; attributes are JSON."""
    rows: list[tuple[Any, list[Any]]] = []
    for row in table:
        shape = attributes_of(row.get("region_shape_attributes", ""))
        region = {
            "shape_attributes": shape,
            "region_attributes": attributes_of(row.get("region_attributes", "")),
        }
        rows.append((row.get("filename"), [region] if shape else []))
    return _file(path, rows)


def _file(path: Path, rows: Sequence[tuple[Any, Sequence[Any]]]) -> AnnotationFile:
    photos = {
        name: PhotoName(name, path.parent) for name, _ in rows if isinstance(name, str) and name.strip()
    }
    return AnnotationFile(KIND, path, photos, list(_annotations(path, rows, photos)))


def _annotations(
    path: Path, rows: Sequence[tuple[Any, Sequence[Any]]], photos: Mapping[str, PhotoName]
) -> Iterator[Annotation]:
    number = 0
    for name, regions in rows:
        photo = photos.get(name) if isinstance(name, str) else None
        for region in regions:
            who, native_id = f"{path}: region {number} of {shown(name)}", str(number)
            number += 1
            if not isinstance(region, Mapping):
                yield Annotation(who, photo, native_id=native_id, problem="is no object")
                continue
            try:
                draw = _outline(region.get("shape_attributes"))
            except InputError as error:
                draw = unreadable(error)
            try:
                yield Annotation(
                    who, photo, draw, False, None, False,
                    _category(attributes_of(region.get("region_attributes"))), own_texts(region),
                    names_part(region), native_id,
                )  # fmt: skip
            except InputError as error:
                yield Annotation(who, photo, native_id=native_id, problem=str(error))


def _category(attributes: Mapping[str, Any]) -> str:
    """The name in region attributes: of a key that means one, else of the only attribute."""
    named = [attributes[key] for key in NAME_KEYS if is_filled(attributes.get(key))]
    rest = {key: value for key, value in attributes.items() if key not in (*TEXT_KEYS, *PART_KEYS)}
    filled = [value for value in rest.values() if is_filled(value)]
    value = named[0] if named else filled[0] if len(filled) == 1 else ""
    if isinstance(value, Mapping):  # a checkbox: {"door": true}
        ticked = [key for key, on in value.items() if on]
        value = ticked[0] if len(ticked) == 1 else ""
    return text_of(value)


def _outline(shape: Any) -> Draw:
    if not isinstance(shape, Mapping):
        raise InputError("has no shape_attributes")
    kind = shape.get("name")
    if kind in ("point", "line", "polyline"):
        return no_area
    if kind == "polygon":
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            raise InputError("all_points_x and all_points_y must be lists of one length")
        return polygons([[number_of(value) for pair in zip(xs, ys, strict=True) for value in pair]])
    if kind == "rect":
        x, y, width, height = (number_of(shape.get(key)) for key in ("x", "y", "width", "height"))
        return polygons([rectangle(x, y, x + width, y + height)])
    if kind == "circle":
        x, y, radius = (number_of(shape.get(key)) for key in ("cx", "cy", "r"))
        return polygons([ellipse(x, y, radius, radius)])
    if kind == "ellipse":
        x, y, rx, ry = (number_of(shape.get(key)) for key in ("cx", "cy", "rx", "ry"))
        turned = math.degrees(number_of(shape.get("theta", 0)))
        return polygons([ellipse(x, y, rx, ry, turned)])
    raise InputError(f"the shape {shown(kind)} is not known")
