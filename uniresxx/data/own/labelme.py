"""labelme: one JSON per photo, with `shapes` and `imagePath`."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from uniresxx.data.own.annotations import Annotation, AnnotationFile, Draw, PhotoName, Size
from uniresxx.data.own.shapes import ellipse, no_area, points_to_polygon, polygons, rectangle, unreadable
from uniresxx.data.own.values import id_of, names_part, own_texts, size_of, text_of
from uniresxx.data.readers.fields import shown
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.imaging.decode import decode_mask
from uniresxx.types import RLE

KIND = "labelme"
WITHOUT_AREA = ("point", "points", "line", "linestrip")


def is_labelme(content: Any) -> bool:
    """Whether the content of a JSON file is labelme's."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def read_labelme(path: Path, content: Mapping[str, Any]) -> AnnotationFile:
    """The annotations of one photo; shapes of one label and one group_id are one annotation."""
    named = content.get("imagePath")
    photo = PhotoName(named, path.parent) if isinstance(named, str) and named.strip() else None
    photo = photo or PhotoName(path.stem, path.parent, without_suffix=True)
    size = size_of(content.get("imageHeight"), content.get("imageWidth"))
    groups: dict[tuple[str, str], list[Annotation]] = {}
    for index, shape in enumerate(content["shapes"]):
        found = _annotation(f"{path}: shape {index}", photo, shape, size, str(index))
        group = id_of(shape.get("group_id")) if isinstance(shape, Mapping) else ""
        key = (found.category, f"group {group}") if group and not found.problem else ("", f"shape {index}")
        groups.setdefault(key, []).append(found)
    return AnnotationFile(KIND, path, {path.stem: photo}, [_joined(group) for group in groups.values()])


def _annotation(who: str, photo: PhotoName, shape: Any, size: Size | None, native_id: str) -> Annotation:
    if not isinstance(shape, Mapping):
        return Annotation(who, photo, native_id=native_id, problem="is no object")
    try:
        draw = _outline(shape)
    except InputError as error:
        draw = unreadable(error)
    try:
        return Annotation(
            who, photo, draw, False, size, False, text_of(shape.get("label")), own_texts(shape),
            names_part(shape), native_id,
        )  # fmt: skip
    except InputError as error:
        return Annotation(who, photo, native_id=native_id, problem=str(error))


def _joined(group: Sequence[Annotation]) -> Annotation:
    """One annotation of the shapes of a group: the OR of their masks, each of their sentences once."""
    if len(group) == 1:
        return group[0]
    draws = [item.draw for item in group if item.draw is not None]

    def draw(size: Size) -> RLE:
        return masks.union([one(size) for one in draws], size)

    texts = tuple(dict.fromkeys(text for item in group for text in item.texts))
    return replace(group[0], draw=draw, texts=texts, is_part=any(item.is_part for item in group))


def _outline(shape: Mapping[str, Any]) -> Draw:
    """How to draw a shape; a shape without a type is a polygon, as in old versions."""
    kind = shape.get("shape_type") or "polygon"
    if kind in WITHOUT_AREA:
        return no_area
    numbers = points_to_polygon(shape.get("points"))
    if kind == "mask":
        return _pixels(shape.get("mask"), numbers)
    if kind == "rectangle" and len(numbers) == 4:
        return polygons([rectangle(*numbers)])
    if kind == "circle" and len(numbers) == 4:
        x, y, edge_x, edge_y = numbers
        radius = math.hypot(edge_x - x, edge_y - y)
        return polygons([ellipse(x, y, radius, radius)])
    if kind in ("rectangle", "polygon", "rotation", "oriented_rectangle"):
        return polygons([numbers])
    raise InputError(f"shape_type {shown(kind)} with {len(numbers) // 2} points is not known")


def _pixels(encoded: Any, box: Sequence[float]) -> Draw:
    """A shape of type mask: a PNG in base64, whose first pixel lies at the first corner of the box."""
    try:
        mask_yx = decode_mask(base64.b64decode(encoded, validate=True), "mask")
    except (TypeError, ValueError, binascii.Error) as error:
        raise InputError(f"mask is no PNG in base64 ({error})") from None
    if len(box) != 4:
        raise InputError(f"a mask has a box of 2 points, not of {len(box) // 2}")
    left, top = round(min(box[0::2])), round(min(box[1::2]))

    def draw(size: Size) -> RLE:
        canvas_yx = np.zeros(size, dtype=bool)
        inside = canvas_yx[
            max(top, 0) : max(top + mask_yx.shape[0], 0), max(left, 0) : max(left + mask_yx.shape[1], 0)
        ]
        inside |= mask_yx[max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]]
        return masks.encode(canvas_yx)

    return draw
